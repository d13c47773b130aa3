"""Scores of integration, against naive versions."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cdist
from sklearn.metrics import f1_score, silhouette_score

from scinfl.metrics import integration
from scinfl.metrics._embedding._label_structure import graph_connectivity, label_transfer
from scinfl.metrics._embedding._mixing import ilisi, kernel, knn_mixing, nearest
from scinfl.metrics._embedding._silhouettes import asw_batch, asw_label
from scinfl.metrics._embedding._spatial_scores import chaos, morans_i, pas, spatial_neighbours


@pytest.fixture
def spots():
    """Two sections of 60 spots with three domains as stripes, and an embedding that follows them."""
    generator = np.random.default_rng(3)
    section = np.repeat([0, 1], 60)
    xy = generator.random((120, 2)) * [30, 10]
    domain = (xy[:, 0] // 10).astype(int)
    embedding = np.eye(3)[domain] @ generator.normal(0, 2, (3, 5)) + generator.normal(size=(120, 5))
    return embedding, section, domain, xy


def values(*arguments, **settings):
    return integration(*arguments, **settings).set_index("metric")["value"]


def others_by_distance(points, i):
    d = cdist(points[i : i + 1], points)[0]
    d[i] = np.inf
    return np.argsort(d), d


def test_neighbours_never_hold_the_cell_itself_even_among_equal_cells():
    indices = nearest(np.zeros((6, 2)), 10)[1]
    assert indices.shape == (6, 5)
    assert not (indices == np.arange(6)[:, None]).any()


def test_weights_have_the_perplexity_asked_for():
    distances = np.sort(np.random.default_rng(0).gamma(2, 7, (40, 30)), axis=1)
    distances[0] *= 1e-6
    distances[1] = 1e4 + np.arange(30)
    weights = kernel(distances, 10)
    np.testing.assert_allclose(weights.sum(1), 1)
    np.testing.assert_allclose(np.exp(-(weights * np.log(weights + 1e-300)).sum(1)), 10, rtol=1e-4)
    np.testing.assert_allclose(kernel(np.ones((2, 9)), 3), 1 / 9)


def test_ilisi_and_mixing_agree_with_a_naive_version(spots):
    X, batch, _, _ = spots
    lisi, shares = [], []
    for i in range(len(X)):
        order, d = others_by_distance(X, i)
        near, low, high = order[:15], 0.0, 1e3
        for _ in range(200):
            beta = (low + high) / 2
            p = np.exp(-beta * (d[near] - d[near[0]]))
            p /= p.sum()
            low, high = (beta, high) if -(p[p > 0] * np.log(p[p > 0])).sum() > np.log(5) else (low, beta)
        lisi.append(1 / sum(p[batch[near] == b].sum() ** 2 for b in (0, 1)))
        shares.append((batch[near] != batch[i]).mean() / (60 / 119))
    distances, neighbours = nearest(X, 15)
    assert ilisi(distances, neighbours, batch) == pytest.approx(np.median(lisi) - 1, abs=1e-4)
    assert knn_mixing(neighbours, batch) == pytest.approx(np.mean(shares))


def test_batches_apart_score_zero_and_a_full_mix_one_whatever_their_sizes():
    generator = np.random.default_rng(0)
    X, batch = generator.normal(size=(3000, 5)), (generator.random(3000) < 0.2).astype(int)
    mixed = values(X, batch=batch)
    assert mixed["mixing"] == pytest.approx(1, abs=0.03)
    assert mixed["asw_batch"] > 0.9
    even = values(X, batch=np.arange(3000) % 3, n_neighbours=90)
    assert even["ilisi"] > 0.8
    apart = values(X + 50 * batch[:, None], batch=batch)
    assert apart[["mixing", "ilisi"]].tolist() == pytest.approx([0, 0])
    assert apart["asw_batch"] < 0.2


def test_silhouettes_agree_with_their_definition(spots):
    X, batch, domain, _ = spots
    assert asw_label(X, domain) == pytest.approx((silhouette_score(X, domain) + 1) / 2)
    by_label = []
    for label in range(3):
        own, b = X[domain == label], batch[domain == label]
        d, s = cdist(own, own), []
        for i in range(len(own)):
            a = d[i, b == b[i]].sum() / ((b == b[i]).sum() - 1)
            other = d[i, b != b[i]].mean()
            s.append((other - a) / max(a, other))
        by_label.append(1 - np.abs(s).mean())
    assert asw_batch(X, batch, domain) == pytest.approx(np.mean(by_label))
    assert np.isnan(asw_batch(X, domain, domain))
    assert np.isnan(asw_label(X, np.zeros(120, dtype=int)))


def test_graph_connectivity_finds_the_largest_piece_of_each_label():
    points = np.array([0, 1, 2, 10, 11, 12, 13, 30, 31.5])[:, None]
    labels = np.array([0, 0, 0, 0, 0, 0, 0, 1, -1])
    neighbours = nearest(points, 2)[1]
    assert graph_connectivity(neighbours, labels) == pytest.approx((4 / 7 + 1) / 2)
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2])
    assert graph_connectivity(neighbours, labels) == 1


def test_label_transfer_is_a_vote_of_the_other_batches(spots):
    X, batch, domain, _ = spots
    scores = []
    for b in (0, 1):
        d = cdist(X[batch == b], X[batch != b])
        votes = domain[batch != b][np.argsort(d, axis=1)[:, :10]]
        guess = [np.bincount(row).argmax() for row in votes]
        scores.append(f1_score(domain[batch == b], guess, average="macro"))
    assert label_transfer(X, domain, batch) == pytest.approx(np.mean(scores))
    assert label_transfer(X, batch, batch) == 0


def test_spatial_scores_agree_with_naive_versions(spots):
    X, section, domain, xy = spots
    clusters = np.where(np.random.default_rng(1).random(120) < 0.2, 0, domain)
    odd, distances, moran = [], [], []
    for s in (0, 1):
        at, own, Y = xy[section == s], clusters[section == s], X[section == s]
        near = np.stack([others_by_distance(at, i)[0][:10] for i in range(60)])
        odd.append(np.mean([(own[near[i]] != own[i]).sum() >= 6 for i in range(60)]))
        scaled = (at - at.mean(0)) / at.std(0)
        distances.append(np.mean([others_by_distance(scaled, i)[1][own == own[i]].min() for i in range(60)]))
        w, z = np.zeros((60, 60)), Y - Y.mean(0)
        np.put_along_axis(w, near, 0.1, axis=1)
        moran.append(np.mean([z[:, j] @ w @ z[:, j] / (z[:, j] @ z[:, j]) for j in range(5)]))
    around = spatial_neighbours(xy, section)
    assert pas(around, clusters) == pytest.approx(np.mean(odd))
    assert chaos(xy, section, clusters) == pytest.approx(np.mean(distances))
    assert morans_i(around, X) == pytest.approx(np.mean(moran))


def test_spatial_scores_never_look_into_another_section(spots):
    X, section, domain, xy = spots
    before = values(X, batch=section, clusters=domain, coordinates=xy)
    moved = values(X, batch=section, clusters=domain, coordinates=xy + 1e4 * section[:, None])
    for score in ("pas", "chaos", "morans_i", "morans_i_clusters"):
        assert before[score] == pytest.approx(moved[score])
    pooled = values(X, batch=section, clusters=domain, coordinates=xy, section=np.zeros(120))
    assert pooled["chaos"] < before["chaos"]


def test_lone_spots_and_constant_columns_have_no_spatial_score():
    xy = np.arange(8.0).reshape(4, 2)
    section = np.array([0, 0, 0, 1])
    around = spatial_neighbours(xy, section)
    assert chaos(xy, section, np.arange(4)) != chaos(xy, section, np.arange(4))
    assert pas(around, np.arange(4)) == 1
    assert np.isnan(morans_i(around, np.full((4, 1), 0.1)))
    assert np.isnan(pas(spatial_neighbours(xy, np.arange(4)), np.zeros(4)))


def test_scores_come_with_what_they_need(spots):
    X, section, domain, xy = spots
    assert list(values(X, batch=section).index) == ["asw_batch", "ilisi", "mixing"]
    assert list(values(X, batch=["one"] * 120, labels=domain).index) == ["asw_label", "graph_connectivity"]
    table = integration(X.astype(np.float32), batch=section, labels=domain, clusters=domain, coordinates=xy)
    assert list(table.columns) == ["metric", "value"]
    assert len(table) == 13
    assert table["value"].notna().all()
    assert (table.set_index("metric")["value"][["ari", "nmi", "homogeneity"]] == 1).all()


def test_cells_without_a_label_only_drop_out_of_scores_of_labels(spots):
    X, section, domain, xy = spots
    labels = pd.Series(domain).map({0: "a", 1: "b", 2: "c"}).astype("category")
    gaps = labels.where(np.arange(120) % 5 > 0)
    some = values(X, batch=section, labels=gaps, clusters=domain, coordinates=xy)
    known = gaps.notna().to_numpy()
    part = values(X[known], batch=section[known], labels=gaps[known], clusters=domain[known])
    for score in ("ari", "asw_label", "asw_batch", "label_transfer"):
        assert some[score] == pytest.approx(part[score])
    everything = values(X, batch=section, labels=labels, clusters=domain, coordinates=xy)
    for score in ("ilisi", "mixing", "pas", "chaos", "morans_i"):
        assert some[score] == everything[score]


def test_silhouettes_of_many_cells_are_taken_on_some_of_them(spots):
    X, section, domain, _ = spots
    some = [values(X, batch=section, labels=domain, n_silhouette=100, rng=rng)["asw_label"] for rng in (0, 0, 1)]
    assert some[0] == some[1] != some[2]
    assert some[0] == pytest.approx(values(X, batch=section, labels=domain)["asw_label"], abs=0.03)


def test_ten_thousand_cells_take_seconds():
    generator = np.random.default_rng(0)
    X, labels = generator.normal(size=(10_000, 16)), generator.integers(6, size=10_000)
    X += 2 * generator.normal(size=(6, 16))[labels]
    started = time.perf_counter()
    table = integration(
        X, batch=np.arange(10_000) % 4, labels=labels, clusters=labels, coordinates=generator.random((10_000, 2))
    )
    assert time.perf_counter() - started < 30
    assert table["value"].notna().all()


def test_two_cells_are_enough():
    table = integration(np.eye(2), batch=["a", "b"], labels=["x", "x"], clusters=[0, 0], coordinates=np.eye(2))
    assert table.set_index("metric").loc["mixing", "value"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embedding": np.full((4, 2), np.nan)}, "finite values in `embedding`, found 4 rows"),
        ({"embedding": np.zeros(4)}, "`embedding` to be a matrix of rows, found the shape"),
        ({"embedding": np.zeros((1, 2))}, "at least 2 cells"),
        ({"batch": ["a"]}, "an entry of `batch` for each of the 4 rows"),
        ({"batch": ["a", None, "b", "b"]}, "`batch` for every row, found 1 of 4 missing"),
        ({"labels": [np.nan] * 4}, "`labels` for every row, found 4 of 4"),
        ({"clusters": ["a", np.nan, "b", "b"]}, "`clusters` for every row"),
        ({"coordinates": np.zeros((3, 2))}, "`coordinates` to be a matrix of 4 rows"),
        ({"coordinates": np.full((4, 2), np.inf)}, "finite values in `coordinates`"),
        ({"n_neighbours": 0}, "n_neighbours"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"embedding": np.eye(4), "batch": ["a", "a", "b", "b"]} | change
    with pytest.raises(ValueError, match=message):
        integration(arguments.pop("embedding"), **arguments)
