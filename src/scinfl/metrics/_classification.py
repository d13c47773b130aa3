"""How well labels were predicted."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

from scinfl._checks import complete_names, first_of, same_order


def classification(
    true: Sequence[str] | np.ndarray | pd.Series,
    predicted: Sequence[str] | np.ndarray | pd.Series | pd.DataFrame,
    *,
    groups: Sequence[str] | np.ndarray | pd.Series | None = None,
    n_bootstrap: int = 200,
    confidence: float = 0.95,
    rng: int = 0,
) -> pd.DataFrame:
    """Accuracy, F1 and AUROC, overall and by class, with bootstrap intervals.

    The overall values of ``f1``, ``recall``, ``precision`` and ``auroc`` are unweighted means over the classes that
    occur in ``true`` (macro averages); ``balanced_accuracy`` is the macro recall. AUROC is one against the rest and
    needs probabilities.

    Parameters
    ----------
    true
        Labels.
    predicted
        Predicted labels, or a data frame of probabilities (rows × labels). A predicted label that is none of the true
        ones (``"unassigned"``) counts as wrong.
    groups
        Patient or donor of each row: the bootstrap draws groups, since rows of one patient are not independent.
    n_bootstrap
        Draws; 0 leaves the intervals out.
    confidence
        Coverage of the intervals (percentiles).
    rng
        Seed of the bootstrap.

    Returns
    -------
    Tidy data frame with the columns ``metric``, ``label`` (``"all"`` or a class), ``value``, ``low``, ``high`` and
    ``n`` (rows).

    Raises
    ------
    ValueError
        If lengths or the order of rows differ, labels or groups are missing, or probabilities lack a class.

    Examples
    --------
    >>> import scinfl as si
    >>> table = si.metrics.classification(["T", "T", "B", "B"], ["T", "B", "B", "B"], n_bootstrap=0)
    >>> float(table.query("metric == 'accuracy'")["value"].iloc[0])
    0.75
    """
    same_order(true, predicted, "true", "predicted")
    truth = complete_names(true, "true")
    if len(truth) == 0:
        msg = "Expected at least one row, found none."
        raise ValueError(msg)
    probabilities = predicted if isinstance(predicted, pd.DataFrame) else None
    labels = np.unique(truth)
    if probabilities is not None:
        columns = probabilities.columns.astype(str).to_numpy()
        if missing := sorted(set(labels) - set(columns)):
            msg = f"Expected a column of probabilities for every true label, found none for {first_of(missing)}."
            raise ValueError(msg)
        scores = probabilities.to_numpy()
        guess = columns[scores.argmax(1)]
        scores = scores[:, [int(np.flatnonzero(columns == label)[0]) for label in labels]]
    else:
        guess, scores = np.asarray(predicted).astype(str), None
    if len(guess) != len(truth):
        msg = f"Expected as many predictions as true labels, found {len(guess)} and {len(truth)}."
        raise ValueError(msg)
    table = _scores(truth, guess, scores, labels, np.ones(len(truth)))
    counts = pd.Series({"all": len(truth), **{label: int((truth == label).sum()) for label in labels}})
    table["n"] = counts[table["label"]].to_numpy()
    table["low"] = table["high"] = np.nan
    if n_bootstrap:
        if groups is not None:
            complete_names(groups, "groups", len(truth))
        codes = np.unique(np.arange(len(truth)) if groups is None else np.asarray(groups), return_inverse=True)[1]
        generator = np.random.default_rng(rng)
        n_groups = codes.max() + 1
        draws = generator.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_bootstrap)
        values = np.stack([_scores(truth, guess, scores, labels, draw[codes])["value"] for draw in draws])
        tail = 100 * (1 - confidence) / 2
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a class that no draw holds has no interval
            table["low"], table["high"] = np.nanpercentile(values, [tail, 100 - tail], axis=0)
    return table[["metric", "label", "value", "low", "high", "n"]]


def _scores(
    truth: np.ndarray, guess: np.ndarray, scores: np.ndarray | None, labels: np.ndarray, weight: np.ndarray
) -> pd.DataFrame:
    precision, recall, f1, support = precision_recall_fscore_support(
        truth, guess, labels=labels, sample_weight=weight, zero_division=0
    )
    present = support > 0
    by_class = {"f1": f1, "precision": precision, "recall": recall}
    if scores is not None:
        by_class["auroc"] = np.array(
            [_auroc(truth == label, scores[:, column], weight) for column, label in enumerate(labels)]
        )
    rows = [("accuracy", "all", float(np.average(truth == guess, weights=weight)))]
    rows.append(("balanced_accuracy", "all", float(recall[present].mean())))
    for metric, computed in by_class.items():
        values = np.where(present, computed, np.nan)
        known = values[~np.isnan(values)]
        rows.append((metric, "all", float(known.mean()) if len(known) else np.nan))
        rows += [(metric, str(label), float(value)) for label, value in zip(labels, values, strict=True)]
    return pd.DataFrame(rows, columns=["metric", "label", "value"])


def _auroc(positive: np.ndarray, score: np.ndarray, weight: np.ndarray) -> float:
    if weight[positive].sum() == 0 or weight[~positive].sum() == 0:
        return np.nan
    return float(roc_auc_score(positive, score, sample_weight=weight))
