"""Alignment of two modalities, against naive versions."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cdist
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier

from scinfl.metrics._embedding import _modality_alignment
from scinfl.metrics._embedding._modality_alignment import modality_alignment


@pytest.fixture
def spots():
    """Two noisy looks at 80 spots of four labels."""
    generator = np.random.default_rng(0)
    labels = np.arange(80) % 4
    truth = generator.normal(0, 2, (4, 6))[labels] + generator.normal(size=(80, 6))
    return truth + generator.normal(0, 0.7, (80, 6)), truth + generator.normal(0, 0.7, (80, 6)), labels


def table(*arguments, **settings):
    return modality_alignment(*arguments, **settings).set_index("metric")


def values(*arguments, **settings):
    return table(*arguments, **settings)["value"]


def naive_matching(x, y, k, metric):
    between, in_x, in_y = (cdist(*pair, metric) for pair in ((x, y), (x, x), (y, y)))

    def near(distances):
        return [set(np.argsort(row)[:k]) for row in distances]

    x_sets = [{("y", j) for j in a} | {("x", j) for j in b} for a, b in zip(near(between), near(in_x), strict=True)]
    y_sets = [{("y", j) for j in a} | {("x", j) for j in b} for a, b in zip(near(in_y), near(between.T), strict=True)]
    weights = np.array([[len(a & b) / len(a | b) for b in y_sets] for a in x_sets])
    return (weights.diagonal() / weights.sum(1)).mean()


def naive_foscttm(x, y, metric):
    d, total = cdist(x, y, metric), 0.0
    for matrix in (d, d.T):
        for i, row in enumerate(matrix):
            others = np.delete(row, i)
            total += (others < row[i]).sum() + 0.5 * (others == row[i]).sum()
    return total / (2 * len(x) * (len(x) - 1))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_scores_agree_with_their_definitions(spots, metric, k):
    x, y, labels = spots
    found = values(x, y, labels=labels, n_neighbours=k, metric=metric)
    assert found["matching_score"] == pytest.approx(naive_matching(x, y, k, metric))
    assert found["foscttm"] == pytest.approx(naive_foscttm(x, y, metric))
    f1 = []
    for source, target in ((x, y), (y, x)):
        voters = KNeighborsClassifier(10, metric=metric).fit(source, labels)
        f1.append(f1_score(labels, voters.predict(target), average="macro"))
    assert found["label_transfer"] == pytest.approx(np.mean(f1))
    assert found["cosine"] == pytest.approx(1 - np.mean([cdist(x[[i]], y[[i]], "cosine") for i in range(80)]))


def test_pairs_in_a_wrong_order_score_at_the_stated_chance(spots):
    x, y, labels = spots
    generator = np.random.default_rng(1)
    orders = [generator.permutation(80) for _ in range(200)]
    shuffled = pd.concat([values(x, y[order]) for order in orders], axis=1).T.mean()
    chance = table(x, y, labels=labels)["chance"]
    assert chance["matching_score"] == 1 / 80
    assert shuffled["matching_score"] == pytest.approx(chance["matching_score"], rel=0.3)
    assert shuffled["foscttm"] == pytest.approx(chance["foscttm"], abs=0.005)
    assert shuffled["cosine"] == pytest.approx(chance["cosine"], abs=0.01)
    random = generator.normal(size=(2, 4000, 6))
    unrelated = table(*random, labels=np.arange(4000) % 4).loc["label_transfer"]
    assert unrelated["value"] == pytest.approx(unrelated["chance"], abs=0.03)


def test_a_perfect_embedding_is_perfect_and_unit_length_is_all_that_cosines_see(spots):
    x, _, labels = spots
    perfect = values(x, x * np.arange(1, 81)[:, None], labels=labels)
    assert perfect[["matching_score", "foscttm", "cosine"]].tolist() == pytest.approx([1, 0, 1])
    assert perfect["label_transfer"] > 0.9
    assert values(x, x * np.arange(1, 81)[:, None], metric="euclidean")["foscttm"] > 0.1


def test_ties_count_half():
    same = np.ones((30, 3))
    assert values(same, same)["foscttm"] == 0.5
    x = np.repeat(np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32), 2, axis=0)
    found = values(x, 3 * x)
    assert found["foscttm"] == pytest.approx(0.5 / 23)
    assert values(x, x, metric="euclidean")["foscttm"] == pytest.approx(0.5 / 23)


def test_blocks_change_nothing_and_bound_the_memory(spots, monkeypatch):
    x, y, _ = spots
    whole = values(x, y)
    monkeypatch.setattr(_modality_alignment, "_BLOCK", 300)
    pd.testing.assert_series_equal(values(x, y), whole)
    monkeypatch.setattr(_modality_alignment, "_BLOCK", 2**17)
    n = 3000
    x = np.random.default_rng(0).normal(size=(n, 8))
    tracemalloc.start()
    modality_alignment(x, x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * n * n / 4


def test_labels_may_be_missing_and_are_optional(spots):
    x, y, labels = spots
    assert list(values(x, y).index) == ["matching_score", "foscttm", "cosine"]
    names = pd.Series(labels).map(dict(enumerate("abcd"))).where(np.arange(80) > 9)
    known = values(x[10:], y[10:], labels=labels[10:])
    assert values(x, y, labels=names)["label_transfer"] == pytest.approx(known["label_transfer"])
    few = values(x[:5], y[:5], labels=labels[:5])
    assert 0 <= few["label_transfer"] <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.ones((79, 6))}, r"the same spots .* shapes \(80, 6\) and \(79, 6\)"),
        ({"y": np.ones(80)}, r"`y` to be a matrix .* found the shape \(80,\)"),
        ({"y": np.full((80, 6), np.nan)}, "finite values in `y`, found 80 rows"),
        ({"y": np.zeros((80, 6))}, "rows of `y` with a direction, found 80 of zeros"),
        ({"labels": ["a"]}, "for each of the 80 rows, found 1"),
        ({"labels": [None] * 80}, "found 80 of 80 missing"),
        ({"n_neighbours": 0}, "`n_neighbours` to be a whole number from 1"),
        ({"n_neighbours": 81}, "at least 81 spots, found 80"),
        ({"metric": "manhattan"}, "`metric` to be one of"),
    ],
)
def test_bad_input_is_refused(spots, change, message):
    x, y, _ = spots
    with pytest.raises(ValueError, match=message):
        modality_alignment(**{"x": x, "y": y, **change})
    with pytest.raises(ValueError, match="at least 2 spots, found 1"):
        modality_alignment(x[:1], y[:1])
