"""Offsets of the key on updates that a server reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
from torch import nn

from scinfl import nn as keyed_nn
from scinfl.federation import Protection, State, Update
from scinfl.privacy import Key

_FARTHER = 2.0**10  # than offsets of stored parameters: sums do not wrap, so what hides them is how much larger it is


class RoundOffsets(Protection):
    r"""Adds to every parameter that travels an offset of the key, another one in every round.

    The sites of a round add the same, under the id ``run/round``, so that the mean of what they send is the mean of the
    parameters behind that offset, which they take off. A mean is of numbers that do not wrap, so here an offset hides
    by its size: up to 2²⁰ (a million) initial standard deviations of the parameter, in float64, which keeps the mean to
    1e-10 of one. A server that reads updates can subtract neither two rounds nor a round and the saved model, and a
    mean of many rounds shows it nothing. It can subtract two sites of one round: only a sum that it cannot read hides
    their difference.

    Parameters
    ----------
    network
        Network with its key.
    key
        Secret of the sites.
    run
        Name of the run, never used before under this key.
    """

    adds_alike: ClassVar[bool] = True

    def __init__(self, network: nn.Module, key: Key, run: str) -> None:
        self._network, self._key, self._run = network, key, run
        self._round, self._offsets = -1, dict[str, np.ndarray]()
        self._kinds: dict[str, np.dtype] = {}

    def encode(self, update: Update) -> Update:
        """Add the offsets of the round."""
        if update.purpose != "training":
            return update
        self._kinds = {name: array.dtype for name, array in update.state.items()}
        return replace(update, state=self._change(update, np.add))

    def decode(self, combined: Update, members: Sequence[Update]) -> Update:
        """Take them off the mean."""
        del members
        if combined.purpose != "training":
            return combined
        state = self._change(combined, np.subtract)
        return replace(combined, state={name: array.astype(self._kinds[name]) for name, array in state.items()})

    def _change(self, update: Update, change: Callable[..., np.ndarray]) -> State:
        if update.round != self._round:
            model_id = f"{self._run}/{update.round}"
            offsets = keyed_nn.offsets_under(self._network, self._key.coordinates, model_id)
            self._offsets = {name: _FARTHER * offset for name, offset in offsets.items()}
            self._round = update.round
        state = {name: array.astype(np.float64) for name, array in update.state.items()}
        return {name: change(array, self._offsets.get(name, 0.0)) for name, array in state.items()}


def with_offsets(
    protections: Sequence[Protection], network: nn.Module, key: Key | None, run: str
) -> Sequence[Protection]:
    """Protections of a run in process, with offsets where there is a key and the server reads updates or their sum."""
    if key is None or not keyed_nn.has_offsets(network):
        return protections
    if any(protection.sums and not protection.shows_sum for protection in protections):
        return protections
    first = (n for n, protection in enumerate(protections) if protection.sums or protection.watches)
    place = next(first, len(protections))
    return [*protections[:place], RoundOffsets(network, key, run), *protections[place:]]
