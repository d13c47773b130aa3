"""What one modality measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

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


def owners_of(measured: Mapping[str, Measured], remote: RemoteContext | None) -> dict[str, list[str]]:
    """Sites that measured each modality; where they are elsewhere, as they reported it."""
    if remote is None:
        return {modality: sorted(set(own.site)) for modality, own in measured.items()}
    facts = remote.facts.items()
    return {modality: sorted(site for site, own in facts if modality in own["modalities"]) for modality in measured}
