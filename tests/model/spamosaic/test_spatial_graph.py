"""Spatial neighbours of the spots of a section, and one hop over them."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import sparse
from scipy.spatial.distance import cdist

from scinfl.model.spamosaic._spatial_graph import merged_graph, original_propagation, rows_by_name, spatial_graph


def make_sections(n=60, n_axes=2, rng=0):
    generator = np.random.default_rng(rng)
    return generator.random((n, n_axes)), generator.permutation(np.repeat(["a", "b"], [n // 2, n - n // 2]))


def naive(xy, section, n_neighbours, radius, *, directed):
    graph = np.eye(len(xy))
    for i in range(len(xy)):
        near = [j for j in range(len(xy)) if j != i and section[j] == section[i]]
        near = [j for j in near if radius is None or np.linalg.norm(xy[i] - xy[j]) <= radius]
        for j in sorted(near, key=lambda j: np.linalg.norm(xy[i] - xy[j]))[:n_neighbours]:
            graph[i, j] = 1
    return graph if directed else np.maximum(graph, graph.T)


@pytest.mark.parametrize("directed", [False, True])
@pytest.mark.parametrize("n_axes", [2, 3])
@pytest.mark.parametrize(("n_neighbours", "radius"), [(4, None), (None, 0.4), (3, 0.5), (100, None)])
def test_neighbours_are_the_nearest_of_the_section(n_neighbours, radius, n_axes, directed):
    xy, section = make_sections(n_axes=n_axes)
    graph = spatial_graph(xy, section, n_neighbours=n_neighbours, radius=radius, directed=directed)
    assert (type(graph), graph.dtype) == (sparse.csr_matrix, np.float32)
    np.testing.assert_array_equal(graph.toarray(), naive(xy, section, n_neighbours, radius, directed=directed))


def test_only_lists_of_nearest_spots_have_a_direction():
    xy, section = make_sections()
    directed = spatial_graph(xy, section, n_neighbours=4, directed=True)
    np.testing.assert_array_equal(directed.sum(1), 5)
    assert (directed != directed.T).nnz > 0
    within = spatial_graph(xy, section, n_neighbours=None, radius=0.3, directed=True)
    assert (within != within.T).nnz == 0


def test_a_radius_holds_what_lies_on_it():
    xy = np.array([[0.0, 0], [100, 0], [200, 0]])
    for n_neighbours in (None, 2):
        graph = spatial_graph(xy, np.repeat("a", 3), n_neighbours=n_neighbours, radius=100)
        np.testing.assert_array_equal(graph.toarray(), [[1, 1, 0], [1, 1, 1], [0, 1, 1]])


def test_triangles_join_spots_of_a_section():
    square = np.array([[0.0, 0], [2, 0], [0, 2], [2, 2], [1, 0.9]])
    graph = spatial_graph(np.r_[square, square], np.repeat(["a", "b"], 5), delaunay=True)
    corners = [[1, 1, 1, 0, 1], [1, 1, 0, 1, 1], [1, 0, 1, 1, 1], [0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]
    np.testing.assert_array_equal(graph.toarray(), np.kron(np.eye(2), corners))
    short = spatial_graph(square, np.repeat("a", 5), delaunay=True, radius=1.5)
    star = [[1, 0, 0, 0, 1], [0, 1, 0, 0, 1], [0, 0, 1, 0, 1], [0, 0, 0, 1, 1], [1, 1, 1, 1, 1]]
    np.testing.assert_array_equal(short.toarray(), star)
    xy, section = make_sections(200)
    few = spatial_graph(xy, section, delaunay=True, n_neighbours=2, directed=True)
    every = spatial_graph(xy, section, delaunay=True, n_neighbours=None, directed=True)
    np.testing.assert_array_equal(few.sum(1), 3)
    assert (few.multiply(every) != few).nnz == 0
    distance = cdist(xy, xy)
    for i in range(0, 200, 20):
        neighbours = sorted(set(every[i].indices) - {i}, key=lambda j: distance[i, j])
        assert set(few[i].indices) - {i} == set(neighbours[:2])


@pytest.mark.parametrize("how", [{"n_neighbours": 2}, {"n_neighbours": None, "radius": 1.0}, {"delaunay": True}])
@pytest.mark.filterwarnings("ignore:Expected coordinates that differ between the spots")
def test_spots_at_one_place_are_neighbours_and_none_is_lost(how):
    xy, _ = make_sections(30)
    xy[10] = xy[3]
    graph = spatial_graph(xy, np.repeat("a", 30), **how)
    assert graph[3, 10] == graph[10, 3] == 1
    np.testing.assert_array_equal(graph.diagonal(), 1)
    assert graph.data.max() == 1
    same = spatial_graph(np.zeros((6, 2)), np.repeat("a", 6), n_neighbours=2, directed=True)
    np.testing.assert_array_equal(same.sum(1), 6)
    many = spatial_graph(np.zeros((500, 2)), np.repeat("a", 500), n_neighbours=2, directed=True)
    assert many.sum(1).max() <= 18


def lattice(kind, n=20):
    x, y = np.meshgrid(np.arange(n), np.arange(n + 3))
    if kind == "hexagons":
        return np.c_[(2 * x + y % 2).ravel() * 50.0, (y * 50 * np.sqrt(3)).ravel()]
    return np.c_[x.ravel(), y.ravel()] * {"squares": 8.0, "bins": 0.1}[kind] + 1000


RULES = [
    *({"n_neighbours": k} for k in (1, 6, 8, 12, 20, 30)),
    {"n_neighbours": 8, "directed": True},
    {"n_neighbours": None, "radius": 100.0},
    {"delaunay": True, "n_neighbours": None},
    {"delaunay": True, "n_neighbours": 5},
]


@pytest.mark.parametrize("how", RULES, ids=str)
@pytest.mark.parametrize("kind", ["squares", "bins", "hexagons"])
def test_neighbours_on_a_lattice_depend_on_neither_rows_nor_axes(kind, how):
    if how.get("radius") and kind != "hexagons":
        how = {**how, "radius": {"squares": 16.0, "bins": 0.201}[kind]}
    xy = lattice(kind)
    xy = xy[np.random.default_rng(0).random(len(xy)) > 0.05]  # with holes, as in tissue
    section = np.repeat("a", len(xy))
    expected = spatial_graph(xy, section, **how)
    for seed, turn in enumerate(([0, 1], [1, 0], [1, 0])):
        order = np.random.default_rng(seed).permutation(len(xy))
        mirror = np.array([1, -1]) if seed == 2 else 1
        found = spatial_graph((xy * mirror)[order][:, turn], section, **how)
        assert (found != expected[order][:, order]).nnz == 0
    middle = np.argmin(np.linalg.norm(xy - xy.mean(0), axis=1))
    assert spatial_graph(xy, section, **how)[middle].nnz <= 2 * (how["n_neighbours"] or 12) + 13


def test_ties_are_taken_whole():
    squares, hexagons = lattice("squares"), lattice("hexagons")
    for xy, sizes in ((squares, {1: 4, 4: 4, 5: 8, 9: 12, 13: 20, 29: 36}), (hexagons, {1: 6, 6: 6, 7: 12, 19: 30})):
        middle = np.argmin(np.linalg.norm(xy - xy.mean(0), axis=1))
        for k, size in sizes.items():
            graph = spatial_graph(xy, np.repeat("a", len(xy)), n_neighbours=k, directed=True)
            assert graph[middle].nnz == size + 1


@pytest.mark.parametrize("how", [{"n_neighbours": 10}, {"n_neighbours": None, "radius": 1.0}, {"delaunay": True}])
def test_tiny_sections_work(how):
    xy = np.array([[0.0, 0], [1, 0], [5, 5]])
    graph = spatial_graph(xy, np.array(["a", "a", "b"]), **how).toarray()
    np.testing.assert_array_equal(graph, [[1, 1, 0], [1, 1, 0], [0, 0, 1]])
    line = spatial_graph(np.array([[0.0, 0], [1, 0], [2, 0]]), np.repeat("a", 3), delaunay=True)
    np.testing.assert_array_equal(line.toarray(), 1)


def test_coordinates_of_whole_numbers_and_single_precision_give_the_same_graph():
    xy, section = make_sections()
    whole = np.round(xy * 1000).astype(np.int64)
    expected = spatial_graph(whole.astype(np.float64), section, n_neighbours=5)
    for kind in (np.int64, np.float32):
        assert (spatial_graph(whole.astype(kind), section.astype(object), n_neighbours=5) != expected).nnz == 0


def test_spots_out_of_reach_are_counted_and_keep_themselves():
    xy = np.array([[0.0, 0], [1, 0], [0, 1], [9, 9], [0, 0], [1, 0]])
    section = np.array(list("aaaabb"))
    with pytest.warns(UserWarning, match="1 of 6 spots have no neighbour within 2 and .* 1 of section 'a'\\."):
        graph = spatial_graph(xy, section, radius=2)
    np.testing.assert_array_equal(graph[3].toarray(), [[0, 0, 0, 1, 0, 0]])
    with pytest.raises(ValueError, match=r"within 0\.5 for most spots of section 'a', found none for 4 of 4.* at 1 in"):
        spatial_graph(xy, section, radius=0.5)


def test_a_radius_that_holds_the_whole_section_is_refused():
    xy = np.random.default_rng(0).random((3000, 2))
    with pytest.raises(ValueError, match="found 2999 on average within 2000 in section 'a'"):
        spatial_graph(xy, np.repeat("a", 3000), n_neighbours=None, radius=2000)
    assert spatial_graph(xy, np.repeat("a", 3000), n_neighbours=6, radius=2000).nnz < 3000 * 13


def test_bad_input_is_refused():
    xy, section = make_sections()
    with pytest.raises(ValueError, match="to define which spots are neighbours, found none"):
        spatial_graph(xy, section, n_neighbours=None)
    with pytest.raises(ValueError, match="`n_neighbours` to be a whole number from 1"):
        spatial_graph(xy, section, n_neighbours=0)
    with pytest.raises(ValueError, match="`radius` to be a number above 0"):
        spatial_graph(xy, section, radius=0.0)
    with pytest.raises(ValueError, match=r"60 spots × 2 or 3, found an array of shape \(60, 1\)"):
        spatial_graph(xy[:, :1], section)
    with pytest.raises(ValueError, match=r"59 spots × 2 or 3, found an array of shape \(60, 2\)"):
        spatial_graph(xy, section[1:])
    line = np.c_[np.arange(20.0), np.zeros(20)]
    with pytest.raises(ValueError, match="section 'a' that span 2 dimensions, found 20 on a line"):
        spatial_graph(line, np.repeat("a", 20), delaunay=True)
    xy[[0, 7]] = np.nan
    with pytest.raises(ValueError, match="found 2 of 60 spots without"):
        spatial_graph(xy, section)


def test_memory_grows_with_the_number_of_spots():
    peaks = []
    for n in (5000, 20000):
        xy = np.random.default_rng(0).random((n, 2))
        tracemalloc.start()
        spatial_graph(xy, np.repeat("a", n), n_neighbours=10)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 5 * peaks[0]


def test_rows_of_sections_cover_all_once():
    section = np.array(["b", "a", "b", "c"], dtype=object)
    assert {name: rows.tolist() for name, rows in rows_by_name(section)} == {"a": [1], "b": [0, 2], "c": [3]}


def test_a_hop_gathers_from_the_spots_that_list_a_spot():
    generator = np.random.default_rng(0)
    W = generator.random((12, 12)) * (generator.random((12, 12)) < 0.3)
    np.fill_diagonal(W, [0, 0, 2.5, *np.ones(9)])
    x = generator.normal(size=(12, 3))
    with_loops = W + np.diag(np.diag(W) == 0)
    degree = with_loops.sum(1)
    expected = np.zeros_like(x)
    for listing in range(12):
        for listed in range(12):
            weight = with_loops[listing, listed] / np.sqrt(degree[listing] * degree[listed])
            expected[listed] += weight * x[listing]
    propagation = original_propagation(sparse.coo_matrix(W))
    assert (type(propagation), propagation.dtype) == (sparse.csr_matrix, np.float32)
    np.testing.assert_allclose(propagation @ x, expected, rtol=1e-5)


def test_a_spot_that_nobody_lists_hears_itself_only():
    xy = np.array([[0.0, 0], [1, 0], [2.5, 0]])
    graph = spatial_graph(xy, np.repeat("a", 3), n_neighbours=1, directed=True)
    propagation = original_propagation(graph).toarray()
    np.testing.assert_allclose(propagation[2], [0, 0, 0.5])  # lists spot 1, which lists spot 0
    np.testing.assert_allclose(propagation[1], [0.5, 0.5, 0.5])
    np.testing.assert_array_equal(original_propagation(sparse.csr_matrix((2, 2))).toarray(), np.eye(2))
    with pytest.raises(ValueError, match=r"not negative in the spatial graph, found -1"):
        original_propagation(sparse.csr_matrix([[1.0, -1.0], [0, 1]]))


def test_pairs_join_sections_both_ways_and_each_once():
    spatial = spatial_graph(np.array([[0.0, 0], [1, 0], [0, 0], [1, 0]]), np.array(list("aabb")))
    pairs = np.array([[0, 2], [2, 0], [0, 2], [1, 2]])
    expected = np.kron(np.eye(2), np.ones((2, 2)))
    for i, j in ((0, 2), (1, 2)):
        expected[i, j] = expected[j, i] = 0.3
    merged = merged_graph(spatial, pairs, 0.3)
    assert merged.dtype == np.float32
    np.testing.assert_allclose(merged.toarray(), expected, rtol=1e-6)
    for none in (merged_graph(spatial, pairs, 0), merged_graph(spatial, np.empty((0, 2), int))):
        assert (none != spatial).nnz == 0
    for wrong in ([[1, 1]], [[0, 4]], [[-1, 0]]):
        with pytest.raises(ValueError, match="different rows from 0 to 3, found 1 others"):
            merged_graph(spatial, np.array(wrong))
    with pytest.raises(ValueError, match="`weight` to be a number from 0"):
        merged_graph(spatial, pairs, -1)


@pytest.mark.parametrize(
    "setting", [{"n_neighbours": 5}, {"delaunay": True}, {"delaunay": True, "n_neighbours": 3}], ids=str
)
def test_the_order_of_spots_on_a_lattice_does_not_change_who_neighbours_whom(setting):
    xy = np.array([(i, j) for i in range(8) for j in range(8)], float)
    order = np.random.default_rng(0).permutation(len(xy))
    section = np.repeat("a", len(xy))
    graph = spatial_graph(xy, section, directed=True, **setting)
    found = spatial_graph(xy[order], section, directed=True, **setting)
    assert (found != graph[order][:, order]).nnz == 0
