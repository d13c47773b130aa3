"""Models of scvi-tools, federated and keyed."""

from scinfl.model.scvi._cells import counts_of
from scinfl.model.scvi._classes import check_labels_named, checked_arguments

__all__ = ["check_labels_named", "checked_arguments", "counts_of"]
