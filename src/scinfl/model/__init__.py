"""Models in the style of scvi-tools: set up, train over sites, predict, save, load."""

from scinfl.model._classifier import Classifier
from scinfl.model.gears._model import GEARS
from scinfl.model.spamosaic._model import SpaMosaic

__all__ = ["GEARS", "Classifier", "SpaMosaic"]
