"""Methods that `compare` knows, their protections, and what the server reads under each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from scinfl.federation import FedAdam, FedProx, Protection
from scinfl.privacy import HomomorphicSum, Key, KeyedSum, PairwiseSum, SampleDP, Shuffle, UpdateDP
from scinfl.privacy.dp import gaussian_noise_multiplier

PRIVATE_TRAINING = {
    "validation_size": 0.0,
    "early_stopping": None,
    "class_weight": None,
    "local_epochs": 1,
    "batch_size": 10_000,
    "lr": 0.05,
}
"""Arguments of `train` under noise: every unit in every step, and no metric that leaves without noise."""

_UPDATES = "updates of every site"
_LOCKED = "locked updates of every site"
_NOTHING = "nothing but sizes"
_NOISY = "noisy updates of every site"


@dataclass(frozen=True)
class Method:
    """How a method makes and trains its model, and what the server reads."""

    server_sees: str
    helped_server_sees: str | None = None  # what it reads if one of the sites colludes; the same by default
    init: dict[str, Any] = field(default_factory=lambda: {"key_scheme": None})  # arguments of the model
    train: dict[str, Any] = field(default_factory=dict)  # arguments of its ``train``
    sums: Callable[[Key], Protection] | None = None  # makes the protection that sums
    noise: Callable[[int, float], Protection] | None = None  # makes one of noise, from rounds and delta
    needs_sites: int = 1  # least number of sites
    pooled: bool = False  # whether all cells are at one site
    watched: bool = False  # whether a server tries to recover the key

    @property
    def needs_key(self) -> bool:
        """Whether the model is locked."""
        return self.init["key_scheme"] is not None


def _locked(scheme: str = "coordinate", **options: Any) -> dict[str, Any]:
    return {"key_scheme": scheme, **options}


def _sample_noise(epsilon: float) -> Callable[[int, float], Protection]:
    return lambda _, delta: SampleDP(target_epsilon=epsilon, delta=delta)


def _update_noise(kind: type[UpdateDP], epsilon: float) -> Callable[[int, float], Protection]:
    """Noise that keeps all rounds of a site to an epsilon: two clipped updates lie up to twice the norm apart."""

    def make(n_rounds: int, delta: float) -> Protection:
        noise = 2 * math.sqrt(n_rounds) * gaussian_noise_multiplier(epsilon, delta)
        return kind(max_norm=1.0, noise_multiplier=noise, delta=delta)

    return make


_METHODS: dict[str, Method | None] = {
    "majority": None,
    "local-only": None,
    "centralised": Method("all cells", pooled=True),
    "FedAvg": Method(_UPDATES),
    "FedProx": Method(_UPDATES, train={"strategy": FedProx()}),
    "FedAdam": Method(_UPDATES, train={"strategy": FedAdam()}),
    "permuted": Method(_LOCKED, _UPDATES, _locked("permuted")),
    "pooled": Method(_LOCKED, _UPDATES, _locked("pooled")),
    "coordinate": Method(_LOCKED, _UPDATES, _locked(), watched=True),
    "coordinate, trained": Method(_LOCKED, _UPDATES, _locked(train_meta=True)),
    "coordinate + keyed sums": Method(_NOTHING, _UPDATES, _locked(), sums=KeyedSum, needs_sites=3, watched=True),
    "coordinate + pairwise sums": Method(_NOTHING, "their mean", _locked(), sums=PairwiseSum, needs_sites=3),
    "coordinate + homomorphic sums": Method(
        _NOTHING, _UPDATES, _locked(), sums=lambda _: HomomorphicSum(), needs_sites=3
    ),
    "meta only": Method("meta learners of every site", None, _locked(train_meta=True), {"share": "meta"}),
    "projected": Method(
        "locked updates without the first layer",
        "updates without the first layer",
        _locked(),
        {"share": "projected"},
    ),
    "SampleDP, epsilon 1": Method(_NOISY, noise=_sample_noise(1)),
    "SampleDP, epsilon 3": Method(_NOISY, noise=_sample_noise(3)),
    "SampleDP, epsilon 8": Method(_NOISY, noise=_sample_noise(8)),
    "UpdateDP, epsilon 8": Method(_NOISY, noise=_update_noise(UpdateDP, 8)),
    "Shuffle, epsilon 8": Method("noisy updates without names", noise=_update_noise(Shuffle, 8), needs_sites=2),
}

METHODS = tuple(_METHODS)
"""Methods that :func:`compare` knows."""

NEEDS_TENSEAL = "coordinate + homomorphic sums"


def method_of(name: str) -> Method | None:
    """A method by its name; none where nothing is sent."""
    return _METHODS[name]
