"""Prepare data."""

from scinfl.pp._align_genes import align_genes
from scinfl.pp._clr import clr
from scinfl.pp._federated_class_means import federated_class_means
from scinfl.pp._federated_highly_variable_genes import federated_highly_variable_genes
from scinfl.pp._federated_lsi import federated_lsi
from scinfl.pp._federated_offsets import federated_offsets
from scinfl.pp._federated_pca import federated_pca
from scinfl.pp._federated_scale import federated_scale
from scinfl.pp._join_sections import join_sections
from scinfl.pp._perturbations import perturbations
from scinfl.pp._split_perturbations import split_perturbations
from scinfl.pp._split_sites import split_sites

__all__ = [
    "align_genes",
    "clr",
    "federated_class_means",
    "federated_highly_variable_genes",
    "federated_lsi",
    "federated_offsets",
    "federated_pca",
    "federated_scale",
    "join_sections",
    "perturbations",
    "split_perturbations",
    "split_sites",
]
