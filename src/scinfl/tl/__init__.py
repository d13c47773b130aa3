"""Write predictions of models into AnnData, and compare and audit models."""

from scinfl.tl._ablate import ablate
from scinfl.tl._annotate import annotate
from scinfl.tl._audit import audit
from scinfl.tl._audit_report import audit_report
from scinfl.tl._cluster import cluster
from scinfl.tl._compare._compare import METHODS, compare
from scinfl.tl._compare._embeddings import EMBEDDING_METHODS, compare_embeddings
from scinfl.tl._compare._perturbations import PERTURBATION_METHODS, compare_perturbations
from scinfl.tl._domain_neighbours import domain_neighbours
from scinfl.tl._embed import embed
from scinfl.tl._explain import explain
from scinfl.tl._impute import impute
from scinfl.tl._match_domains import match_domains
from scinfl.tl._scales import scales
from scinfl.tl._score_perturbations import score_perturbations

__all__ = [
    "EMBEDDING_METHODS",
    "METHODS",
    "PERTURBATION_METHODS",
    "ablate",
    "annotate",
    "audit",
    "audit_report",
    "cluster",
    "compare",
    "compare_embeddings",
    "compare_perturbations",
    "domain_neighbours",
    "embed",
    "explain",
    "impute",
    "match_domains",
    "scales",
    "score_perturbations",
]
