"""Which features a federated basis is fitted on."""

from __future__ import annotations

import numpy as np
from anndata import AnnData

from scinfl._checks import whole_number

_HIGHLY_VARIABLE = "highly_variable"


def chosen_features(adata: AnnData, mask_var: str | np.ndarray | None) -> tuple[np.ndarray, str | None]:
    """Numbers of the chosen features, and the column that chose them.

    ``"auto"`` takes the highly variable ones where they are marked, else all.
    """
    if isinstance(mask_var, str) and mask_var == "auto":
        mask_var = _HIGHLY_VARIABLE if _HIGHLY_VARIABLE in adata.var else None
    if mask_var is None:
        return np.arange(adata.n_vars), None
    name = None
    if isinstance(mask_var, str):
        if mask_var not in adata.var:
            msg = f"Expected `mask_var` to name a column of adata.var, found {mask_var!r}."
            raise KeyError(msg)
        name, mask_var = mask_var, adata.var[mask_var].to_numpy()
    mask = np.asarray(mask_var)
    if mask.dtype != bool or mask.shape != (adata.n_vars,):
        msg = (
            f"Expected `mask_var` to hold {adata.n_vars} booleans, found {mask.dtype} of shape {mask.shape}. "
            "Pass `adata.var[column].astype(bool)`."
        )
        raise ValueError(msg)
    if not mask.any():
        msg = "Expected `mask_var` to choose features, found none chosen. Pass `mask_var=None` for all."
        raise ValueError(msg)
    return np.flatnonzero(mask), name


def at_features(columns: np.ndarray, values: np.ndarray, n_features: int) -> np.ndarray:
    """Values of the chosen features among those of all, which are 0."""
    every = np.zeros((n_features, *values.shape[1:]))
    every[columns] = values
    return every


def params_of(site_key: str, mask_var: str | None, layer: str | None, **own: bool) -> dict[str, str | bool]:
    """Settings of a basis for ``.uns``; what was not given is left out."""
    given = {"mask_var": mask_var, "layer": layer}
    return {"site_key": site_key, **own, **{name: value for name, value in given.items() if value}}


def check_n_comps(n_comps: int, most: int, what: str, *, least: int = 1) -> None:
    """Refuse fewer components than are of use, and more than there can be."""
    whole_number("n_comps", n_comps, least)
    if n_comps > most:
        msg = f"Expected `n_comps` of at most {most}, {what}, found {n_comps}. Lower `n_comps`."
        raise ValueError(msg)
