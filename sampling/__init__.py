"""What sample.py needs beyond the sampler: masks, placement, and the folder of samples."""
