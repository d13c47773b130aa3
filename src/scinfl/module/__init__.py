"""The local learners: a network and its loss each."""

from scinfl.module._classifier import ClassifierModule

__all__ = ["ClassifierModule"]
