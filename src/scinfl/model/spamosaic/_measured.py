"""What one modality measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from scipy import sparse

from scinfl.model.base._cells import Matrix
from scinfl.model.base._remote import RemoteContext


@dataclass(frozen=True)
class Measured:
    """Spots that one modality measured."""

    modality: str | None
    matrix: Matrix
    normalise: str
    rows: np.ndarray
    coordinates: np.ndarray
    section: np.ndarray
    site: np.ndarray
    rank: np.ndarray  # of the spot's name among all, by which spots are ordered: the order of rows means nothing
    graph: sparse.csr_matrix | None = None  # neighbours, where they are given

    def take(self, chosen: np.ndarray) -> Self:
        """Some of the spots, in this order."""
        if np.array_equal(chosen, np.arange(len(self.rows))):
            return self
        return replace(
            self,
            matrix=self.matrix[chosen],
            rows=self.rows[chosen],
            coordinates=self.coordinates[chosen],
            section=self.section[chosen],
            site=self.site[chosen],
            rank=self.rank[chosen],
            graph=None if self.graph is None else self.graph[chosen][:, chosen],
        )


def owners_of(measured: Mapping[str, Measured], remote: RemoteContext | None) -> dict[str, list[str]]:
    """Sites that measured each modality; where they are elsewhere, as they reported it."""
    if remote is None:
        return {modality: sorted(set(own.site)) for modality, own in measured.items()}
    facts = remote.facts.items()
    return {modality: sorted(site for site, own in facts if modality in own["modalities"]) for modality in measured}
