"""What a thief gets out of a trained model without its key."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from scinfl._audit._findings import finding
from scinfl._audit.classifier._sender import sender_of
from scinfl._audit.classifier._target import Target
from scinfl.model.base._rekey import rekeyed
from scinfl.nn import CoordinateLinear, PooledLinear, keyed_layers
from scinfl.privacy import Key, attacks

_FAMILY = "use of the model"
_METRIC = "balanced accuracy"
MOST_FEATURES = 300  # whose order is learned or matched, which takes the square or the cube of them


def use(target: Target, *, n_keys: int) -> list[dict[str, Any]]:
    """Use the model as it is: with wrong keys, and without its modules."""
    chance = 1 / len(target.model.labels)
    if not target.is_keyed:
        accuracy = target.score(target.network)
        return [finding(_FAMILY, "thief", "the model as it is", _METRIC, accuracy, chance, baseline_name="chance")]
    wrong = attacks.wrong_keys(target.network, target.score, n_keys=n_keys)
    removed = attacks.removed_modules(target.network, target.score)
    setting = f"{n_keys} keys"
    spread = (float(wrong.min()), float(wrong.max()))
    noise = 2 * np.sqrt(chance * (1 - chance) / len(target.test))  # on few cells, the best of many keys is high by luck
    row = partial(finding, _FAMILY, "thief", baseline=chance, baseline_name="chance")
    return [
        row("wrong keys, mean", _METRIC, float(wrong.mean()), setting=setting, interval=spread, margin=0.05),
        row("wrong keys, best", _METRIC, float(wrong.max()), setting=setting, margin=0.1 + noise),
        row("modules removed", _METRIC, removed, margin=0.1 + noise),
    ]


def steal(target: Target, n_samples: int, *, n_seeds: int, n_steps: int) -> list[dict[str, Any]]:
    """Attack with labelled samples, each thief against training from scratch on the same ones."""
    if not target.is_keyed:
        return []
    network, n = target.network, min(n_samples, len(target.public))
    thieves = _thieves(target)
    scratch: list[float] = []
    found: dict[str, list[float]] = {name: [] for name in thieves}
    for seed in range(target.rng, target.rng + n_seeds):
        chosen = torch.from_numpy(np.random.default_rng(seed).permutation(len(target.public))[:n])
        x, y = target.public.x[chosen], target.public.y[chosen]
        scratch.append(attacks.train_from_scratch(network, x, y, target.score, n_steps=n_steps, rng=seed))
        for name, thief in thieves.items():
            found[name].append(thief(network, x, y, target.score, n_steps=n_steps, rng=seed))
    rows = []
    for name, scores in found.items():
        interval = (min(scores), max(scores)) if n_seeds > 1 else None
        rows.append(
            finding(
                _FAMILY,
                "thief",
                name,
                _METRIC,
                float(np.mean(scores)),
                float(np.mean(scratch)),
                baseline_name="from scratch",
                setting=f"{n} labelled samples",
                interval=interval,
            )
        )
    return rows


def _thieves(target: Target) -> dict[str, Callable[..., float]]:
    versions = _versions(target)
    thieves: dict[str, Callable[..., float]] = {
        "fine-tuning": attacks.fine_tune,
        "free scales": attacks.fit_scales,
        "surrogate key": attacks.fit_key,
        "distillation": partial(attacks.distil, public=target.public.x),
    }
    if target.train.x.shape[1] <= MOST_FEATURES:
        thieves["soft permutation"] = _half_the_steps(attacks.fit_permutation)
        thieves["matching a surrogate"] = attacks.match_surrogate
    if versions:
        thieves["mean of versions"] = lambda network, *args, **options: attacks.average_versions(
            [network, *versions], *args, **options
        )
    return thieves


def _half_the_steps(thief: Callable[..., float]) -> Callable[..., float]:
    """Soft permutations cost more a step, and move more."""
    return lambda *args, n_steps, **options: thief(*args, n_steps=max(n_steps // 2, 1), **options)


def _versions(target: Target, n: int = 4) -> list[nn.Module]:
    """The same model locked with further keys, as rotations would leave it behind."""
    if not target.hides_updates or not all(
        isinstance(layer, CoordinateLinear) for layer in keyed_layers(target.network).values()
    ):
        return []
    versions = []
    for _ in range(n - 1):
        other = copy.deepcopy(target.network)
        assert target.key is not None  # noqa: S101
        other.load_state_dict(rekeyed(target.network, target.network.state_dict(), target.key, Key.generate()))
        versions.append(other)
    return versions


def extract(target: Target) -> list[dict[str, Any]]:
    """Read the pooled vector of the second published form off one update, and predict with it."""
    layers = [layer for layer in keyed_layers(target.network).values() if isinstance(layer, PooledLinear)]
    if not layers:
        return []
    batch = target.train.take(np.arange(min(16, len(target.train))))
    vector = attacks.extract_pooled_key(sender_of(target, fresh=False).step(batch).travelling)
    with torch.no_grad():
        points = layers[0]._secret()["points"].to(layers[0].weight)
        true = layers[0].meta["encoder"](points).mean(0).numpy()
    likeness = float(vector @ true / max(np.linalg.norm(vector) * np.linalg.norm(true), 1e-12))
    right, wrong = target.score(target.network), attacks.wrong_keys(target.network, target.score, n_keys=5).mean()
    accuracy = target.score(attacks.use_pooled_key(target.network, vector))
    row = partial(finding, "the key", "server", "rank-one extraction", uploads="in the open", setting="one gradient")
    return [
        row("cosine with the pooled key", likeness, 0.0, baseline_name="chance"),
        row(f"{_METRIC} (right key {right:.2f})", accuracy, float(wrong), baseline_name="wrong keys"),
    ]
