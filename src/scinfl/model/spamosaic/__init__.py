"""Integration of spatial sections of one or several modalities."""

from scinfl.model.spamosaic._batches import MosaicBatches, SpotTensors
from scinfl.model.spamosaic._measured import Measured
from scinfl.model.spamosaic._model import SpaMosaic
from scinfl.model.spamosaic._options import SpaMosaicOptions, batch_size_of
from scinfl.model.spamosaic._spot_checks import linked
from scinfl.model.spamosaic._spots import Data, column_of
from scinfl.model.spamosaic._view import SpaMosaicView

__all__ = [
    "Data",
    "Measured",
    "MosaicBatches",
    "SpaMosaic",
    "SpaMosaicOptions",
    "SpaMosaicView",
    "SpotTensors",
    "batch_size_of",
    "column_of",
    "linked",
]
