"""Leiden communities of an embedding, at a resolution or in a number."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np
import scanpy as sc
from anndata import AnnData

from scinfl._extras import install_line

_LOWEST, _HIGHEST = 1e-3, 1e3
_STEPS = 30
_FEWEST = 3


def leiden(
    X: np.ndarray, n_clusters: int | None, resolution: float, n_neighbours: int, rng: int
) -> tuple[np.ndarray, float]:
    """Community of each row, and the resolution; with a number of clusters the one that reaches it."""
    if importlib.util.find_spec("igraph") is None:
        msg = f"Expected the package igraph for `method='leiden'`, found none. Run `{install_line('leiden')}`."
        raise ImportError(msg)
    if len(X) < _FEWEST:
        msg = f"Expected at least {_FEWEST} cells for `method='leiden'`, found {len(X)}. Pass `method='kmeans'`."
        raise ValueError(msg)
    cells = AnnData(X)
    sc.pp.neighbors(cells, n_neighbors=min(n_neighbours, len(X) - 1), use_rep="X", random_state=rng)

    def communities(resolution: float) -> np.ndarray:
        sc.tl.leiden(cells, resolution=resolution, flavor="igraph", n_iterations=2, directed=False, random_state=rng)
        return cells.obs["leiden"].cat.codes.to_numpy()

    if n_clusters is None:
        return communities(resolution), resolution
    return reach(communities, n_clusters, resolution)


def reach(communities: Callable[[float], np.ndarray], n_clusters: int, resolution: float) -> tuple[np.ndarray, float]:
    """Bisect the logarithm of the resolution until there are so many communities.

    Their number grows with the resolution, if not strictly: bisection may miss a number that occurs, and reports that.
    """
    low, high = _LOWEST, _HIGHEST
    seen: dict[int, float] = {}
    for _ in range(_STEPS):
        found = communities(resolution)
        number = len(np.unique(found))
        if number == n_clusters:
            return found, resolution
        seen[number] = resolution
        if number < n_clusters:
            low = resolution
        else:
            high = resolution
        # a step of at most 4 first: far out, Leiden is slow and its numbers are far from those asked for
        resolution = float(np.clip(np.sqrt(low * high), resolution / 4, resolution * 4))
    nearest = sorted(seen, key=lambda number: abs(number - n_clusters))[:2]
    found_at = " and ".join(f"{number} at resolution {seen[number]:.4g}" for number in sorted(nearest))
    msg = (
        f"Expected a resolution that gives {n_clusters} clusters, found {found_at}. Pass another `n_clusters`, a "
        "`resolution` alone, or `method='kmeans'`."
    )
    raise ValueError(msg)
