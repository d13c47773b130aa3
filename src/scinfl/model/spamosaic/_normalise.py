"""Values of spots on a scale that components can be found on; every spot by itself."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from scinfl.model.base._cells import Matrix
from scinfl.pp import centred_log_ratios
from scinfl.pp.federated import weighted_logarithms

NORMALISATIONS = ("clr", "lognorm", "log1p", "tfidf", "none")


def normalised(matrix: Matrix, how: str, weights: np.ndarray | None = None) -> Matrix:
    r"""Normalise counts (spots × features); zeros stay 0, so sparse values stay sparse.

    ``"clr"``
        :math:`\log(1 + x / g)` with the geometric mean :math:`g` of :math:`1 + x` over the features of a spot. It takes
        out the depth of a spot less than ``"lognorm"`` does, and with it less of the tissue: depth is biology in space
        (Bhuva et al. 2024).
    ``"lognorm"``
        :math:`\log(1 + 10^4 x / \sum x)`.
    ``"log1p"``
        :math:`\log(1 + x)`.
    ``"tfidf"``
        :math:`\log(1 + 10^4 x w / \sum x w)` with a weight :math:`w` per feature, for accessibility.
    ``"none"``
        Values as they are.
    """
    if how == "none":
        return matrix
    if how == "clr":
        return centred_log_ratios(matrix).astype(np.float32)
    if how == "tfidf" and weights is not None:
        return weighted_logarithms(matrix, weights).astype(np.float32)
    factor = np.ones(matrix.shape[0])
    if how != "log1p":
        totals = np.asarray(matrix.sum(1), dtype=np.float64).ravel()
        factor = 1e4 / np.where(totals > 0, totals, 1)
    if sparse.issparse(matrix):
        return (sparse.diags(factor) @ matrix).log1p().astype(np.float32).tocsr()
    return np.log1p(matrix * factor[:, None]).astype(np.float32)
