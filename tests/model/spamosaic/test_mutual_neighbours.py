"""Spots of different sections that are each other's nearest neighbours."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from scinfl.model.spamosaic._mutual_neighbours import (
    adaptive_neighbours,
    mutual_neighbours,
    section_pairs,
    without_outliers,
)


def make_spots(n, m, n_features=5, rng=0):
    generator = np.random.default_rng(rng)
    return generator.normal(size=(n, n_features)), generator.normal(size=(m, n_features)) + 0.2


def naive(x, y, k, k_other, metric):
    distance = cdist(x, y, {"manhattan": "cityblock"}.get(metric, metric))
    listed = [set(np.argsort(row)[:k]) for row in distance]
    listing = [set(np.argsort(column)[:k_other]) for column in distance.T]
    return [[i, j] for i in range(len(x)) for j in range(len(y)) if j in listed[i] and i in listing[j]]


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "manhattan"])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_pairs_list_each_other(metric, kind):
    x, y = make_spots(40, 25)
    pairs = mutual_neighbours(x.astype(kind), y.astype(kind), n_neighbours=4, n_neighbours_other=6, metric=metric)
    assert pairs.dtype == np.int64
    assert pairs.tolist() == naive(x, y, 4, 6, metric)
    same = mutual_neighbours(x, y, n_neighbours=4, metric=metric)
    assert same.tolist() == naive(x, y, 4, 4, metric)
    back = mutual_neighbours(y, x, n_neighbours=4, metric=metric)
    assert sorted(back[:, ::-1].tolist()) == same.tolist()


def test_more_neighbours_than_spots_pair_all_with_all():
    x, y = make_spots(3, 2)
    assert mutual_neighbours(x, y, n_neighbours=10).tolist() == [[i, j] for i in range(3) for j in range(2)]
    assert mutual_neighbours(x[:1], y[:1], n_neighbours=1).tolist() == [[0, 0]]
    assert mutual_neighbours(x[:0], y).shape == (0, 2)


def test_the_cosine_does_not_see_the_length_of_rows():
    x, y = make_spots(30, 30)
    longer = x * np.random.default_rng(1).uniform(0.1, 10, (30, 1))
    np.testing.assert_array_equal(mutual_neighbours(longer, y), mutual_neighbours(x, y))
    assert mutual_neighbours(longer, y, metric="euclidean").tolist() != mutual_neighbours(x, y).tolist()


class ExactDescent:
    """Replaces pynndescent, which compiles for half a minute; returns -1 for one neighbour that it did not find."""

    def __init__(self, points, *, metric, n_neighbors, random_state):
        assert (metric, random_state) == ("euclidean", 7)
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
    exact = mutual_neighbours(x, y, n_neighbours=5, exact_below=45, rng=7).tolist()
    descent = mutual_neighbours(x, y, n_neighbours=5, exact_below=44, rng=7).tolist()
    assert exact == naive(x, y, 5, 5, "cosine")
    distance = cdist(x, y, "cosine")
    not_found = [[0, np.argsort(distance[0])[4]], [np.argsort(distance[:, 0])[4], 0]]
    assert descent == [pair for pair in exact if pair not in not_found]


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["cosine", "manhattan"])
def test_descent_finds_nearly_all_pairs_and_the_same_ones_again(metric):
    generator = np.random.default_rng(0)
    centres, basis = generator.normal(0, 2, (12, 30)), generator.normal(size=(8, 30))
    x, y = (
        (centres[generator.integers(12, size=n)] + generator.normal(size=(n, 8)) @ basis).astype(np.float32)
        for n in (4000, 3000)
    )
    exact = set(map(tuple, mutual_neighbours(x, y, metric=metric)))
    descent = mutual_neighbours(x, y, metric=metric, exact_below=0, rng=1)
    np.testing.assert_array_equal(mutual_neighbours(x, y, metric=metric, exact_below=0, rng=1), descent)
    shared = exact & set(map(tuple, descent))
    assert len(shared) > 0.95 * len(exact)
    assert len(shared) > 0.95 * len(descent)


def test_spots_of_a_larger_section_list_fewer():
    assert adaptive_neighbours(1000, 800, 10) == (10, 10)
    assert adaptive_neighbours(1000, 799, 10) == (7, 10)
    assert adaptive_neighbours(300, 1000, 10) == (10, 3)
    assert adaptive_neighbours(10_000, 10, 5) == (1, 5)
    assert adaptive_neighbours(1000, 900, 10, threshold=0.95) == (9, 10)


def test_pairs_unlike_the_others_in_space_are_dropped():
    generator = np.random.default_rng(0)
    place = generator.random((200, 2))
    fit, odd = np.c_[np.arange(180), np.arange(180)], np.c_[np.arange(180, 200), generator.permutation(20)]
    kept = without_outliers(np.r_[fit, odd], place, place + generator.normal(0, 0.01, place.shape), share=0.1)
    assert len(kept) == 180
    assert len({tuple(pair) for pair in kept} & {tuple(pair) for pair in fit}) >= 170
    for few in (fit[:0], fit[:1]):
        assert without_outliers(few, place, place) is few
    assert 0 < len(without_outliers(fit, place, place)) < 180
    with pytest.raises(ValueError, match="`share` to be a number above 0 to"):
        without_outliers(fit, place, place, share=0.6)


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
    pairs = section_pairs(x, section, site=site, n_neighbours=3)
    assert compared(pairs, section) == {("a", "b"), ("a", "c"), ("b", "c"), ("d", "e")}
    assert (site[pairs[:, 0]] == site[pairs[:, 1]]).all()
    assert len({tuple(pair) for pair in pairs}) == len(pairs)
    expected = []
    for one, other in (("a", "b"), ("a", "c"), ("b", "c"), ("d", "e")):
        i, j = np.flatnonzero(section == one), np.flatnonzero(section == other)
        expected += [[i[m], j[n]] for m, n in naive(x[i], x[j], 3, 3, "cosine")]
    assert pairs.tolist() == expected
    assert len(compared(section_pairs(x, section), section)) == 10


def test_the_spots_of_another_site_change_no_pair():
    x, section, site = make_sections()
    other = x.copy()
    other[site == "t"] = np.random.default_rng(9).normal(size=((site == "t").sum(), 4))
    ours, theirs = (section_pairs(features, section, site=site) for features in (x, other))
    np.testing.assert_array_equal(ours[site[ours[:, 0]] == "s"], theirs[site[theirs[:, 0]] == "s"])


def test_sections_that_are_no_bridge_are_joined_through_bridges():
    x, section, site = make_sections()
    assert compared(section_pairs(x, section, bridge={"b"}), section) == {
        ("a", "b"),
        ("b", "c"),
        ("b", "d"),
        ("b", "e"),
    }
    two = compared(section_pairs(x, section, bridge=["b", "c"]), section)
    assert two == {("a", "b"), ("a", "c"), ("b", "c"), ("b", "d"), ("b", "e"), ("c", "d"), ("c", "e")}
    by_site = compared(section_pairs(x, section, site=site, bridge={"b"}), section)
    assert by_site == {("a", "b"), ("b", "c"), ("d", "e")}  # site t has no bridge
    with pytest.raises(ValueError, match="found 1 that do not occur: z"):
        section_pairs(x, section, bridge={"a", "z"})


def test_rows_that_were_not_measured_are_not_looked_at():
    x, section, site = make_sections()
    measured = section != "b"
    x[~measured] = np.nan
    pairs = section_pairs(x, section, site=site, measured=measured)
    assert compared(pairs, section) == {("a", "c"), ("d", "e")}
    np.testing.assert_array_equal(section_pairs(x, section, site=site, measured=measured, bridge={"b"}), pairs)
    with pytest.raises(ValueError, match="found 12 of 12 spots without"):
        section_pairs(x, section)


def test_settings_reach_each_two_sections():
    x, section, _ = make_sections()
    place = np.random.default_rng(1).random((66, 2))
    every = section_pairs(x, section)
    adaptive = section_pairs(x, section, adaptive=True)
    a, d = np.flatnonzero(section == "a"), np.flatnonzero(section == "d")
    local = mutual_neighbours(x[a], x[d], n_neighbours=5, n_neighbours_other=10)
    of_ad = [pair for pair in adaptive.tolist() if tuple(section[pair]) == ("a", "d")]
    assert of_ad == [[a[i], d[j]] for i, j in local]
    assert len(adaptive) < len(every)
    kept = section_pairs(x, section, coordinates=place, outlier_share=0.1)
    assert 0.8 * len(every) < len(kept) < len(every)
    with pytest.raises(ValueError, match="`coordinates` to drop outliers by, found none"):
        section_pairs(x, section, outlier_share=0.1)
    assert section_pairs(x, np.repeat("a", 66)).shape == (0, 2)


def test_bad_input_is_refused():
    x, y = make_spots(20, 10)
    with pytest.raises(ValueError, match="`metric` to be one of"):
        mutual_neighbours(x, y, metric="chebyshev")
    with pytest.raises(ValueError, match="`n_neighbours` to be a whole number from 1"):
        mutual_neighbours(x, y, n_neighbours=0)
    with pytest.raises(ValueError, match="same features in both sections, found 5 and 4"):
        mutual_neighbours(x, y[:, 1:])
    y[3, 0] = np.inf
    with pytest.raises(ValueError, match="found 1 of 10 spots without"):
        mutual_neighbours(x, y)
    x[[2, 5]] = 0
    with pytest.raises(ValueError, match="found 2 of 20 spots that are 0 throughout"):
        mutual_neighbours(x, y)
