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
    min_members: int  # least number of cells of a site whose coordinates are summed


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

    def sums(self, rule: Rule) -> State:
        """What this site adds to members and coordinates of prototypes, and to the mean of each around its batches.

        Coordinates are those of prototypes that enough of its cells belong to.
        """
        members = self.members
        total = members.sum(0)
        enough = (total >= rule.min_members).astype(np.float64)
        weights = enough / (members + rule.shrinkage)
        return {
            "members": total,
            "coordinates": enough[:, None] * (self.shares.T @ unit(self.corrected)),
            "regressed": np.einsum("bk,bkd->kd", weights, self._batch_sums()),
            "regressed members": (weights * members).sum(0),
        }

    def subtract_offsets(self, pooled: np.ndarray, known: np.ndarray, shrinkage: float) -> float:
        """Correct the own cells; returns the sum of squares that they moved by since the last time."""
        members = self.members[:, :, None]
        offsets = np.where(known[:, None], (self._batch_sums() - members * pooled) / (members + shrinkage), 0)
        before, self.corrected = self.corrected, self.points.copy()
        for batch, own in enumerate(offsets):
            rows = self._batches == batch
            self.corrected[rows] -= self.shares[rows] @ own
        return float(((self.corrected - before) ** 2).sum())

    def _batch_sums(self) -> np.ndarray:
        """Sum of coordinates by shares (batches × prototypes × dimensions)."""
        sums = np.zeros((len(self._sizes), self.shares.shape[1], self.points.shape[1]))
        for batch, own in enumerate(sums):
            rows = self._batches == batch
            own[:] = self.shares[rows].T @ self.points[rows]
        return sums


def _shares(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)
