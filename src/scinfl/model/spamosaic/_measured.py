"""What one modality measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scinfl.model.base._cells import Matrix


@dataclass(frozen=True)
class Measured:
    """Spots that one modality measured.

    Parameters
    ----------
    modality
        Its name in the MuData; ``None`` for an AnnData.
    matrix
        Spots × features.
    normalise
        How its values are normalised, see :func:`scinfl.model.spamosaic._normalise.normalised`.
    rows
        Rows of its spots in the data, ascending within a section.
    coordinates
        Spots × axes.
    section, site
        Of its spots.
    """

    modality: str | None
    matrix: Matrix
    normalise: str
    rows: np.ndarray
    coordinates: np.ndarray
    section: np.ndarray
    site: np.ndarray
