"""Models in the style of scvi-tools: set up, train over sites, predict, save, load."""

from scinfl.model._classifier import Classifier
from scinfl.model._gears import GEARS
from scinfl.model._spamosaic import SpaMosaic

__all__ = ["GEARS", "Classifier", "SpaMosaic"]
