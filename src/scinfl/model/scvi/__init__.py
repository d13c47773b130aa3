"""Models of scvi-tools, federated and keyed."""

from scinfl.model.scvi._cells import CountCells, counts_of
from scinfl.model.scvi._classes import check_labels_named, checked_arguments, class_of
from scinfl.model.scvi._model import ScviModel
from scinfl.model.scvi._network import ScviNetwork
from scinfl.model.scvi._options import ScviTraining
from scinfl.model.scvi._pooled import train_pooled
from scinfl.model.scvi._view import ScviView

__all__ = [
    "CountCells",
    "ScviModel",
    "ScviNetwork",
    "ScviTraining",
    "ScviView",
    "check_labels_named",
    "checked_arguments",
    "class_of",
    "counts_of",
    "train_pooled",
]
