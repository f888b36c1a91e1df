"""Stable Diffusion 1.5: the model alone. It knows nothing of defects, training or the command line."""
