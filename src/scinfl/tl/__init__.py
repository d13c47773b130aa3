"""Write what a model says back into AnnData, and compare models."""

from scinfl.tl._annotate import annotate
from scinfl.tl._cluster import cluster
from scinfl.tl._compare import METHODS, compare
from scinfl.tl._compare_perturbations import PERTURBATION_METHODS, compare_perturbations
from scinfl.tl._embed import embed
from scinfl.tl._score_perturbations import score_perturbations

__all__ = [
    "METHODS",
    "PERTURBATION_METHODS",
    "annotate",
    "cluster",
    "compare",
    "compare_perturbations",
    "embed",
    "score_perturbations",
]
