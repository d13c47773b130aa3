"""The rules of a round, in one copy for all engines: in one process, and over a network.

Internal, for engines and models in other packages of scinfl. Users call :func:`scinfl.federation.simulate`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scinfl.federation._choice import check_sites, choose_sites, n_chosen
from scinfl.federation._journal import Journal, metadata_of, write_atomically
from scinfl.federation._protection import Protection, SpendsPrivacy, are_elsewhere, check_order, encode
from scinfl.federation._rehearse import rehearse
from scinfl.federation._strategy import Strategy, weighted_mean
from scinfl.federation._update import State, Update

__all__ = [
    "Derive",
    "Rules",
    "Run",
    "SpendsPrivacy",
    "are_elsewhere",
    "budget_of",
    "check_order",
    "check_sites",
    "choose_sites",
    "encode",
    "keep",
    "metadata_of",
    "n_chosen",
    "record_of",
    "rehearse",
    "resume",
    "site_record",
    "weighted_mean",
    "write_atomically",
]

Derive = Callable[[Mapping[str, float], float], Mapping[str, float]]
"""Turns mean validation metrics, and the number of observations behind them, into those of the history."""

_AFTER_METRICS = ("n_sites", "bytes_sent", "seconds", "epsilon")


@dataclass
class Run:
    """State of a run after its last finished round.

    Parameters
    ----------
    state
        Shared state that the next round starts from.
    smooth
        Moving average of the shared states, which is what is validated and kept.
    best_state, best_round
        Smooth state and number of the round that is kept: of the lowest monitored loss, of the last whose monitored
        accuracy is not below the highest beyond noise, or of the last without validation.
    best_local
        What stayed at each site in the best round.
    memory
        What the strategy keeps between rounds.
    history
        One record per round: seconds, bytes, sites, mean metrics, and with a privacy budget what was spent so far by
        the site that spent most (``epsilon``).
    site_history
        One record per round and participating site. A site sees its own records only; in process all are together.
    """

    state: State
    smooth: State
    best_state: State
    best_round: int = 0
    best_local: dict[str, State] = field(default_factory=dict)
    memory: State = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    site_history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def n_rounds(self) -> int:
        """Rounds finished."""
        return len(self.history)


@dataclass(frozen=True)
class Rules:
    """What is made of the sums of a round, and when a run ends; parameters as in :func:`scinfl.federation.simulate`."""

    strategy: Strategy
    n_rounds: int
    smoothing: float = 0.0
    monitor: str = "validation_loss"
    patience: int | None = None
    derive: Derive | None = None

    def apply(self, run: Run, number: int, mean: Update) -> None:
        """Make the next shared state of the mean of a round, and the moving average of the states."""
        run.state, run.memory = self.strategy.apply(run.state, mean, run.memory)
        weight = min(self.smoothing, (number - 1) / (number + 9))
        run.smooth = _smoothed(run.smooth, run.state, weight)

    def finish(
        self, run: Run, record: Mapping[str, Any], validation: Update | None, local: Callable[[], dict[str, State]]
    ) -> None:
        """Close a round: its record enters the history, and its state is kept if none before is better beyond noise."""
        metrics: Mapping[str, float] = {}
        if validation is not None:
            metrics = validation.metrics
            metrics = metrics if self.derive is None else self.derive(metrics, validation.weight)
        after = {name: record[name] for name in _AFTER_METRICS if name in record}
        before = {name: value for name, value in record.items() if name not in after}
        run.history.append({**before, **{f"validation_{name}": value for name, value in metrics.items()}, **after})
        n_validation = 0.0 if validation is None else validation.weight
        if _is_kept(run.history, self.monitor, n_validation):
            run.best_round, run.best_state, run.best_local = record["round"], run.smooth, local()

    def is_finished(self, run: Run) -> bool:
        """Whether all rounds are done, or as many as `patience` allows went by without a better one."""
        if self.patience is None or not run.history:
            return run.n_rounds >= self.n_rounds
        stalled = run.n_rounds - _best_round(run.history, self.monitor) >= self.patience
        return run.n_rounds >= self.n_rounds or stalled


def record_of(
    number: int,
    mean: Update,
    *,
    n_sites: int,
    n_bytes: int,
    seconds: float,
    spending: SpendsPrivacy | None,
    site: str | None = None,
) -> dict[str, Any]:
    """Record of a round but for validation; ``epsilon`` is that of a site, or of the one that spent most."""
    return {
        "round": number,
        **{f"train_{name}": value for name, value in mean.metrics.items()},
        "n_sites": n_sites,
        "bytes_sent": n_bytes,
        "seconds": seconds,
        **({} if spending is None else {"epsilon": spending.epsilon(site)}),
    }


def site_record(number: int, own: Update, spending: SpendsPrivacy | None) -> dict[str, Any]:
    """Record of what one site did in a round."""
    spent = {} if spending is None else {"epsilon": spending.epsilon(own.site)}
    return {"round": number, "site": own.site, "n_obs": own.n_obs, **own.metrics, **spent}


def budget_of(protections: Sequence[Protection]) -> SpendsPrivacy | None:
    """The protection with a privacy budget, if there is one.

    Raises
    ------
    ValueError
        If there are several.
    """
    found = [protection for protection in protections if isinstance(protection, SpendsPrivacy)]
    if len(found) > 1:
        msg = (
            f"Expected one protection with a privacy budget, found {len(found)}: "
            f"{[type(protection).__name__ for protection in found]}. They guard different things, and the history has "
            "one column 'epsilon': choose one."
        )
        raise ValueError(msg)
    return found[0] if found else None


def keep(run: Run, journal: Journal, settings: Mapping[str, Any], local: Mapping[str, State], **more: Any) -> None:
    """Replace the checkpoint of a run."""
    journal.save(
        {"state": run.state, "smooth": run.smooth, "best": run.best_state, "memory": run.memory, **local},
        {
            "settings": dict(settings),
            "best_round": run.best_round,
            "history": run.history,
            "site_history": run.site_history,
            **more,
        },
    )


def resume(
    run: Run, journal: Journal, settings: Mapping[str, Any], cure: str
) -> tuple[dict[str, State], dict[str, Any]] | None:
    """Continue from the checkpoint of a journal; a journal without one starts with the settings.

    Returns
    -------
    Arrays by group, and the record; ``None`` without a checkpoint.

    Raises
    ------
    ValueError
        If the journal holds a run of other settings.
    """
    kept = journal.load()
    if kept is None:
        journal.log("start", settings=dict(settings))
        return None
    groups, record = kept
    was, settings = record["settings"], dict(settings)
    if was != settings:
        odd = sorted(name for name in was.keys() | settings.keys() if was.get(name) != settings.get(name))
        msg = f"Expected the journal in '{journal.path}' to hold this run, found one with other settings: {odd}. {cure}"
        raise ValueError(msg)
    run.state, run.smooth, run.best_state, run.memory = (groups[name] for name in ("state", "smooth", "best", "memory"))
    run.best_round, run.history, run.site_history = record["best_round"], record["history"], record["site_history"]
    return groups, record


def _smoothed(past: State, state: State, weight: float) -> State:
    if weight == 0:
        return state
    return {name: (weight * past[name] + (1 - weight) * array).astype(array.dtype) for name, array in state.items()}


def _is_kept(history: Sequence[Mapping[str, float]], monitor: str, n_validation: float) -> bool:
    r"""Whether the last round takes the place of the one kept so far.

    A loss has to be the lowest. An accuracy :math:`p` of :math:`n` observations must not be below the highest by more
    than two standard errors, :math:`2 \sqrt{\tilde p (1 - \tilde p) / n}` with :math:`\tilde p = (n p + 1) / (n + 2)`:
    of few observations it says little, and the later of two rounds has learned more.
    """
    last = history[-1].get(monitor, math.nan)
    best = _best_round(history, monitor)
    if best == history[-1]["round"] or not math.isfinite(last) or "accuracy" not in monitor:
        return best == history[-1]["round"]
    top = next(record[monitor] for record in history if record["round"] == best)
    share = min(max((n_validation * top + 1) / (n_validation + 2), 0.0), 1.0)  # sums in fixed point may pass 1
    return last >= top - 2 * math.sqrt(share * (1 - share) / max(n_validation, 1))


def _best_round(history: Sequence[Mapping[str, float]], monitor: str) -> int:
    """Round of the best monitored value, the earliest of equals; the last round where nothing is monitored."""
    sign = 1 if "loss" in monitor or "mse" in monitor else -1
    values = [
        (sign * record[monitor], record["round"]) for record in history if math.isfinite(record.get(monitor, math.nan))
    ]
    return int(min(values)[1]) if values else int(history[-1]["round"])
