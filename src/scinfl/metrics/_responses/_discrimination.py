"""Whether a prediction is that of its own perturbation: ranks among the others, and the genes found to respond."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from scinfl.metrics._responses._differential import welch_scores
from scinfl.metrics._responses._scores import pearson

_FALSE_DISCOVERIES = 0.05


def discrimination(predicted: np.ndarray, measured: np.ndarray, own: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Share of the other perturbations whose measured change is farther from the prediction; ties count half.

    Parameters
    ----------
    predicted, measured
        Changes, perturbations × genes.
    own
        Positions of the perturbed genes of each perturbation, which are left out of its distances.
    """
    n = len(predicted)
    scores = {metric: np.full(n, np.nan) for metric in ("l1", "l2", "cosine")}
    norms = np.linalg.norm(measured, axis=1)
    for number in range(n if n > 1 else 0):
        kept = np.ones(predicted.shape[1], bool)
        kept[own[number]] = False
        guess, others = predicted[number, kept], measured[:, kept]
        difference = others - guess
        size = np.linalg.norm(guess) * (norms if kept.all() else np.linalg.norm(others, axis=1))
        distances = {
            "l1": np.abs(difference).sum(1),
            "l2": np.square(difference).sum(1),
            # a change of zero points nowhere: as far from all
            "cosine": 1 - np.divide(others @ guess, size, out=np.zeros(n), where=size > 0),
        }
        for metric, distance in distances.items():
            others_at = np.delete(distance, number)
            closer, level = others_at < distance[number], others_at == distance[number]
            scores[metric][number] = 1 - (closer.sum() + level.sum() / 2) / (n - 1)
    return {f"discrimination_{metric}": values for metric, values in scores.items()}


def tested_genes(
    mean: np.ndarray, variance: np.ndarray, n: np.ndarray, control: tuple[np.ndarray, np.ndarray, int]
) -> np.ndarray:
    """Genes (perturbations × genes) that differ from the control: Welch's t test at a false discovery rate of 5 %."""
    here, spread, n_control = control
    few, few_here = np.maximum(n, 2)[:, None], max(n_control, 2)
    t = welch_scores(mean, variance, few[:, 0], here, spread, few_here)
    own, other = variance / few, spread / few_here
    # degrees of freedom of Welch and Satterthwaite; where nothing varies t is 0 and any number will do
    parts = own**2 / (few - 1) + other**2 / (few_here - 1)
    freedom = np.divide((own + other) ** 2, parts, out=np.ones_like(mean), where=parts > 0)
    p = 2 * stats.t.sf(np.abs(t), freedom)
    return stats.false_discovery_control(p, axis=1) <= _FALSE_DISCOVERIES


def tested_scores(predicted: np.ndarray, measured: np.ndarray, tested: np.ndarray) -> dict[str, np.ndarray]:
    """Overlap and direction of the genes that respond by a test; NaN where none does."""
    n_tested = tested.sum(1)
    place = np.argsort(np.argsort(-np.abs(predicted), axis=1, kind="stable"), axis=1, kind="stable")
    called = (place < n_tested[:, None]) & (predicted != 0)
    right = tested & (np.sign(predicted) == np.sign(measured))
    number = np.where(n_tested > 0, n_tested, np.nan)
    return {"de_overlap": (called & tested).sum(1) / number, "de_direction": right.sum(1) / number}


def against_perturbed(predicted: np.ndarray, measured: np.ndarray, perturbed_mean: np.ndarray) -> dict[str, np.ndarray]:
    """Correlation of the changes against the mean of perturbed cells."""
    return {"pearson_delta_perturbed": pearson(predicted - perturbed_mean, measured - perturbed_mean)}
