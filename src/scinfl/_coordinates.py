"""Where spots are: coordinates, however they are stored, and whether they lie in tissue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scinfl._checks import unmasked

if TYPE_CHECKING:
    import pandas as pd

_IN_TISSUE = "in_tissue"
_CLOSE = 1e-6  # of the largest coordinate, within which two places are the same


def coordinates_of(entry: Any, where: str) -> np.ndarray:
    """Coordinates as an array (spots × 2 or 3, float64); missing ones are NaN.

    Data frames, sparse matrices, categories and numbers written as text are read as what they mean.

    Raises
    ------
    TypeError
        If they are not numbers.
    ValueError
        If there are not 2 or 3 for each spot.
    """
    import pandas as pd

    values = entry.toarray() if sparse.issparse(entry) else entry
    values = values.to_numpy() if isinstance(values, pd.DataFrame) else unmasked(values)
    if values.ndim != 2 or values.shape[1] not in (2, 3):
        msg = (
            f"Expected 2 or 3 coordinates per spot in {where}, found shape {values.shape}. Keep one row for each spot, "
            "and columns in a unit of length only."
        )
        raise ValueError(msg)
    if values.dtype.kind in "iuf":
        return values.astype(np.float64)
    try:
        if values.dtype.kind in "OSU":
            return np.where(pd.isna(values), np.nan, values.astype(object)).astype(np.float64)
    except (TypeError, ValueError):
        pass
    msg = (
        f"Expected numbers as coordinates in {where}, found values of type {values.dtype} such as "
        f"'{next(iter(values.ravel()), '')}'. Convert them, for example with `.astype(float)`."
    )
    raise TypeError(msg)


def in_tissue(obs: pd.DataFrame) -> np.ndarray:
    """Which spots lie in tissue, as readers of Visium write it; all where nothing is known."""
    import pandas as pd

    if _IN_TISSUE not in obs:
        return np.full(len(obs), fill_value=True)
    return (pd.to_numeric(obs[_IN_TISSUE].astype(object), errors="coerce") != 0).to_numpy()


def elsewhere(places: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Which spots another modality puts at another place, beyond rounding; none whose place is not known (NaN)."""
    if places.shape[1] != expected.shape[1]:
        return np.ones(len(places), bool)
    return (np.abs(places - expected) > _CLOSE * np.nanmax(np.abs(expected), initial=0)).any(1)
