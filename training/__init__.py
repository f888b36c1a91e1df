"""What every training run needs around its diffusion step."""
