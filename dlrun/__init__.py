"""dlrun: an experiment runner for image classifiers, driven by config files."""

__version__ = "0.1.0"
