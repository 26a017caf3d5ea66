"""creature: fine-tune image classifiers in folds, score them honestly, share the weights."""

__version__ = "0.1.0"
