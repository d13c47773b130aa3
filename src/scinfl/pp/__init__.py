"""Prepare data."""

from scinfl.pp._perturbations import perturbations
from scinfl.pp._split_perturbations import split_perturbations
from scinfl.pp._split_sites import split_sites

__all__ = ["perturbations", "split_perturbations", "split_sites"]
