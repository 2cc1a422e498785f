"""Training: runs, from a configuration to a model."""
