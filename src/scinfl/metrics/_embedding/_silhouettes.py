"""Average silhouette widths of labels and of batches."""

from __future__ import annotations

import numpy as np
from sklearn import config_context
from sklearn.metrics import silhouette_samples

_MEGABYTES = 64  # of distances at a time: never all cells × all cells


def asw_label(X: np.ndarray, labels: np.ndarray) -> float:
    """Average silhouette width of the labels, scaled as (s + 1)/2 to 0…1 (Luecken et al. 2022)."""
    n_labels = len(np.unique(labels))
    if not 2 <= n_labels < len(labels):
        return np.nan
    return float((_silhouettes(X, labels).mean() + 1) / 2)


def asw_batch(X: np.ndarray, batch: np.ndarray, labels: np.ndarray | None) -> float:
    """1 − |silhouette of the batches| within each label, mean over cells, then labels (Luecken et al. 2022).

    1 where batches overlap. Without labels it is taken over all cells. Labels that occur in one batch only carry no
    information about mixing and are left out.
    """
    groups = np.zeros(len(X), dtype=int) if labels is None else labels
    scores = []
    for group in np.unique(groups):
        own = groups == group
        if 2 <= len(np.unique(batch[own])) < own.sum():
            scores.append(1 - np.abs(_silhouettes(X[own], batch[own])).mean())
    return float(np.mean(scores)) if scores else np.nan


def _silhouettes(X: np.ndarray, groups: np.ndarray) -> np.ndarray:
    with config_context(working_memory=_MEGABYTES):
        return silhouette_samples(X, groups)
