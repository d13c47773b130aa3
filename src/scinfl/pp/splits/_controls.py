"""Halve control cells: one half to predict from, one to score with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from scinfl._checks import missing, obs_column, warn


def second_half(adata: AnnData, is_control: np.ndarray, keys: Sequence[str], rng: int) -> np.ndarray:
    """Which controls are for the test: every second one, in random order, of each value of the columns."""
    strata = np.zeros(int(is_control.sum()), np.int64)
    for key in keys:
        values = obs_column(adata, key, "site_key or covariate_keys")[is_control]
        if n := int(missing(values).sum()):
            msg = (
                f"Expected a value for every control cell in adata.obs['{key}'], found {n} without. Fill or drop them."
            )
            raise ValueError(msg)
        strata = np.unique(np.stack([strata, pd.factorize(values.astype(str))[0]]), axis=1, return_inverse=True)[1]
    order = np.random.default_rng(rng).permutation(len(strata))
    place = pd.Series(order).groupby(strata[order]).cumcount().to_numpy()
    second = np.zeros(len(strata), bool)
    second[order] = place % 2 == 1
    if not second.any():
        msg = (
            f"Expected at least 2 control cells (in one site and covariate) to halve, found {len(strata)} and left "
            "none for the test. Pass `split_controls=False`."
        )
        warn(msg)
    return second
