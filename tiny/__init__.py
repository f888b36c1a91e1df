"""The embedded base model: Stable Diffusion 1.5's topology made narrow, and the pictures it is trained on."""
