"""Similarity of reconstructed and true cells, and baselines without any attack."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment


def reconstruction_scores(
    true: np.ndarray, found: np.ndarray, candidates: np.ndarray | None = None, *, n_top: int = 50
) -> pd.DataFrame:
    """Rate reconstructed cells, each against the true one that it is matched to.

    Matching is one to one, so that the sum of correlations is largest (Hungarian method).

    Parameters
    ----------
    true
        True cells (n × features).
    found
        Reconstructed cells (as many × features); NaN counts as zero.
    candidates
        Cells of the same kind that were not attacked. A cell is re-identified if none of them and none of the other
        true cells is more similar to the reconstruction.
    n_top
        Number of highest features whose share that is found again is counted; at most a tenth of the features.

    Returns
    -------
    One row per true cell with ``pearson``, ``top_features`` (share of the highest features), ``nonzero`` (share of the
    features that are zero in both or in neither; NaN for dense data), and ``reidentified`` (0 or 1).

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> x = np.random.default_rng(0).normal(size=(4, 30))
    >>> si.privacy.attacks.reconstruction_scores(x, x[::-1])["pearson"].round(3).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    true, found = np.asarray(true, dtype=np.float64), np.nan_to_num(np.asarray(found, dtype=np.float64))
    if true.shape != found.shape or true.ndim != 2:
        msg = f"Expected as many reconstructed cells as true ones, found shapes {found.shape} and {true.shape}."
        raise ValueError(msg)
    likeness = correlations(true, found)
    rows, columns = linear_sum_assignment(-likeness)
    found = found[columns]
    own = likeness[rows, columns]
    others = likeness[:, columns].copy()
    others[rows, rows] = -np.inf
    rival = others.max(0) if len(true) > 1 else np.full(len(true), -np.inf)
    if candidates is not None and len(candidates):
        rival = np.maximum(rival, correlations(np.asarray(candidates, dtype=np.float64), found).max(0))
    n_top = max(1, min(n_top, true.shape[1] // 10))
    top = np.argpartition(-found, n_top - 1, axis=1)[:, :n_top]
    least = np.partition(true, -n_top, axis=1)[:, -n_top, None]  # ties with the last count
    recall = (np.take_along_axis(true, top, axis=1) >= least).mean(1)
    zero = np.abs(found) <= 1e-3 * np.abs(found).max(1, keepdims=True)
    has_zeros = (true == 0).mean() > 0.05
    pattern = ((true == 0) == zero).mean(1) if has_zeros else np.full(len(true), np.nan)
    return pd.DataFrame(
        {"pearson": own, "top_features": recall, "nonzero": pattern, "reidentified": (own > rival).astype(float)}
    )


def mean_cell(true: np.ndarray, public: np.ndarray) -> np.ndarray:
    """Baseline that looks at nothing that was sent: the mean of public cells, once for each true cell.

    Parameters
    ----------
    true
        True cells, for their number.
    public
        Public cells.

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> si.privacy.attacks.mean_cell(np.zeros((1, 2)), np.array([[0.0, 1.0], [2.0, 1.0]])).tolist()
    [[1.0, 1.0]]
    """
    return np.repeat(np.asarray(public, dtype=np.float64).mean(0, keepdims=True), len(true), axis=0)


def nearest_cell(true: np.ndarray, public: np.ndarray) -> np.ndarray:
    """Baseline that cheats: the public cell most like each true cell, the best that copying public data can give.

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> public = np.array([[0.0, 1.0, 0.0], [2.0, 0.0, 1.0]])
    >>> si.privacy.attacks.nearest_cell(np.array([[1.0, 0.0, 0.4]]), public).tolist()
    [[2.0, 0.0, 1.0]]
    """
    public = np.asarray(public, dtype=np.float64)
    return public[correlations(public, np.asarray(true, dtype=np.float64)).argmax(0)]


def correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson correlation of every row of one with every row of the other; 0 for constant rows."""
    a, b = (rows - rows.mean(1, keepdims=True) for rows in (a, b))
    a, b = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300) for rows in (a, b))
    return a @ b.T
