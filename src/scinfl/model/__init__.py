"""Models in the style of scvi-tools: set up, train over sites, predict, save, load."""

from scinfl.model._classifier import Classifier, ClassifierOptions
from scinfl.model.base._options import TrainOptions
from scinfl.model.gears._model import GEARS
from scinfl.model.gears._options import GEARSOptions
from scinfl.model.scvi._from_scvi import from_scvi
from scinfl.model.scvi._map_query import map_query
from scinfl.model.scvi._model import ScviModel
from scinfl.model.scvi._options import ScviOptions
from scinfl.model.spamosaic._model import SpaMosaic
from scinfl.model.spamosaic._options import SpaMosaicOptions

__all__ = [
    "GEARS",
    "Classifier",
    "ClassifierOptions",
    "GEARSOptions",
    "ScviModel",
    "ScviOptions",
    "SpaMosaic",
    "SpaMosaicOptions",
    "TrainOptions",
    "from_scvi",
    "map_query",
]
