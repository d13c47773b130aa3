"""Which features of a table of cells belong to which modality."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from anndata import AnnData

from scinfl._checks import first_of
from scinfl._names import FEATURE_TYPES

if TYPE_CHECKING:
    from scinfl.model.scvi._classes import Supported


def modalities_of(adata: AnnData, model: str, supported: Supported) -> dict[str, int]:
    """Number of features of each modality, in the order of the data; none for a class that reads features of one kind.

    Raises
    ------
    ValueError
        If the column of feature types is missing, names others, lacks one that is required, or is not in order.
    """
    allowed, required = supported.modalities, supported.required
    if not allowed:
        return {}
    if FEATURE_TYPES not in adata.var:
        msg = (
            f"Expected the modality of every feature of {model} in adata.var['{FEATURE_TYPES}'], found no such column. "
            "Make the table of a MuData with `scinfl.pp.join_modalities`."
        )
        raise ValueError(msg)
    found = adata.var[FEATURE_TYPES].astype(str).to_numpy()
    names = list(dict.fromkeys(found))
    strange, lacking = sorted(set(names) - set(allowed)), sorted(set(required) - set(names))
    if strange or lacking:
        msg = (
            f"Expected features of {first_of(list(allowed))} for {model} in adata.var['{FEATURE_TYPES}'], found "
            f"{f'others: {first_of(strange)}' if strange else f'no {first_of(lacking)}'}. Drop or rename them."
        )
        raise ValueError(msg)
    counts = {name: int((found == name).sum()) for name in allowed if name in names}
    if list(np.repeat(list(counts), list(counts.values()))) != list(found):
        msg = (
            f"Expected the features of {model} in the order {list(counts)}, found them mixed. Make the table with "
            "`scinfl.pp.join_modalities`."
        )
        raise ValueError(msg)
    return counts


def slices_of(modalities: Mapping[str, int]) -> dict[str, slice]:
    """Columns of each modality."""
    ends = np.cumsum([0, *modalities.values()]).tolist()
    return {name: slice(*own) for name, own in zip(modalities, pairwise(ends), strict=True)}
