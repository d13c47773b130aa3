"""The local learners: a network and its loss each."""

from scinfl.module._classifier import ClassifierModule
from scinfl.module._contrastive import contrastive_loss
from scinfl.module._gears import Conditions, GEARSModule
from scinfl.module._gears_loss import Targets, change_loss
from scinfl.module._spamosaic import SpaMosaicModule, SpotBatch

__all__ = [
    "ClassifierModule",
    "Conditions",
    "GEARSModule",
    "SpaMosaicModule",
    "SpotBatch",
    "Targets",
    "change_loss",
    "contrastive_loss",
]
