"""Scores against scikit-learn, and their intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, roc_auc_score

from scinfl.metrics import classification


@pytest.fixture
def predictions():
    generator = np.random.default_rng(0)
    true = generator.choice(["a", "b", "c"], 200, p=[0.6, 0.3, 0.1])
    scores = generator.random((200, 3)) + 0.6 * (true[:, None] == np.array(["a", "b", "c"]))
    return true, pd.DataFrame(scores / scores.sum(1, keepdims=True), columns=["a", "b", "c"])


def value(table, metric, label="all", column="value"):
    return table.query("metric == @metric and label == @label")[column].item()


def test_scores_are_those_of_scikit_learn(predictions):
    true, probabilities = predictions
    guess = probabilities.columns[probabilities.to_numpy().argmax(1)].to_numpy()
    table = classification(true, probabilities, n_bootstrap=0)
    assert value(table, "accuracy") == pytest.approx(accuracy_score(true, guess))
    assert value(table, "balanced_accuracy") == pytest.approx(balanced_accuracy_score(true, guess))
    assert value(table, "f1") == pytest.approx(f1_score(true, guess, average="macro"))
    assert value(table, "f1", "b") == pytest.approx(f1_score(true, guess, average=None)[1])
    assert value(table, "auroc", "c") == pytest.approx(roc_auc_score(true == "c", probabilities["c"]))
    scores = roc_auc_score(true, probabilities, multi_class="ovr", average="macro")
    assert value(table, "auroc") == pytest.approx(scores)
    assert table["low"].isna().all()
    assert table.query("label == 'a'")["n"].eq((true == "a").sum()).all()
    labels_only = classification(true, guess, n_bootstrap=0)
    assert "auroc" not in set(labels_only["metric"])
    assert value(labels_only, "f1") == value(table, "f1")


def test_intervals_cover_the_value_and_widen_with_few_patients(predictions):
    true, probabilities = predictions
    rows = classification(true, probabilities)
    patients = classification(true, probabilities, groups=np.arange(200) // 40)
    assert (rows["low"] <= rows["value"]).all()
    assert (rows["value"] <= rows["high"]).all()
    assert value(rows, "accuracy", column="low") < value(rows, "accuracy") < value(rows, "accuracy", column="high")
    repeated = classification(
        np.repeat(true, 5), np.repeat(probabilities.idxmax(axis=1), 5), groups=np.repeat(np.arange(200), 5)
    )
    once = classification(true, probabilities.idxmax(axis=1))
    for column in ("low", "high"):  # copies of a patient add no certainty
        assert value(repeated, "accuracy", column=column) == pytest.approx(value(once, "accuracy", column=column))
    assert len(patients) == len(rows)


def test_classes_that_are_never_predicted_or_unassigned_count_as_wrong():
    table = classification(["a", "a", "b", "b"], ["a", "unassigned", "a", "a"], n_bootstrap=0)
    assert value(table, "accuracy") == 0.25
    assert value(table, "f1", "b") == 0
    assert set(table["label"]) == {"all", "a", "b"}


def test_a_class_that_does_not_occur_is_no_row(predictions):
    true, probabilities = predictions
    table = classification(true[true != "c"], probabilities[true != "c"], n_bootstrap=20)
    assert "c" not in set(table["label"])


@pytest.mark.parametrize(
    ("true", "predicted", "message"),
    [
        (["a", "b"], ["a"], "found 1 and 2"),
        (["a", None], ["a", "a"], "found 1 without"),
        ([], [], "at least one row"),
        (["a", "z"], pd.DataFrame({"a": [0.5, 0.5]}), "none for z"),
    ],
)
def test_bad_input_is_refused(true, predicted, message):
    with pytest.raises(ValueError, match=message):
        classification(true, predicted)
    with pytest.raises(ValueError, match="group"):
        classification(["a", "b"], ["a", "b"], groups=["x"])
