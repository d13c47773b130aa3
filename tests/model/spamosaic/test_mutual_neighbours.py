"""Spots of different sections that are each other's nearest neighbours."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from scinfl.model.spamosaic import _mutual_neighbours
from scinfl.model.spamosaic._mutual_neighbours import mutual_neighbours, section_pairs


def make_spots(n, m, n_features=5, rng=0):
    generator = np.random.default_rng(rng)
    return generator.normal(size=(n, n_features)), generator.normal(size=(m, n_features)) + 0.2


def naive(x, y, k):
    distance = cdist(x, y, "cosine")
    listed = [set(np.argsort(row)[:k]) for row in distance]
    listing = [set(np.argsort(column)[:k]) for column in distance.T]
    return [[i, j] for i in range(len(x)) for j in range(len(y)) if j in listed[i] and i in listing[j]]


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_pairs_list_each_other(kind):
    x, y = make_spots(40, 25)
    pairs = mutual_neighbours(x.astype(kind), y.astype(kind), 4)
    assert pairs.dtype == np.int64
    assert pairs.tolist() == naive(x, y, 4)
    back = mutual_neighbours(y, x, 4)
    assert sorted(back[:, ::-1].tolist()) == pairs.tolist()


def test_more_neighbours_than_spots_pair_all_with_all():
    x, y = make_spots(3, 2)
    assert mutual_neighbours(x, y, 10).tolist() == [[i, j] for i in range(3) for j in range(2)]
    assert mutual_neighbours(x[:1], y[:1], 1).tolist() == [[0, 0]]


def test_the_cosine_does_not_see_the_length_of_rows():
    x, y = make_spots(30, 30)
    longer = x * np.random.default_rng(1).uniform(0.1, 10, (30, 1))
    np.testing.assert_array_equal(mutual_neighbours(longer, y), mutual_neighbours(x, y))


class ExactDescent:
    """Replaces pynndescent, which compiles for half a minute; returns -1 for one neighbour that it did not find."""

    def __init__(self, points, *, metric, n_neighbors, random_state):
        assert (metric, random_state) == ("euclidean", 0)
        self.search = NearestNeighbors(n_neighbors=n_neighbors).fit(points)

    def query(self, queries, *, k, epsilon):
        distance, at = self.search.kneighbors(queries, n_neighbors=k)
        at = at.astype(np.int32)
        at[0, -1] = -1
        return at, distance


def test_large_sections_are_searched_by_descent(monkeypatch):
    stand_in = ModuleType("pynndescent")
    stand_in.NNDescent = ExactDescent
    monkeypatch.setitem(sys.modules, "pynndescent", stand_in)
    x, y = make_spots(50, 40)
    monkeypatch.setattr(_mutual_neighbours, "_EXACT_BELOW", 45)
    exact = mutual_neighbours(x, y, 5).tolist()
    monkeypatch.setattr(_mutual_neighbours, "_EXACT_BELOW", 44)
    descent = mutual_neighbours(x, y, 5).tolist()
    assert exact == naive(x, y, 5)
    distance = cdist(x, y, "cosine")
    not_found = [[0, np.argsort(distance[0])[4]], [np.argsort(distance[:, 0])[4], 0]]
    assert descent == [pair for pair in exact if pair not in not_found]


@pytest.mark.slow
def test_descent_finds_nearly_all_pairs_and_the_same_ones_again(monkeypatch):
    generator = np.random.default_rng(0)
    centres, basis = generator.normal(0, 2, (12, 30)), generator.normal(size=(8, 30))
    x, y = (
        (centres[generator.integers(12, size=n)] + generator.normal(size=(n, 8)) @ basis).astype(np.float32)
        for n in (4000, 3000)
    )
    exact = set(map(tuple, mutual_neighbours(x, y)))
    monkeypatch.setattr(_mutual_neighbours, "_EXACT_BELOW", 0)
    descent = mutual_neighbours(x, y)
    np.testing.assert_array_equal(mutual_neighbours(x, y), descent)
    shared = exact & set(map(tuple, descent))
    assert len(shared) > 0.95 * len(exact)
    assert len(shared) > 0.95 * len(descent)


def make_sections(rng=0):
    """Three sections at site s, two at site t, rows mixed."""
    generator = np.random.default_rng(rng)
    section = generator.permutation(np.repeat(["a", "b", "c", "d", "e"], [20, 12, 15, 10, 9]))
    site = np.where(np.isin(section, ["a", "b", "c"]), "s", "t")
    return generator.normal(size=(66, 4)), section, site


def compared(pairs, section):
    return {tuple(pair) for pair in section[pairs]}


def test_only_sections_of_a_site_are_compared_each_two_once():
    x, section, site = make_sections()
    pairs = section_pairs(x, section, site, 3)
    assert compared(pairs, section) == {("a", "b"), ("a", "c"), ("b", "c"), ("d", "e")}
    assert (site[pairs[:, 0]] == site[pairs[:, 1]]).all()
    assert len({tuple(pair) for pair in pairs}) == len(pairs)
    expected = []
    for one, other in (("a", "b"), ("a", "c"), ("b", "c"), ("d", "e")):
        i, j = np.flatnonzero(section == one), np.flatnonzero(section == other)
        expected += [[i[m], j[n]] for m, n in naive(x[i], x[j], 3)]
    assert pairs.tolist() == expected
    one_site = np.repeat("s", len(x))
    assert len(compared(section_pairs(x, section, one_site), section)) == 10
    assert section_pairs(x, np.repeat("a", len(x)), one_site).shape == (0, 2)


def test_the_spots_of_another_site_change_no_pair():
    x, section, site = make_sections()
    other = x.copy()
    other[site == "t"] = np.random.default_rng(9).normal(size=((site == "t").sum(), 4))
    ours, theirs = (section_pairs(features, section, site) for features in (x, other))
    np.testing.assert_array_equal(ours[site[ours[:, 0]] == "s"], theirs[site[theirs[:, 0]] == "s"])


def test_bad_input_is_refused():
    x, y = make_spots(20, 10)
    y[3, 0] = np.inf
    with pytest.raises(ValueError, match="found 1 of 10 spots without"):
        mutual_neighbours(x, y)
    x[[2, 5]] = 0
    with pytest.raises(ValueError, match="found 2 of 20 spots that are 0 throughout"):
        mutual_neighbours(x, y)
