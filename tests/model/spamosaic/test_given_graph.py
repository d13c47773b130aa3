"""Spatial graphs that the data bring."""

from __future__ import annotations

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

from scinfl.model.spamosaic._given_graph import given_graph, has_graph_of_others


def make_spots(weights):
    adata = AnnData(np.ones((4, 1), np.float32))
    adata.obsp["spatial_connectivities"] = sparse.csr_matrix(np.array(weights, float))
    return adata


EVERY, ONE = np.arange(4), np.repeat("a", 4)
WEIGHTS = [[5, 2, 0, 0], [1, 0, 0, 0.5], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_spots_list_each_other_and_themselves():
    found = given_graph(make_spots(WEIGHTS), "squidpy", EVERY, ONE, "X")
    expected = [[1, 2, 0, 0], [2, 1, 0, 0.5], [0, 0, 1, 0], [0, 0.5, 0, 1]]
    np.testing.assert_array_equal(found.toarray(), expected)
    assert found.dtype == np.float32
    part = given_graph(make_spots(WEIGHTS), "squidpy", np.array([0, 1]), ONE[:2], "X")
    np.testing.assert_array_equal(part.toarray(), [[1, 2], [2, 1]])


def test_any_entry_of_obsp_may_be_named():
    adata = make_spots(WEIGHTS)
    adata.obsp["ring"] = sparse.csr_matrix(([1.0], ([2], [3])), shape=(4, 4))
    assert given_graph(adata, "ring", EVERY, ONE, "X")[3, 2] == 1
    with pytest.raises(KeyError, match=r"\.obsp\['none'\] of mdata\['rna'\], found spatial_connectivities, ring"):
        given_graph(adata, "none", EVERY, ONE, "rna")


def test_what_is_no_graph_of_sections_is_refused():
    with pytest.raises(ValueError, match="found 1 that are negative or not finite"):
        given_graph(make_spots([[0, np.nan, 0, 0], *WEIGHTS[1:]]), "squidpy", EVERY, ONE, "X")
    with pytest.raises(ValueError, match="found 1 pairs of spots of different sections"):
        given_graph(make_spots(WEIGHTS), "squidpy", EVERY, np.array(["a", "a", "a", "b"]), "X")


def test_whose_graph_it_is_is_known():
    adata = make_spots(WEIGHTS)
    assert has_graph_of_others(adata)
    adata.uns["spatial_neighbors"] = {"params": {"builder": "scinfl"}}
    assert not has_graph_of_others(adata)
    assert not has_graph_of_others(AnnData(np.ones((4, 1), np.float32)))
