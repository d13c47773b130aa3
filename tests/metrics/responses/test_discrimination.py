"""Ranks among perturbations, genes found by a test, and changes against perturbed cells, against naive formulas."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import false_discovery_control, pearsonr, ttest_ind

from scinfl.metrics import perturbation

GENES = ["A", "B", "C", *[f"g{number}" for number in range(37)]]
NAMES = ["A", "B", "A+B", "C"]
DISTANCES = {"l1": "cityblock", "l2": "euclidean", "cosine": "cosine"}


@pytest.fixture
def screen():
    generator = np.random.default_rng(0)
    effects = generator.normal(0, 1, (5, 40)) * (generator.random((5, 40)) < 0.4)
    effects[4] = 0
    conditions = np.repeat([*NAMES, "ctrl"], 30)
    X = 3 + effects[np.repeat(range(5), 30)] + generator.normal(0, 1, (150, 40))
    start = X[-15:].mean(0)
    guess = pd.DataFrame(start + effects[:4] + generator.normal(0, 1, (4, 40)), NAMES, GENES)
    return guess, X[:-15], conditions[:-15], start


def wide(*arguments, **options):
    return perturbation(*arguments, **options).pivot_table("value", "perturbation", "metric").loc[NAMES]


def test_scores_are_those_of_naive_formulas(screen):
    guess, X, conditions, start = screen
    reference = np.random.default_rng(1).normal(size=40)
    found = wide(guess, X, conditions, control_mean=start, perturbed_mean=reference)
    controls = X[conditions == "ctrl"]
    true = np.stack([X[conditions == name].mean(0) for name in NAMES])
    predicted, measured = guess.to_numpy() - start, true - controls.mean(0)
    for number, name in enumerate(NAMES):
        kept = [place for place, gene in enumerate(GENES) if gene not in name.split("+")]
        for score, metric in DISTANCES.items():
            distance = cdist(predicted[[number]][:, kept], measured[:, kept], metric)[0]
            expected = np.mean(np.delete(distance, number) > distance[number])
            assert found.loc[name, f"discrimination_{score}"] == pytest.approx(expected), (name, score)
        p = ttest_ind(X[conditions == name], controls, equal_var=False).pvalue
        tested = np.flatnonzero(false_discovery_control(p) <= 0.05)
        top = np.argsort(-np.abs(predicted[number]))[: len(tested)]
        assert found.loc[name, "de_overlap"] == pytest.approx(len({*tested} & {*top}) / len(tested))
        right = np.sign(predicted[number, tested]) == np.sign(measured[number, tested])
        assert found.loc[name, "de_direction"] == pytest.approx(right.mean())
        expected = pearsonr(guess.loc[name] - reference, true[number] - reference)[0]
        assert found.loc[name, "pearson_delta_perturbed"] == pytest.approx(expected)


def test_one_prediction_for_all_is_at_chance_and_the_truth_at_one(screen):
    guess, X, conditions, start = screen
    same = pd.DataFrame(np.tile(guess.to_numpy()[:1], (4, 1)), NAMES, GENES)
    of_same = wide(same, X, conditions, control_mean=start)
    controls = X[conditions == "ctrl"].mean(0)
    true = pd.DataFrame([start + X[conditions == name].mean(0) - controls for name in NAMES], NAMES, GENES)
    of_truth = wide(true, X, conditions, control_mean=start)
    of_nothing = wide(guess * 0 + start, X, conditions, control_mean=start)
    for metric in DISTANCES:
        assert of_same[f"discrimination_{metric}"].mean() == pytest.approx(0.5, abs=0.1)
        assert (of_truth[f"discrimination_{metric}"] == 1).all()
    assert (of_nothing["discrimination_cosine"] == 0.5).all()  # ties
    assert (of_truth["de_direction"] == 1).all()
    assert (of_nothing["de_overlap"] == 0).all()
    assert "pearson_delta_perturbed" not in of_truth


def test_what_cannot_be_ranked_or_tested_is_missing():
    generator = np.random.default_rng(0)
    X = np.ones((12, 5))
    X[:, 0] = generator.normal(size=12)
    guess = pd.DataFrame(np.ones((1, 5)), ["A"], list("ABCDE"))
    table = perturbation(guess, X, ["A"] * 6 + ["ctrl"] * 6, control_mean=np.zeros(5))
    values = table.set_index("metric")["value"]
    assert values[["discrimination_l1", "discrimination_l2", "discrimination_cosine"]].isna().all()
    assert values[["de_overlap", "de_direction"]].isna().all()
