"""One row per finding, and what it means in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

STEALING, CURIOUS = "model-stealing attacker", "honest-but-curious site"
ADVERSARIES = ("outsider", STEALING, "server", "malicious server", "server + one site", CURIOUS)
"""Whom a model is attacked by, from the weakest."""
GUESS = "random guess"
"""Baseline of what has two outcomes."""

_MARGIN = 0.05  # of any score, below which a difference from the baseline is not called a leak
COLUMNS = (
    "family",
    "adversary",
    "uploads",
    "attack",
    "setting",
    "metric",
    "score",
    "low",
    "high",
    "baseline",
    "baseline_name",
    "verdict",
)


def finding(
    family: str,
    adversary: str,
    attack: str,
    metric: str,
    score: float | Sequence[float] | np.ndarray,
    baseline: float,
    *,
    baseline_name: str,
    uploads: str = "",
    setting: str = "",
    interval: tuple[float, float] | None = None,
    margin: float = _MARGIN,
) -> dict[str, Any]:
    """One row: several scores become their mean with a 95 % interval."""
    values = np.atleast_1d(np.asarray(score, dtype=np.float64))
    value = float(values.mean())
    if interval is None and len(values) > 1:
        error = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
        interval = (value - error, min(value + error, 1.0))  # no score goes higher
    low, high = interval or (np.nan, np.nan)
    return {
        "family": family,
        "adversary": adversary,
        "uploads": uploads,
        "attack": attack,
        "setting": setting,
        "metric": metric,
        "score": value,
        "low": float(low),
        "high": float(high),
        "baseline": float(baseline),
        "baseline_name": baseline_name,
        "verdict": _verdict(value, low, baseline, margin),
    }


def _verdict(score: float, low: float, baseline: float, margin: float) -> str:
    if np.isnan(score) or np.isnan(baseline):
        return "insufficient data"
    sure = score if np.isnan(low) else low
    if sure > baseline + margin:
        return "leaks"
    return "holds" if score <= baseline + margin else "unclear"


def verdicts(table: pd.DataFrame) -> dict[str, str]:
    """What every adversary learns, in a sentence or two, the worst finding of each family first."""
    return {adversary: _words(table[table["adversary"] == adversary]) for adversary in ADVERSARIES}


def _words(own: pd.DataFrame) -> str:
    if own.empty:
        return "Not tested."
    parts = []
    for uploads, group in own.groupby("uploads", sort=True):
        leaks, unclear, holds = [], [], []
        for family, rows in group.groupby("family", sort=False):
            leaking = rows[rows["verdict"] == "leaks"]
            if len(leaking):
                worst = leaking.loc[(leaking["score"] - leaking["baseline"]).idxmax()]
                leaks.append(f"{family} ({_described(worst)})")
            elif (rows["verdict"] == "unclear").any():
                unclear.append(str(family))
            elif (rows["verdict"] == "holds").any():
                holds.append(str(family))
        words = [f"leaks {', '.join(leaks)}"] if leaks else []
        words += [f"unclear for {', '.join(unclear)}"] if unclear else []
        words += [f"nothing beyond the baseline for {', '.join(holds)}"] if holds else []
        if words:
            sentence = f"{'; '.join(words)}."
            parts.append(f"{_capital(uploads)}: {sentence}" if uploads else _capital(sentence))
    if ((own["family"] == "the key") & (own["verdict"] == "leaks")).any():
        parts.append("Anyone who learns the key learns what a server learns together with one site.")
    return " ".join(parts) or "Not tested."


def _described(row: pd.Series) -> str:
    setting = f", {row['setting']}" if row["setting"] else ""
    return f"{row['attack']}{setting}: {row['metric']} {row['score']:.2f}, {row['baseline_name']} {row['baseline']:.2f}"


def _capital(words: Any) -> str:
    words = str(words)
    return words[:1].upper() + words[1:]
