"""Arrays in, pandas out."""

from scinfl.metrics._classification import classification

__all__ = ["classification"]
