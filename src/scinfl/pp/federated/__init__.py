"""Preprocessing over the cells of all sites, from sums."""

from scinfl.pp.federated._assignment import Rule
from scinfl.pp.federated._features import at_features
from scinfl.pp.federated._highly_variable_genes import dispersions, unlogged
from scinfl.pp.federated._lsi import inverse_means, latent_semantics, weighted_logarithms
from scinfl.pp.federated._moments import moments_of
from scinfl.pp.federated._offsets import aligned
from scinfl.pp.federated._pca import principal_components
from scinfl.pp.federated._site_sums import Computation, SiteSums, in_step, log_sent, run, sums_payload

__all__ = [
    "Computation",
    "Rule",
    "SiteSums",
    "aligned",
    "at_features",
    "dispersions",
    "in_step",
    "inverse_means",
    "latent_semantics",
    "log_sent",
    "moments_of",
    "principal_components",
    "run",
    "sums_payload",
    "unlogged",
    "weighted_logarithms",
]
