"""A run at one site, in the steps that the server asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from scinfl.federation import Journal, Payload, Run, Site, State, Strategy
from scinfl.flower._letter import Letter
from scinfl.flower._part import Part
from scinfl.privacy import KeyedSum


class Counterpart(Protocol):
    """The server, as a site sees it: it asks for steps, and is answered."""

    def next(self) -> Letter:
        """Wait for what the server asks for next."""
        ...

    def answer(self, letter: Letter) -> None:
        """Answer it."""
        ...


class TakePart:
    r"""Trains at one site, in the steps that the server asks for.

    Step 0 sums the weights of all sites. Step :math:`r` sums the updates of round :math:`r`, and the validation metrics
    of round :math:`r - 1`, so that a round takes one message each way. A last step sums the metrics of the last round.
    Every site applies every sum in order, and so all come to the same model. A site that missed sums gets them with
    the next question.

    Parameters
    ----------
    counterpart
        Who asks.
    tell
        Called with the record of every finished round.
    ready
        Called with the number of steps that are behind this site, when it can begin.

    Examples
    --------
    Passed to a model by :func:`scinfl.flower.run_site`.
    """

    def __init__(
        self,
        counterpart: Counterpart,
        *,
        tell: Callable[[Mapping[str, Any]], None],
        ready: Callable[[int], None],
    ) -> None:
        self._counterpart, self._tell, self._ready = counterpart, tell, ready

    def __call__(
        self,
        sites: Sequence[Site],
        state: State,
        strategy: Strategy,
        protections: Sequence[KeyedSum],
        *,
        n_rounds: int,
        smoothing: float = 0.0,
        monitor: str = "validation_loss",
        patience: int | None = None,
        journal: Journal | None = None,
        settings: Mapping[str, Any] | None = None,
        derive: Callable[[Mapping[str, float], float], Mapping[str, float]] | None = None,
        payload: Payload | None = None,
        **others: Any,
    ) -> Run:
        """Take part in a whole run; in place of :func:`scinfl.federation.simulate`."""
        del others
        (site,), (protection,) = sites, protections
        part = Part(site, strategy, protection, state, n_rounds, smoothing, monitor, patience, derive, payload)
        part.open(journal, dict(settings or {}))
        self._ready(part.position)
        while True:
            asked = self._counterpart.next()
            n_before = len(part.run.history)
            part.take(asked)
            for record in part.run.history[n_before:]:
                self._tell(record)
            if part.is_done:
                return part.run
            self._counterpart.answer(part.answer(asked))


def loss_of(record: Mapping[str, Any]) -> float:
    """Mean training loss of a record, NaN where nobody may know it."""
    return float(record.get("train_loss", math.nan))
