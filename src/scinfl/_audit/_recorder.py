"""What sites send before the first round, as a server keeps it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from scinfl._audit._simulated_site import unpacked
from scinfl.federation import Protection, State
from scinfl.privacy import Key, KeyedSum
from scinfl.privacy.dp._noisy_sums import NoiseInside


class Recorder(NoiseInside):
    """A server that keeps what arrives, by purpose. It hides nothing.

    Attributes
    ----------
    sent
        State of every upload by purpose and site; of several of a purpose, the first.
    """

    watches: ClassVar[bool] = True

    def __init__(self) -> None:
        self.sent: dict[str, dict[str, State]] = {}

    def on_step(self, network: Any, batch: Any) -> None:
        """Leave the step to the site."""
        del network, batch

    def combine(self, encoded: Sequence[Any]) -> None:
        """Keep what arrived; others sum."""
        own = self.sent.setdefault(encoded[0].purpose, {})
        for upload in encoded:
            own.setdefault(upload.site, dict(upload.state))


def as_received(
    prepare: Callable[[Sequence[Protection]], object], key: Key | None, *, masked: bool
) -> dict[str, dict[str, State]]:
    """What a server receives while sites prepare a training, in the open or under keyed sums."""
    recorder = Recorder()
    prepare([KeyedSum(key or Key.generate(), min_sites=2), recorder] if masked else [recorder])
    return recorder.sent


def read_arrays(state: State, shapes: Mapping[str, tuple[int, ...]]) -> State:
    """Arrays of an upload; of a masked one, the integers that stand in their place."""
    if "masked" not in state:
        return {name: np.asarray(state[name], np.float64) for name in shapes}
    return unpacked(state["masked"], shapes)
