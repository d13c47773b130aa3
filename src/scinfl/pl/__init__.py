"""Draw on matplotlib axes; nothing is shown or saved."""

from scinfl.pl._ablation import ablation
from scinfl.pl._audit import audit
from scinfl.pl._classification import confusion
from scinfl.pl._compare import compare, radar, tradeoff
from scinfl.pl._explain import explain, top_features
from scinfl.pl._history import history
from scinfl.pl._integration import integration_metrics
from scinfl.pl._mosaic import imputation, imputation_scatter, modality_alignment
from scinfl.pl._perturbation import perturbation, perturbation_scatter
from scinfl.pl._perturbation_scores import hit_rate, interactions, perturbation_metrics
from scinfl.pl._reconstruction import reconstruction
from scinfl.pl._scales import scales
from scinfl.pl._sites import sites
from scinfl.pl._spatial import sections

__all__ = [
    "ablation",
    "audit",
    "compare",
    "confusion",
    "explain",
    "history",
    "hit_rate",
    "imputation",
    "imputation_scatter",
    "integration_metrics",
    "interactions",
    "modality_alignment",
    "perturbation",
    "perturbation_metrics",
    "perturbation_scatter",
    "radar",
    "reconstruction",
    "scales",
    "sections",
    "sites",
    "top_features",
    "tradeoff",
]
