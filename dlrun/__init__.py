"""dlrun: an experiment runner for image classifiers, driven by config files."""

__all__ = ["__version__"]

__version__ = "0.1.0"
