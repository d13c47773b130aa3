"""Preprocessing over the cells of all sites, from sums."""

from scinfl.pp.federated._assignment import Rule
from scinfl.pp.federated._features import at_features
from scinfl.pp.federated._highly_variable_genes import dispersions, unlogged
from scinfl.pp.federated._lsi import latent_semantics, weighted_logarithms
from scinfl.pp.federated._moments import moments_of
from scinfl.pp.federated._offsets import aligned
from scinfl.pp.federated._pca import principal_components
from scinfl.pp.federated._site_sums import SiteSums

__all__ = [
    "Rule",
    "SiteSums",
    "aligned",
    "at_features",
    "dispersions",
    "latent_semantics",
    "moments_of",
    "principal_components",
    "unlogged",
    "weighted_logarithms",
]
