"""Scores that need the values of single cells, in a few genes of each perturbation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from scipy.spatial.distance import cdist

_MAX_CELLS = 500
_RANGES = {"": (0.0, 1.0), "_45_55": (0.45, 0.55), "_40_60": (0.4, 0.6), "_25_75": (0.25, 0.75)}


class Prediction(NamedTuple):
    """Predicted mean expression of one perturbation, its control, and predicted or control cells if there are any."""

    mean: np.ndarray
    control: np.ndarray
    cells: Any = None
    control_cells: Any = None


def cell_scores(
    values: Any, genes: Mapping[str, np.ndarray], predicted: Prediction, control: np.ndarray, rng: np.random.Generator
) -> dict[str, float]:
    """Scores of one perturbation."""
    scores: dict[str, float] = {}
    for suffix, chosen in genes.items():
        kept = chosen[chosen >= 0]
        cells = columns(values, kept)
        scores |= {f"{name}{suffix}": score for name, score in _spread(cells, predicted.mean[kept]).items()}
        if suffix == "":
            moved = predicted.mean[kept] - predicted.control[kept]
            scores["hit_rate"] = hit_rate(cells - control[kept], moved)
            if predicted.cells is not None:
                scores["energy_distance"] = energy_distance(columns(predicted.cells, kept), cells, rng)
            elif predicted.control_cells is not None:
                scores["energy_distance"] = energy_distance(columns(predicted.control_cells, kept) + moved, cells, rng)
    return scores


def columns(values: Any, genes: np.ndarray) -> np.ndarray:
    """Some genes of a dense or sparse matrix, dense and in double precision."""
    chosen = values[:, genes]
    return np.asarray(chosen.toarray() if sparse.issparse(chosen) else chosen, np.float64)


def hit_rate(changes: np.ndarray, predicted: np.ndarray) -> float:
    """Share of the genes whose predicted change lies between the whiskers of the cells' box plot.

    The whiskers end at the outermost cell within 1.5 × interquartile range of the box, as they are drawn.
    """
    if changes.size == 0:
        return np.nan
    low, high = np.quantile(changes, [0.25, 0.75], axis=0)
    reach = 1.5 * (high - low)
    inside = (changes >= low - reach) & (changes <= high + reach)
    # a quartile between two cells can lie beyond every cell inside; the whisker then has no length
    bottom = np.minimum(np.where(inside, changes, np.inf).min(0), low)
    top = np.maximum(np.where(inside, changes, -np.inf).max(0), high)
    slack = 1e-6 * np.maximum(1, np.abs(predicted))
    return float(((predicted >= bottom - slack) & (predicted <= top + slack)).mean())


def energy_distance(first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> float:
    """2 E|x − y| − E|x − x'| − E|y − y'| over cells (Székely & Rizzo 2013).

    A cell is paired with itself too, so that the value is never negative. At most 500 cells per side are drawn.
    """
    if first.size == 0 or second.size == 0:
        return np.nan
    first, second = (
        side if len(side) <= _MAX_CELLS else side[rng.choice(len(side), _MAX_CELLS, replace=False)]
        for side in (first, second)
    )
    return float(2 * cdist(first, second).mean() - cdist(first, first).mean() - cdist(second, second).mean())


def _spread(cells: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Where the predicted mean falls in the distribution of the cells."""
    names = [f"frac_in_range{name}" for name in _RANGES]
    if cells.size == 0:
        return dict.fromkeys([*names, "mean_sigma", "std_sigma", "frac_sigma_below_1", "frac_sigma_below_2"], np.nan)
    bounds = np.quantile(cells, np.array(list(_RANGES.values())).ravel(), axis=0).reshape(len(_RANGES), 2, -1)
    inside = (predicted >= bounds[:, 0]) & (predicted <= bounds[:, 1])
    gap, deviation = np.abs(predicted - cells.mean(0)), cells.std(0)
    sigmas = gap[deviation > 0] / deviation[deviation > 0]
    return {
        **dict(zip(names, inside.mean(1).tolist(), strict=True)),
        "mean_sigma": float(sigmas.mean()) if len(sigmas) else np.nan,
        "std_sigma": float(sigmas.std()) if len(sigmas) else np.nan,
        "frac_sigma_below_1": float((gap <= deviation).mean()),
        "frac_sigma_below_2": float((gap <= 2 * deviation).mean()),
    }
