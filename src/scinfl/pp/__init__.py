"""Prepare data."""

from scinfl.pp._align_genes import align_genes
from scinfl.pp._clr import clr
from scinfl.pp._from_spatialdata import from_spatialdata
from scinfl.pp._join_modalities import join_modalities
from scinfl.pp._join_sections import join_sections
from scinfl.pp._lift import lift
from scinfl.pp._perturbations import perturbations
from scinfl.pp._read_visium import read_visium
from scinfl.pp.federated._class_means import federated_class_means
from scinfl.pp.federated._highly_variable_genes import federated_highly_variable_genes
from scinfl.pp.federated._lsi import federated_lsi
from scinfl.pp.federated._offsets import federated_offsets
from scinfl.pp.federated._pca import federated_pca
from scinfl.pp.federated._scale import federated_scale
from scinfl.pp.splits._perturbations import split_perturbations
from scinfl.pp.splits._sites import split_sites

__all__ = [
    "align_genes",
    "clr",
    "federated_class_means",
    "federated_highly_variable_genes",
    "federated_lsi",
    "federated_offsets",
    "federated_pca",
    "federated_scale",
    "from_spatialdata",
    "join_modalities",
    "join_sections",
    "lift",
    "perturbations",
    "read_visium",
    "split_perturbations",
    "split_sites",
]

# for other packages of scinfl: not part of the public interface
from scinfl.pp._clr import centred_log_ratios  # noqa: F401
from scinfl.pp._lift import joined_column, unique_spots  # noqa: F401
