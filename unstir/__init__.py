"""unstir: prompt-conditioned diffusion models, trained, checked and run."""
