"""Arrays in, pandas out."""

from scinfl.metrics._classification import classification
from scinfl.metrics._embedding._integration import integration
from scinfl.metrics._embedding._modality_alignment import modality_alignment
from scinfl.metrics._imputation import imputation, imputation_features
from scinfl.metrics._responses._baselines import perturbation_baselines
from scinfl.metrics._responses._interaction import interaction
from scinfl.metrics._responses._mean_changes import mean_changes
from scinfl.metrics._responses._perturbation import perturbation, perturbation_summary

__all__ = [
    "classification",
    "imputation",
    "imputation_features",
    "integration",
    "interaction",
    "mean_changes",
    "modality_alignment",
    "perturbation",
    "perturbation_baselines",
    "perturbation_summary",
]

# parts of these scores, for other packages of scinfl: not part of the public interface
from scinfl.metrics._responses._differential import condition_moments, rank_genes, top_genes  # noqa: F401
from scinfl.metrics._responses._scores import mean_squared_error, pearson  # noqa: F401
