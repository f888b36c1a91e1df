"""Photo and mask files, dataset layouts, geometry, and the checks before training."""
