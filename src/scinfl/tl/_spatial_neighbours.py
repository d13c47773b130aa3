"""The spatial graph of a model, in squidpy's form."""

from __future__ import annotations

from typing import Any

import numpy as np
from anndata import AnnData
from mudata import MuData

from scinfl.model.spamosaic import (
    BUILDER,
    CONNECTIVITIES,
    DISTANCES,
    UNS,
    SpaMosaic,
    has_graph_of_others,
    modalities_of,
)


def write_neighbours(data: AnnData | MuData, model: SpaMosaic) -> None:
    """Write whose neighbours a spot is averaged over, unless there is a graph that is not scinfl's."""
    for name, adata in modalities_of(data).items():
        if has_graph_of_others(adata) or not adata.n_obs:
            continue
        distances = model.neighbours(name, data)
        if isinstance(data, MuData):
            rows = data.obs_names.get_indexer(adata.obs_names)
            distances = distances[rows][:, rows]
        connectivities = distances.copy()
        connectivities.data = np.ones_like(distances.data)
        adata.obsp[CONNECTIVITIES], adata.obsp[DISTANCES] = connectivities, distances
        params: dict[str, Any] = {"builder": BUILDER, "coord_type": "generic"}
        if n := model.n_neighbours[name]:
            params["n_neighbors"] = n
        adata.uns[UNS] = {"connectivities_key": CONNECTIVITIES, "distances_key": DISTANCES, "params": params}
