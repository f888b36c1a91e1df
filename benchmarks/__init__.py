"""This project side by side with diffusers + peft, and ablations."""
