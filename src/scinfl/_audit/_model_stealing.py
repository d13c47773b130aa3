"""What a model-stealing attacker gains from any keyed network, for scores of any kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from scinfl._audit._findings import STEALING, finding
from scinfl.privacy import attacks

FAMILY = "use of the model"
WITH_SAMPLES: Mapping[str, Callable[..., float]] = {
    "fine-tuning": attacks.fine_tune,
    "free scales": attacks.fit_scales,
    "surrogate key": attacks.fit_key,
}
"""Attacks with samples, by name."""
Draw = Callable[[int], tuple[Tensor, Tensor, attacks.Score]]
"""Samples of an attacker with a seed, what is known of them, and how a network is judged."""


def as_it_is(
    network: nn.Module,
    score: attacks.Score,
    metric: str,
    baselines: Mapping[str, Sequence[float]],
    *,
    n_keys: int,
    is_keyed: bool,
    setting: str = "",
) -> list[dict[str, Any]]:
    """Use a network as it is: with wrong keys, and without its modules.

    The mean of wrong keys is compared with the mean of the best baseline, the best key, which is a lucky one, with the
    best of several untrained networks, and single networks with a margin for how much these differ.
    """
    values = {name: np.atleast_1d(scores) for name, scores in baselines.items()}
    mean, best = ({name: float(rate(own)) for name, own in values.items()} for rate in (np.mean, np.max))
    margin = max(2 * float(max(own.std() for own in values.values())), 0.1)
    row = partial(finding, FAMILY, STEALING, metric=metric, setting=setting)
    if not is_keyed:
        return [row(attack="the model as it is", score=score(network), margin=margin, **_strongest(mean))]
    wrong = attacks.wrong_keys(network, score, n_keys=n_keys)
    row = partial(row, setting=f"{setting}, {n_keys} keys" if setting else f"{n_keys} keys")
    interval = (float(wrong.min()), float(wrong.max()))
    removed = attacks.removed_modules(network, score)
    typical = row(attack="wrong keys, mean", score=float(wrong.mean()), **_strongest(mean))
    return [
        {**typical, "low": interval[0], "high": interval[1]},
        row(attack="wrong keys, best", score=interval[1], margin=0.1, **_strongest(best)),
        row(attack="modules removed", score=removed, setting=setting, margin=margin, **_strongest(mean)),
    ]


def _strongest(baselines: Mapping[str, float]) -> dict[str, Any]:
    """The highest of some baselines with its name, as arguments of a finding."""
    name = max(baselines, key=lambda one: baselines[one])
    return {"baseline": baselines[name], "baseline_name": name}


def with_samples(
    network: nn.Module,
    draw: Draw,
    metric: str,
    setting: str,
    *,
    n_seeds: int,
    rng: int,
    by_name: Mapping[str, Callable[..., float]] = WITH_SAMPLES,
    **options: Any,
) -> list[dict[str, Any]]:
    """Attack with samples of several attackers, each attack against training from scratch on the same ones."""
    scratch: list[float] = []
    found: dict[str, list[float]] = {name: [] for name in by_name}
    for seed in range(rng, rng + n_seeds):
        x, y, score = draw(seed)
        scratch.append(attacks.train_from_scratch(network, x, y, score, rng=seed, **options))
        for name, attack in by_name.items():
            found[name].append(attack(network, x, y, score, rng=seed, **options))
    return [
        finding(
            FAMILY,
            STEALING,
            name,
            metric,
            float(np.mean(scores)),
            float(np.mean(scratch)),
            baseline_name="from scratch",
            setting=setting,
            interval=(min(scores), max(scores)) if n_seeds > 1 else None,
        )
        for name, scores in found.items()
    ]
