"""A spatial graph that the data bring, as squidpy writes it."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from scipy import sparse

from scinfl._checks import first_of

UNS, CONNECTIVITIES, DISTANCES = "spatial_neighbors", "spatial_connectivities", "spatial_distances"
"""Where squidpy writes its graph by default, and where scinfl writes one."""
BUILDER = "scinfl"
"""Which of the two did, among the parameters of the graph."""


def has_graph_of_others(adata: AnnData) -> bool:
    """Whether there is a graph that scinfl did not write."""
    builder = adata.uns.get(UNS, {}).get("params", {}).get("builder")
    return CONNECTIVITIES in adata.obsp and builder != BUILDER


def given_graph(adata: AnnData, graph: str, inside: np.ndarray, section: np.ndarray, name: str) -> sparse.csr_matrix:
    """Weights of the neighbours of some spots (spots × spots, float32), each its own with weight 1.

    Spots that list each other differently get the larger weight.

    Raises
    ------
    KeyError
        If there is no such graph.
    ValueError
        If weights are negative or not finite, or spots of two sections are neighbours.
    """
    key = CONNECTIVITIES if graph == "squidpy" else graph
    of = "" if name == "X" else f" of mdata['{name}']"
    if key not in adata.obsp:
        msg = (
            f"Expected a spatial graph in .obsp['{key}']{of}, found {first_of(list(adata.obsp)) or 'none'}. Write one, "
            "for example with `squidpy.gr.spatial_neighbors_knn`, or leave out `graph`."
        )
        raise KeyError(msg)
    weights = sparse.csr_matrix(adata.obsp[key], dtype=np.float32)[inside][:, inside]
    if odd := int((~np.isfinite(weights.data) | (weights.data < 0)).sum()):
        msg = f"Expected weights from 0 in .obsp['{key}']{of}, found {odd} that are negative or not finite. Drop them."
        raise ValueError(msg)
    weights.eliminate_zeros()
    i, j = weights.nonzero()
    if across := int((section[i] != section[j]).sum()):
        msg = (
            f"Expected neighbours within sections in .obsp['{key}']{of}, found {across} pairs of spots of different "
            "sections. Write the graph again with `squidpy.gr.spatial_neighbors_knn(adata, library_key='section')`, or "
            "the name of your column of sections."
        )
        raise ValueError(msg)
    others = weights.maximum(weights.T) - sparse.diags(weights.diagonal())
    joined = (others + sparse.eye(len(inside), dtype=np.float32)).tocsr()
    joined.sort_indices()
    return joined
