"""Scores that need means only: one row per perturbation, one column per gene, NaN for a gene that does not count."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_ROUNDING = 1e-6


class Profiles(NamedTuple):
    """Mean expression and its change against the control; each perturbations × genes."""

    predicted: np.ndarray
    measured: np.ndarray
    predicted_change: np.ndarray
    measured_change: np.ndarray

    def take(self, genes: np.ndarray) -> Profiles:
        """Other genes for every perturbation, ``(perturbations, k)``; -1 gives NaN."""
        return Profiles(*(np.where(genes < 0, np.nan, np.take_along_axis(part, genes, 1)) for part in self))

    def keep(self, mask: np.ndarray) -> Profiles:
        """The genes of the mask; the others become NaN."""
        return Profiles(*(np.where(mask, part, np.nan) for part in self))


def change(values: np.ndarray, control: np.ndarray) -> np.ndarray:
    """Difference from the control; what single precision cannot distinguish is no change."""
    difference = values - control
    difference[np.abs(difference) <= _ROUNDING * np.maximum(np.abs(values), np.abs(control))] = 0
    return difference


def row_mean(values: np.ndarray) -> np.ndarray:
    """Mean of each row over what is not NaN; NaN where nothing is left."""
    known = ~np.isnan(values)
    n = known.sum(1)
    return np.where(known, values, 0).sum(1) / np.where(n > 0, n, np.nan)


def mean_squared_error(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Mean squared difference of each row."""
    return row_mean((predicted - measured) ** 2)


def pearson(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Correlation of each row; NaN where one side is constant."""
    first, first_norm = _centred(first)
    second, second_norm = _centred(second)
    return np.clip(np.nansum(first * second, 1) / (first_norm * second_norm), -1, 1)


def determination(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """R²: 1 − residual / total sum of squares of each row."""
    total = _centred(measured)[1] ** 2
    return 1 - np.nansum((predicted - measured) ** 2, 1) / total


def directions(profiles: Profiles) -> dict[str, np.ndarray]:
    """Share of the genes that change the predicted way, the other way, or on one side only."""
    apart = np.abs(np.sign(profiles.predicted_change) - np.sign(profiles.measured_change))
    unknown = np.isnan(apart)
    return {
        name: row_mean(np.where(unknown, np.nan, apart == steps))
        for name, steps in (("correct", 0), ("zero", 1), ("opposite", 2))
    }


def fold_change_gaps(profiles: Profiles, control: np.ndarray, own_control: np.ndarray) -> dict[str, np.ndarray]:
    """Mean distance of predicted and measured fold change, for genes with a measured mean from 0.5."""
    expressed = (profiles.measured >= 0.5) & (control > 0) & (own_control > 0)
    predicted = np.divide(profiles.predicted, own_control, out=np.zeros_like(expressed, float), where=expressed)
    measured = np.divide(profiles.measured, control, out=np.zeros_like(expressed, float), where=expressed)
    chosen = {
        "all": expressed,
        "downreg_0.33": expressed & (measured < 0.333),
        "downreg_0.1": expressed & (measured < 0.1),
        "upreg_3": expressed & (measured > 3),
        "upreg_10": expressed & (measured > 10),
    }
    gap = np.abs(predicted - measured)
    return {f"fold_change_gap_{name}": row_mean(np.where(mask, gap, np.nan)) for name, mask in chosen.items()}


def mean_scores(
    profiles: Profiles,
    control: np.ndarray,
    own_control: np.ndarray,
    sets: dict[str, np.ndarray],
    non_zero: np.ndarray,
    non_dropout: np.ndarray,
    n_top: int,
) -> dict[str, np.ndarray]:
    """Every score that needs means only; ``sets`` holds ``top{k}_de``, ``top200_hvg``, ``non_zero``, ``non_dropout``.

    ``control`` was measured with the cells, ``own_control`` is what the prediction started from.
    """
    best = profiles.take(sets[f"top{n_top}_de"])
    scores = {
        **_fit("", profiles),
        **_fit("_de", best),
        "r2": determination(profiles.predicted, profiles.measured),
        "r2_de": determination(best.predicted, best.measured),
        "opposite_direction_de": directions(best)["opposite"],
        "frac_correct_direction": directions(profiles)["correct"],
        f"frac_correct_direction_top{n_top}_de_nonzero": directions(best.keep(best.measured != 0))["correct"],
    }
    for name, genes in sets.items():
        if name.endswith(("_de", "_hvg")):
            chosen = profiles.take(genes)
            scores |= _fit(f"_{name}", chosen)
            if name.endswith("_de"):
                scores[f"frac_correct_direction_{name}"] = directions(chosen)["correct"]
    for name, mask in (("non_zero", non_zero), ("non_dropout", non_dropout)):
        chosen = profiles.take(sets[name])
        scores |= _fit(f"_top{n_top}_de_{name}", chosen)
        scores |= {f"frac_{way}_direction_top{n_top}_{name}": share for way, share in directions(chosen).items()}
        everything = directions(profiles.keep(mask))
        scores |= {f"frac_{way}_direction_{name}": share for way, share in everything.items()}
    return scores | fold_change_gaps(profiles, control, own_control)


def _fit(suffix: str, profiles: Profiles) -> dict[str, np.ndarray]:
    return {
        f"mse{suffix}": mean_squared_error(profiles.predicted, profiles.measured),
        f"pearson{suffix}": pearson(profiles.predicted, profiles.measured),
        f"pearson_delta{suffix}": pearson(profiles.predicted_change, profiles.measured_change),
    }


def _centred(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Deviations from the row's mean, and their norm: NaN if the row is constant but for rounding."""
    known = ~np.isnan(values)
    deviations = values - row_mean(values)[:, None]
    norm = np.sqrt(np.nansum(deviations**2, 1))
    size = np.sqrt((np.where(known, values, 0) ** 2).sum(1))
    return deviations, np.where(norm > _ROUNDING * size, norm, np.nan)
