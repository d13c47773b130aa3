"""Attacks: plain functions over a network and what was sent."""

from scinfl.privacy.attacks._gram import GramAlignment, GramEvidence, align_gram, train_references
from scinfl.privacy.attacks._imprint import Imprint, imprint, read_imprint, share_recovered, unproject
from scinfl.privacy.attacks._inversion import CellPrior, invert_update, local_change
from scinfl.privacy.attacks._joint import JointGuess, invert_jointly
from scinfl.privacy.attacks._likeness import mean_cell, reconstruction_scores
from scinfl.privacy.attacks._membership import (
    confidence,
    likelihood_ratio,
    loss_drop,
    membership_scores,
    train_shadows,
)
from scinfl.privacy.attacks._model_stealing import (
    Loss,  # noqa: F401
    fine_tune,
    fit_key,
    fit_scales,
    train_from_scratch,
)
from scinfl.privacy.attacks._property import infer_attribute, invert_class
from scinfl.privacy.attacks._reconstruction import recover_input, recover_inputs
from scinfl.privacy.attacks._server import Watcher, match_features
from scinfl.privacy.attacks._surrogate import (
    average_versions,
    distil,
    extract_pooled_key,
    fit_permutation,
    match_surrogate,
)
from scinfl.privacy.attacks._without_key import matched_statistics, removed_modules, wrong_keys

__all__ = [
    "CellPrior",
    "GramAlignment",
    "GramEvidence",
    "Imprint",
    "JointGuess",
    "Watcher",
    "align_gram",
    "average_versions",
    "confidence",
    "distil",
    "extract_pooled_key",
    "fine_tune",
    "fit_key",
    "fit_permutation",
    "fit_scales",
    "imprint",
    "infer_attribute",
    "invert_class",
    "invert_jointly",
    "invert_update",
    "likelihood_ratio",
    "local_change",
    "loss_drop",
    "match_features",
    "match_surrogate",
    "matched_statistics",
    "mean_cell",
    "membership_scores",
    "read_imprint",
    "reconstruction_scores",
    "recover_input",
    "recover_inputs",
    "removed_modules",
    "share_recovered",
    "train_from_scratch",
    "train_references",
    "train_shadows",
    "unproject",
    "wrong_keys",
]

# steps of these attacks, which the audit takes one by one: not part of the public interface
from scinfl.privacy.attacks._inversion import infer_label, infer_label_counts  # noqa: F401
from scinfl.privacy.attacks._likeness import correlations, nearest_cell  # noqa: F401
from scinfl.privacy.attacks._membership import by_group  # noqa: F401
from scinfl.privacy.attacks._perturbations import (  # noqa: F401
    missed_change,
    moved_rows,
    number_of_perturbed,
    undo_propagation,
)
from scinfl.privacy.attacks._property import (  # noqa: F401
    flatten,
    infer_property,
    inversion_scores,
    outputs_of,
    simulate_sites,
)
from scinfl.privacy.attacks._surrogate import use_pooled_key  # noqa: F401
from scinfl.privacy.attacks._unscramble import match_signs, unscramble  # noqa: F401
from scinfl.privacy.attacks._without_key import Score  # noqa: F401
