"""Rows of findings for what was reconstructed, beside what looks alike without any attack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from scinfl._audit._findings import finding
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
    rng: int = 0,
) -> list[dict[str, Any]]:
    """One row a score, against the strongest of some baselines.

    Parameters
    ----------
    family, adversary, attack, uploads, setting
        Of the findings.
    found
        True and reconstructed rows.
    public
        Rows of the attacker.
    what
        One of these rows in words, for the names of the baselines.
    metrics
        Scores of :func:`scinfl.privacy.attacks.reconstruction_scores`.
    candidates
        Rows that a reconstruction may be taken for, without the true ones; the first 500 public ones by default. Noise
        is taken for the right one as often as chance has it.
    nearest
        Count the public row that is most like the true one as a baseline, too: more than an attacker could choose.
    rng
        Seed of the random public rows.
    """
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
        if metric == "reidentified":
            told = [np.any(guess != 0, axis=1).sum() / (len(true) + len(candidates)) for true, guess in found]
            means["chance"] = float(np.mean(told))  # each row that was told is most like any of the rows there are
        strongest = max(means, key=lambda name: means[name])
        rows.append(
            finding(
                family,
                adversary,
                attack,
                _NAMES[metric],
                values,
                means[strongest],
                baseline_name=strongest,
                uploads=uploads,
                setting=setting,
            )
        )
    return rows


_NAMES = {
    "pearson": "Pearson",
    "top_features": "top features found",
    "nonzero": "zeros right",
    "reidentified": "re-identified",
}
