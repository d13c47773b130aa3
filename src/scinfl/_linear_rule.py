"""The linear model of perturbation responses, from which conditions can be left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.linalg import eigh


class LinearRule:
    r"""Ridge regression of mean changes on embeddings of the measured and of the perturbed genes.

    :math:`Y \approx G W P^\top + b` (Ahlmann-Eltze, Huber & Anders, Nature Methods 2025): rows of :math:`G` are
    the first principal component scores of the genes in the changes :math:`Y` (genes × conditions), rows of :math:`P`
    the sum of those of the perturbed genes, :math:`b` is the mean change, and

    .. math:: W = (G^\top G + \lambda I)^{-1} G^\top (Y - b) P\, (P^\top P + \lambda I)^{-1} .

    With eigenvectors :math:`V` of the conditions' inner products :math:`G = \bar Y V`, so that leaving conditions out
    decomposes a small matrix again, not the changes.

    Parameters
    ----------
    changes
        Mean changes of the training conditions, conditions × genes.
    conditions
        Perturbed genes of each condition.
    columns
        Column of each measured gene; a perturbed gene that is not measured has the embedding 0.
    n_components
        Number of principal components, at most as many as there are conditions.
    ridge
        :math:`\lambda`.
    """

    def __init__(
        self,
        changes: np.ndarray,
        conditions: Sequence[Sequence[str]],
        columns: Mapping[str, int],
        *,
        n_components: int = 10,
        ridge: float = 0.1,
    ) -> None:
        self._changes, self._columns, self._n, self._ridge = changes, columns, n_components, ridge
        self._centred = changes - changes.mean(1, keepdims=True)
        self._inner, self._with_changes = self._centred @ self._centred.T, self._centred @ changes.T
        self._perturbed = np.stack([self._read(genes) for genes in conditions])
        self._fitted: dict[bytes, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def predict(self, genes: Sequence[str], hidden: np.ndarray | None = None) -> np.ndarray:
        """Change by perturbing a set of genes, without what is known of the hidden conditions (their rows)."""
        rows = np.delete(np.arange(len(self._changes)), [] if hidden is None else hidden)
        if not len(rows):
            return np.zeros(self._changes.shape[1])
        vectors, weights, mean = self._fit(rows)
        scores = weights @ (vectors.T @ self._read(genes)[rows])
        return (vectors @ scores) @ self._centred[rows] + mean

    def _read(self, genes: Sequence[str]) -> np.ndarray:
        """Centred changes of the perturbed genes themselves, summed, in each condition."""
        return self._centred[:, [self._columns[gene] for gene in genes if gene in self._columns]].sum(1)

    def _fit(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if (name := rows.tobytes()) not in self._fitted:
            n, both = len(rows), np.ix_(rows, rows)
            _, vectors = eigh(self._inner[both], subset_by_index=[n - min(n, self._n), n - 1])
            perturbed, penalty = self._perturbed[both] @ vectors, self._ridge * np.eye(vectors.shape[1])
            explained = self._with_changes[both] - self._with_changes[both].mean(1, keepdims=True)
            half = np.linalg.solve(vectors.T @ self._inner[both] @ vectors + penalty, vectors.T @ explained @ perturbed)
            weights = np.linalg.solve(perturbed.T @ perturbed + penalty, half.T).T
            self._fitted[name] = vectors, weights, self._changes[rows].mean(0)
        return self._fitted[name]
