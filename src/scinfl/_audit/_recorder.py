"""What sites send before the first round, as a server records it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np

from scinfl._audit._simulated_site import COLLUDING, MASKED, OPEN, unpacked
from scinfl.federation import Protection, State, Update
from scinfl.privacy import Key, KeyedSum


class Recorder(Protection):
    """A server that keeps what arrives, the first state of each purpose and site. It hides nothing."""

    watches: ClassVar[bool] = True

    def __init__(self) -> None:
        self.sent: dict[str, dict[str, State]] = {}

    def combine(self, encoded: Sequence[Update]) -> None:
        """Keep what arrived; others sum."""
        own = self.sent.setdefault(encoded[0].purpose, {})
        for upload in encoded:
            own.setdefault(upload.site, dict(upload.state))


def received_before_training(
    prepare: Callable[[Sequence[Protection]], object], key: Key | None
) -> Iterator[tuple[str, str, dict[str, dict[str, State]]]]:
    """Adversaries, uploads, and what arrives while sites prepare a training, by purpose and site."""
    for masked in (False, True):
        recorder = Recorder()
        prepare([KeyedSum(key or Key.generate(), min_sites=2), recorder] if masked else [recorder])
        yield "server", MASKED if masked else OPEN, recorder.sent
        yield "outsider" if masked else "server + one site", MASKED if masked else COLLUDING, recorder.sent


def read_arrays(state: State, shapes: Mapping[str, tuple[int, ...]]) -> State:
    """Arrays of an upload; of a masked one, the masked integers."""
    if "masked" not in state:
        return {name: np.asarray(state[name], np.float64) for name in shapes}
    return unpacked(state["masked"], shapes)
