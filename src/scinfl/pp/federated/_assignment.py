"""How one site shares its cells out to prototypes and corrects them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scinfl.federation import State
from scinfl.pp.federated._prototypes import unit

_N_BLOCKS = 20  # cells are assigned in so many parts, each knowing of those before


@dataclass(frozen=True)
class Rule:
    """How cells are assigned, and offsets shrunk."""

    diversity: float  # strength of the preference for prototypes that are short of a batch
    width: float  # of the assignment
    shrinkage: float  # ridge penalty, in cells
    min_members: int  # least number of cells of a prototype over all sites


class SiteCells:
    """What one site knows of its own cells, and never sends."""

    def __init__(self, points: np.ndarray, batches: np.ndarray, generator: np.random.Generator) -> None:
        self.points = points
        self.corrected = points.copy()
        self._batches = batches
        self._sizes = np.bincount(batches)
        self._in_batch = np.eye(len(self._sizes))[batches]
        self._generator = generator
        self.shares = np.zeros((len(points), 0))

    @property
    def members(self) -> np.ndarray:
        """Sum of shares (batches × prototypes)."""
        return self._in_batch.T @ self.shares

    def assign(self, prototypes: np.ndarray, others: np.ndarray | None, n: int, rule: Rule) -> None:
        """Share cells out to prototypes; ``others`` are the members at other sites, unknown at first."""
        fit = 2 * (unit(self.corrected) @ prototypes.T - 1) / rule.width
        if others is None or not rule.diversity:
            self.shares = _shares(fit)
            return
        members = self.members
        for block in np.array_split(self._generator.permutation(len(fit)), _N_BLOCKS):
            if not len(block):
                continue
            members -= self._in_batch[block].T @ self.shares[block]
            expected = self._sizes[:, None] / n * (others + members.sum(0))
            preference = rule.diversity * np.log((expected + 1) / (np.maximum(members, 0) + 1))
            self.shares[block] = _shares(fit[block] + preference[self._batches[block]])
            members += self._in_batch[block].T @ self.shares[block]

    def regression_sums(self, known: np.ndarray, shrinkage: float) -> State:
        """What this site adds to the pooled mean of each known prototype."""
        members = self.members[:, known]
        weights = 1 / (members + shrinkage)
        sums = np.einsum("bk,bkd->kd", weights, self._batch_sums(known))
        return {"coordinates": sums, "members": (weights * members).sum(0)}

    def subtract_offsets(self, pooled: np.ndarray, known: np.ndarray, shrinkage: float) -> float:
        """Correct the own cells; returns the sum of squares that they moved by since the last time."""
        members = self.members[:, known, None]
        offsets = (self._batch_sums(known) - members * pooled) / (members + shrinkage)
        before, self.corrected = self.corrected, self.points.copy()
        for batch, own in enumerate(offsets):
            rows = self._batches == batch
            self.corrected[rows] -= self.shares[np.ix_(rows, known)] @ own
        return float(((self.corrected - before) ** 2).sum())

    def _batch_sums(self, known: np.ndarray) -> np.ndarray:
        """Sum of coordinates by shares (batches × prototypes × dimensions)."""
        rows_of = [self._batches == batch for batch in range(len(self._sizes))]
        return np.stack([self.shares[np.ix_(rows, known)].T @ self.points[rows] for rows in rows_of])


def _shares(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)
