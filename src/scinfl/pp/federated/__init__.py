"""Preprocessing over the cells of all sites, from sums."""

from scinfl.pp.federated._lsi import weighted_logarithms
from scinfl.pp.federated._site_sums import SiteSums

__all__ = ["SiteSums", "weighted_logarithms"]
