"""Generated images against real ones: networks, metrics, classifiers, report."""
