"""Cells from an update that is locked with a key, once the order of the features was matched."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scinfl.privacy.attacks._likeness import correlations


def match_signs(weights: Sequence[np.ndarray], public: np.ndarray, order: np.ndarray) -> np.ndarray:
    r"""Guess the sign of every column of a locked first layer, given the feature that it reads.

    Columns whose features go together move together, up to the product of their signs :math:`s_j s_k`. So the signs are
    those of the leading eigenvector of the product of both similarities, all of them up to one common sign.

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> public = np.random.default_rng(0).normal(size=(50, 3)) @ np.ones((3, 4)) + 0.1
    >>> signs = si.privacy.attacks.match_signs([public * [1, -1, 1, -1]], public, np.arange(4))
    >>> bool(abs(signs @ [1, -1, 1, -1]) == 4)
    True
    """
    stacked = np.stack([np.asarray(weight, dtype=np.float64) for weight in weights])
    changes = np.diff(stacked, axis=0)[len(stacked) // 4 :] if len(stacked) > 1 else stacked
    columns = changes.reshape(-1, changes.shape[-1])
    columns = columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-300)  # not centred: units have signs, too
    with np.errstate(invalid="ignore", divide="ignore"):
        features = np.nan_to_num(np.corrcoef(np.asarray(public, dtype=np.float64), rowvar=False))
    product = (columns.T @ columns) * features[np.ix_(order, order)]
    np.fill_diagonal(product, 0)
    leading = np.linalg.eigh(product)[1][:, -1]
    return np.where(leading < 0, -1.0, 1.0)


def unscramble(cells: np.ndarray, order: np.ndarray, signs: np.ndarray, public: np.ndarray) -> np.ndarray:
    """Put reconstructed cells of a locked layer into the order of the features, each with its likelier sign.

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> x = np.random.default_rng(0).normal(size=(5, 6))
    >>> order, signs = np.array([2, 0, 1, 5, 4, 3]), np.array([1.0, -1, 1, 1, -1, 1])
    >>> found = si.privacy.attacks.unscramble(-x[:2, order] * signs, order, signs, x)
    >>> bool(np.allclose(found, x[:2]))
    True
    """
    plain = np.empty_like(cells, dtype=np.float64)
    plain[:, order] = cells * signs
    likeness = correlations(plain, np.asarray(public, dtype=np.float64))
    return plain * np.where(likeness.max(1) >= -likeness.min(1), 1.0, -1.0)[:, None]
