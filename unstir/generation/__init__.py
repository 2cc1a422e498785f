"""Generation: a whole file of prompts, drawn by one process, by several, or on Ray."""
