"""What all models share: keyed network, training over sites, files, registry; internal to scinfl."""

from scinfl._checks import values_of
from scinfl.model.base._cells import Cells, rows_per_step, sites_of
from scinfl.model.base._files import check_replaceable, read_document
from scinfl.model.base._local_training import Batches, LocalSite, LocalTraining, Lock, SharedNetwork
from scinfl.model.base._model import FederatedModel
from scinfl.model.base._options import TrainOptions, takes
from scinfl.model.base._rekey import rekeyed
from scinfl.model.base._remote import RemoteContext
from scinfl.model.base._training import SiteData
from scinfl.model.base._view import ModelView, registry_of

__all__ = [
    "Batches",
    "Cells",
    "FederatedModel",
    "LocalSite",
    "LocalTraining",
    "Lock",
    "ModelView",
    "RemoteContext",
    "SharedNetwork",
    "SiteData",
    "TrainOptions",
    "check_replaceable",
    "read_document",
    "registry_of",
    "rekeyed",
    "rows_per_step",
    "sites_of",
    "takes",
    "values_of",
]
