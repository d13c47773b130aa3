"""What an attacker learns of the order of the features from the Gram matrix of a stolen first layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from scinfl._audit import _alignment as alignment
from scinfl._audit._simulated_site import OPEN
from scinfl._audit.classifier._target import Target


def align(target: Target, effort: alignment.AlignmentEffort) -> list[dict[str, Any]]:
    """Align the stored first layer, differences of versions, and differences of what travelled in the open."""
    name = target.model.first_layer
    if name is None:
        return []
    return alignment.align(target, name, target.public.x, target.public.y, effort, seen=_seen(target, name))


def _seen(target: Target, name: str) -> Iterator[alignment.Stolen]:
    weight = f"{name}.weight"
    if target.watched is None or weight not in target.watched.seen[1][0].state:
        return
    rounds = target.watched.mean(weight, tuple(target.network.get_parameter(weight).shape))
    yield "server", OPEN, "two rounds", rounds[-1] - rounds[-2] if len(rounds) > 1 else rounds[0]
    one, two = (update.state[weight] for update in target.watched.seen[len(rounds)][:2])
    yield "server", OPEN, "two sites of a round", one - two
