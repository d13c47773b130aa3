"""What a model-stealing attacker gains from a trained classifier without its key."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scinfl._audit._findings import STEALING, finding
from scinfl._audit._model_stealing import FAMILY, WITH_SAMPLES, with_samples
from scinfl._audit.classifier._sender import sender_of
from scinfl._audit.classifier._target import Target
from scinfl.model.base import rekeyed
from scinfl.nn import CoordinateLinear, PooledLinear, keyed_layers, new_model_id
from scinfl.privacy import Key, attacks

_METRIC = "balanced accuracy"
MOST_FEATURES = 300  # whose order is learned or matched, which takes the square or the cube of them


def use(target: Target, *, n_keys: int) -> list[dict[str, Any]]:
    """Use the model as it is: with wrong keys, and without its modules."""
    chance = 1 / len(target.model.labels)
    if not target.is_keyed:
        accuracy = target.score(target.network)
        return [finding(FAMILY, STEALING, "the model as it is", _METRIC, accuracy, chance, baseline_name="chance")]
    wrong = attacks.wrong_keys(target.network, target.score, n_keys=n_keys)
    removed = attacks.removed_modules(target.network, target.score)
    setting = f"{n_keys} keys"
    spread = (float(wrong.min()), float(wrong.max()))
    noise = 2 * np.sqrt(chance * (1 - chance) / len(target.test))  # on few cells, the best of many keys is high by luck
    row = partial(finding, FAMILY, STEALING, baseline=chance, baseline_name="chance")
    return [
        row("wrong keys, mean", _METRIC, float(wrong.mean()), setting=setting, interval=spread, margin=0.05),
        row("wrong keys, best", _METRIC, float(wrong.max()), setting=setting, margin=0.1 + noise),
        row("modules removed", _METRIC, removed, margin=0.1 + noise),
    ]


def steal(target: Target, n_samples: int, *, n_seeds: int, n_steps: int) -> list[dict[str, Any]]:
    """Attack with labelled samples."""
    if not target.is_keyed:
        return []
    n = min(n_samples, len(target.public))

    def draw(seed: int) -> tuple[Tensor, Tensor, attacks.Score]:
        chosen = torch.from_numpy(np.random.default_rng(seed).permutation(len(target.public))[:n])
        return target.public.x[chosen], target.public.y[chosen], target.score

    return with_samples(
        target.network,
        draw,
        _METRIC,
        f"{n} labelled samples",
        n_seeds=n_seeds,
        rng=target.rng,
        by_name=_attacks(target),
        n_steps=n_steps,
    )


def _attacks(target: Target) -> dict[str, Callable[..., float]]:
    versions = _versions(target)
    found = dict(WITH_SAMPLES)
    found["distillation"] = partial(attacks.distil, public=target.public.x)
    if target.train.x.shape[1] <= MOST_FEATURES:
        found["soft permutation"] = _half_the_steps(attacks.fit_permutation)
        found["matching a surrogate"] = attacks.match_surrogate
    if versions:
        found["mean of versions"] = lambda network, *args, **options: attacks.average_versions(
            [network, *versions], *args, **options
        )
    return found


def _half_the_steps(attack: Callable[..., float]) -> Callable[..., float]:
    """Soft permutations cost more per step, and move more."""
    return lambda *args, n_steps, **options: attack(*args, n_steps=max(n_steps // 2, 1), **options)


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
        state, model_id = target.network.state_dict(), new_model_id()
        other.load_state_dict(rekeyed(target.network, state, target.key, Key.generate(), model_id=model_id))
        versions.append(other)
    return versions


def extract(target: Target) -> list[dict[str, Any]]:
    """Read the pooled vector of the second published form off one update, and predict with it."""
    layers = [layer for layer in keyed_layers(target.network).values() if isinstance(layer, PooledLinear)]
    if not layers:
        return []
    batch = target.train.take(np.arange(min(16, len(target.train))))
    vector = attacks.extract_pooled_key(sender_of(target, fresh=False).step(batch).travelling)
    assert target.key is not None  # noqa: S101
    label, shape = layers[0].labels("")["points"]
    with torch.no_grad():
        points = torch.from_numpy(target.key.coordinates(label, shape)).to(layers[0].weight)
        true = layers[0].meta["encoder"](points).mean(0).numpy()
    likeness = float(vector @ true / max(np.linalg.norm(vector) * np.linalg.norm(true), 1e-12))
    right, wrong = target.score(target.network), attacks.wrong_keys(target.network, target.score, n_keys=5).mean()
    accuracy = target.score(attacks.use_pooled_key(target.network, vector))
    row = partial(finding, "the key", "server", "rank-one extraction", uploads="in the open", setting="one gradient")
    return [
        row("cosine with the pooled key", likeness, 0.0, baseline_name="chance"),
        row(f"{_METRIC} (right key {right:.2f})", accuracy, float(wrong), baseline_name="wrong keys"),
    ]
