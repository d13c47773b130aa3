"""Rows of findings for what was reconstructed and who was in the training data, beside baselines without any attack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from scinfl._audit._findings import GUESS, finding
from scinfl.privacy import attacks

Found = Sequence[tuple[np.ndarray, np.ndarray]]
"""True and reconstructed rows of each trial."""
_CANDIDATES = 500  # public rows that a reconstruction may be taken for


def rated(
    family: str,
    adversary: str,
    attack: str,
    found: Found,
    public: np.ndarray,
    *,
    what: str,
    metrics: Sequence[str] = ("pearson", "reidentified"),
    uploads: str = "",
    setting: str = "",
    candidates: np.ndarray | None = None,
    nearest: bool = False,
    chance: bool = True,
    rng: int = 0,
) -> list[dict[str, Any]]:
    """One row per score, against the strongest of some baselines."""
    candidates = public[:_CANDIDATES] if candidates is None else candidates
    tables: dict[str, list[pd.DataFrame]] = {}
    for trial, (true, guess) in enumerate(found):
        drawn = np.random.default_rng([rng, 7, trial]).choice(len(public), len(true))
        guesses = {
            "attack": guess,
            f"mean public {what}": attacks.mean_cell(true, public),
            f"random public {what}": public[drawn],
        }
        if nearest:
            guesses[f"nearest public {what}"] = attacks.nearest_cell(true, public)
        for name, one in guesses.items():
            tables.setdefault(name, []).append(attacks.reconstruction_scores(true, one, candidates))
    rows = []
    for metric in metrics:
        values = np.concatenate([table[metric].to_numpy() for table in tables["attack"]])
        if np.isnan(values).any():
            continue
        means = {
            name: float(np.mean([table[metric].mean() for table in own]))
            for name, own in tables.items()
            if name != "attack" and not (metric == "reidentified" and name.startswith("nearest"))  # it is a candidate
        }
        if metric == "reidentified" and chance:
            share = [np.any(guess != 0, axis=1).sum() / (len(true) + len(candidates)) for true, guess in found]
            means["chance"] = float(np.mean(share))  # each reconstructed row is most like any of the rows there are
        strongest = max(means, key=lambda name: means[name])
        rows.append(
            finding(
                family,
                adversary,
                attack,
                SCORES[metric],
                values,
                means[strongest],
                baseline_name=strongest,
                uploads=uploads,
                setting=setting,
            )
        )
    return rows


def rated_membership(
    score: np.ndarray, member: np.ndarray, adversary: str, attack: str, rng: int, setting: str, uploads: str = ""
) -> list[dict[str, Any]]:
    """One row per score of how well members are separated from others."""
    rows = []
    for metric, row in attacks.membership_scores(score, member, rng=rng).iterrows():
        rows.append(
            finding(
                "membership",
                adversary,
                attack,
                _MEMBERSHIP[str(metric)],
                float(row["value"]),
                float(row["baseline"]),
                baseline_name=GUESS,
                uploads=uploads,
                setting=setting,
                interval=(float(row["low"]), float(row["high"])),
                margin={"auc": 0.02, "advantage": 0.04}.get(str(metric), float(row["baseline"])),
            )
        )
    return rows


SCORES = {
    "pearson": "Pearson",
    "top_features": "top features found",
    "nonzero": "zeros right",
    "reidentified": "re-identified",
}
_MEMBERSHIP = {
    "auc": "AUC",
    "advantage": "advantage",
    "tpr_at_1%": "TPR at 1% FPR",
    "tpr_at_0.1%": "TPR at 0.1% FPR",
}
