"""What one modality measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scinfl.model.base._cells import Matrix


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
