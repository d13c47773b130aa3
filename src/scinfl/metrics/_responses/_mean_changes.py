"""Mean changes of expression by perturbation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import sparse

from scinfl._checks import as_numbers, complete_names, finite, unique
from scinfl._conditions import CONTROL
from scinfl.metrics._responses._differential import condition_moments


def mean_changes(
    cells: np.ndarray | sparse.spmatrix | sparse.sparray,
    conditions: Sequence[str] | np.ndarray | pd.Series,
    genes: Sequence[str] | pd.Index,
    *,
    control: str = CONTROL,
) -> pd.DataFrame:
    """Mean expression of each perturbation minus that of the control cells.

    Parameters
    ----------
    cells
        Expression, cells × genes.
    conditions
        Canonical name of the condition of each cell.
    genes
        Names of the columns.
    control
        Name of the control.

    Returns
    -------
    Data frame, perturbations (in the order of the alphabet) × genes.

    Raises
    ------
    ValueError
        If lengths differ, values or conditions are missing, a gene occurs twice, or no cell is a control.
    """
    known = complete_names(conditions, "conditions", cells.shape[0])
    columns = pd.Index(genes)
    unique(columns, "`genes`", "Merge or drop them.")
    cells = as_numbers(cells)
    finite(cells, list(columns), where=" in `cells`")
    if control not in known:
        msg = f"Expected control cells ('{control}') in `conditions`, found none. Name them with `control`."
        raise ValueError(msg)
    names, codes = np.unique(known, return_inverse=True)
    _, mean, _ = condition_moments(cells, codes, len(names))
    changes = pd.DataFrame(mean, index=names, columns=columns)
    return changes.drop(index=control) - changes.loc[control]
