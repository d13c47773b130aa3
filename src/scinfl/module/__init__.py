"""The local learners: a network and its loss each."""

from scinfl.module._classifier import ClassifierModule
from scinfl.module._contrastive import contrastive_loss
from scinfl.module._gears import GEARSModule
from scinfl.module._gears_loss import change_loss
from scinfl.module._spamosaic import SpaMosaicModule

__all__ = [
    "ClassifierModule",
    "GEARSModule",
    "SpaMosaicModule",
    "change_loss",
    "contrastive_loss",
]

# for other packages of scinfl: not part of the public interface
from scinfl.module._gears import Conditions  # noqa: F401
from scinfl.module._gears_loss import Targets  # noqa: F401
from scinfl.module._spamosaic import SpotBatch  # noqa: F401
