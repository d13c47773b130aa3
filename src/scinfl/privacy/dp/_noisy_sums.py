"""Sums of cells with noise, released once; whatever is trained on them is covered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from scinfl.federation import Journal
from scinfl.federation.rounds import SpendsPrivacy
from scinfl.privacy.dp._gaussian_noise import gaussian_noise, on_grid

_ROWS = 4096
_SHARE = 0.5  # of a cell's length that counts it, so that sums and numbers are about equally blurred


def noisy_sums(
    matrix: Any, rows: Sequence[np.ndarray], *, max_norm: float, noise_multiplier: float
) -> tuple[np.ndarray, np.ndarray]:
    r"""Sum and number of the cells of each set, with normal noise.

    A cell :math:`y` of a set adds :math:`(y \min(1, C / \lVert y \rVert), C / 2)` to it and nothing to the others, so
    adding or removing one cell moves all sums and numbers together by at most :math:`\Delta = C \sqrt{5} / 2`; each
    gets noise of deviation :math:`\sigma \Delta`.

    Returns
    -------
    Sums (sets × genes) and numbers of cells (sets), float64.

    Examples
    --------
    >>> import numpy as np
    >>> from scinfl.privacy.dp import noisy_sums
    >>> cells = np.array([[3.0, 4.0], [0.0, 1.0], [1.0, 0.0]])
    >>> sums, numbers = noisy_sums(cells, [np.array([0, 1]), np.array([2])], max_norm=2.5, noise_multiplier=0.0)
    >>> sums.tolist(), numbers.tolist()
    ([[1.5, 3.0], [1.0, 0.0]], [2.0, 1.0])
    """
    sums = np.stack([_clipped_sum(matrix, own, max_norm) for own in rows])
    numbers = np.array([len(own) for own in rows], np.float64)
    deviation = noise_multiplier * max_norm * float(np.hypot(1, _SHARE))
    sums = on_grid(sums + gaussian_noise(sums.shape, deviation), deviation)
    spread = deviation / (_SHARE * max_norm)
    return sums, on_grid(numbers + gaussian_noise(numbers.shape, spread), spread)


def _clipped_sum(matrix: Any, rows: np.ndarray, max_norm: float) -> np.ndarray:
    total = np.zeros(matrix.shape[1])
    for start in range(0, len(rows), _ROWS):
        block = matrix[rows[start : start + _ROWS]]
        square = block.multiply(block).sum(1) if sparse.issparse(block) else np.square(block, dtype=np.float64).sum(1)
        length = np.sqrt(np.asarray(square, dtype=np.float64).ravel())
        total += np.asarray(np.minimum(1, max_norm / np.maximum(length, 1e-300)) @ block).ravel()
    return total


class Released(SpendsPrivacy):
    """Stands for a budget whose noise is in what a model trains on, so that training spends nothing."""

    def __init__(self, private: SpendsPrivacy) -> None:
        self._private = private

    def open_account(self, *, n_sites: int, n_rounds: int, journal: Journal | None) -> None:
        """Continue from what was spent according to the journal of the run."""
        self._private.open_account(n_sites=n_sites, n_rounds=n_rounds, journal=journal)

    def check_site(self, site: str, network: Any, train: Any, n_validation: int, options: Mapping[str, Any]) -> None:
        """Refuse nothing: whatever is made of noisy sums is covered."""
        del site, network, train, n_validation, options

    def epsilon(self, site: str | None = None) -> float:
        """What a site has spent; the most that any has by default."""
        return self._private.epsilon(site)

    def __repr__(self) -> str:
        return repr(self._private)
