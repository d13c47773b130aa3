"""What an attacker learns of the order of the features from the Gram matrix of a stolen first layer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from scinfl._audit._findings import STEALING, finding
from scinfl._audit._simulated_site import OPEN
from scinfl._audit.classifier._model_stealing import MOST_FEATURES
from scinfl._audit.classifier._target import Target
from scinfl.model.base import rekeyed
from scinfl.nn import CoordinateLinear, new_model_id
from scinfl.privacy import Key, attacks

_N_RANDOM = 100


def align(
    target: Target, *, n_references: int, n_reference_steps: int, n_restarts: int, n_steps: int
) -> list[dict[str, Any]]:
    """Align stolen first layers, and differences of versions that should hide the same, with networks of one's own.

    A search may fail where another one would not. So the true order is scored, too: where it scores higher than all
    that the search finds, the order can be known, whether or not this search found it.
    """
    name, n_features = target.model.first_layer, target.train.x.shape[1]
    if target.key is None or name is None or n_features > MOST_FEATURES:
        return []
    layer: Any = target.network.get_submodule(name)
    if not isinstance(layer, CoordinateLinear):
        return []
    order = target.true_order(name)
    signs = np.where(target.key.coordinates(f"{name}/input signs", (n_features,)) < 0, -1.0, 1.0)
    references = attacks.train_references(
        target.network,
        name,
        target.public.x,
        target.public.y,
        n_references=n_references,
        n_steps=n_reference_steps,
        rng=target.rng,
    )
    generator, rows = np.random.default_rng(target.rng), []
    for adversary, uploads, setting, weight in _stolen(target, f"{name}.weight"):
        evidence = attacks.GramEvidence(weight, references)
        found = attacks.align_gram(evidence, n_restarts=n_restarts, n_steps=n_steps, rng=target.rng)
        random = [
            evidence.score(generator.permutation(n_features), generator.choice([-1.0, 1.0], n_features))
            for _ in range(_N_RANDOM)
        ]
        left = (evidence.score(order, signs) - np.mean(random)) / (found.score - np.mean(random))
        row = partial(finding, "the key", adversary, "Gram alignment", uploads=uploads, setting=setting)
        share = float((found.order == order).mean())
        rows.append(row("share of the order", share, 1 / n_features, baseline_name="chance"))
        rows.append(row("score of the true order", float(left), 1.0, baseline_name="best of the search", margin=0.0))
    return rows


def _stolen(target: Target, name: str) -> Iterator[tuple[str, str, str, np.ndarray]]:
    """Who aligns what: stored weights, differences of two versions, and of what travelled in the open."""
    assert target.key is not None  # noqa: S101
    stored = target.network.get_parameter(name).detach()
    yield STEALING, "", "final weights", stored.numpy()
    if target.hides_updates:
        for key, setting in ((target.key, "two saved versions"), (Key.generate(), "before and after `rekey`")):
            state = rekeyed(target.network, target.network.state_dict(), target.key, key, model_id=new_model_id())
            yield STEALING, "", setting, (state[name] - stored).numpy()
    if target.watched is None or name not in target.watched.seen[1][0].state:
        return
    rounds = target.watched.mean(name, tuple(stored.shape))
    yield "server", OPEN, "two rounds", rounds[-1] - rounds[-2] if len(rounds) > 1 else rounds[0]
    one, two = (update.state[name] for update in target.watched.seen[len(rounds)][:2])
    yield "server", OPEN, "two sites of a round", one - two
