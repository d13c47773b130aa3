"""All sites in one process, one after the other."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from scinfl._checks import number_between
from scinfl._errors import RepeatRoundError
from scinfl.federation._journal import Journal
from scinfl.federation._payload import Payload
from scinfl.federation._protection import (
    NeedsTotals,
    Protection,
    SpendsPrivacy,
    check_order,
    combine,
    decode,
    encode,
    exchange,
)
from scinfl.federation._site import Site
from scinfl.federation._strategy import FedAvg, Strategy
from scinfl.federation._update import State, Update

logger = logging.getLogger(__name__)

_MAX_ATTEMPTS = 30


@dataclass
class Run:
    """Where a run stands after its last finished round.

    Parameters
    ----------
    state
        Shared state that the next round starts from.
    smooth
        Moving average of the shared states, which is what is validated and kept.
    best_state, best_round
        Smooth state and number of the round with the best monitored value; of the last round without validation.
    best_local
        What stayed at each site in the best round.
    memory
        What the strategy keeps between rounds.
    history
        One record a round: seconds, bytes, sites, mean metrics, and with a privacy budget what was spent so far by
        the site that spent most (``epsilon``).
    site_history
        One record a round and participating site. A site sees its own records only; in process they stand together.
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


def simulate(
    sites: Sequence[Site],
    state: State,
    strategy: Strategy,
    protections: Sequence[Protection] = (),
    *,
    n_rounds: int,
    fraction: float = 1.0,
    min_sites: int = 1,
    smoothing: float = 0.0,
    rng: int = 0,
    monitor: str = "validation_loss",
    patience: int | None = None,
    journal: Journal | None = None,
    settings: Mapping[str, Any] | None = None,
    derive: Callable[[Mapping[str, float], float], Mapping[str, float]] | None = None,
    payload: Payload | None = None,
    progress: bool = True,
) -> Run:
    r"""Train over sites for a number of rounds.

    In each round some sites train and encode their updates, the sum is formed as the server would, the sites decode it
    and the strategy makes the next shared state of it; then every site evaluates the (smoothed) state on its own
    validation observations.

    Parameters
    ----------
    sites
        Sites, with different names.
    state
        Shared state to start from.
    strategy
        How updates become the next state.
    protections
        What guards the updates, in order.
    n_rounds
        Rounds in all, those of a resumed journal included.
    fraction
        Share of the sites that takes part in a round, drawn anew each round.
    min_sites
        Least number of sites in a round.
    smoothing
        Weight :math:`\beta` of the past in a moving average of the shared states, which is validated and kept in place
        of the last state; training goes on from the last state. In round :math:`r` the weight is
        :math:`\min(\beta, (r - 1)/(r + 9))`, so that early rounds do not lag. 0 keeps the states as they are.
    rng
        Seed of the choice of sites.
    monitor
        Column of the history that tells the best round: lowest for losses and squared errors (``mse``),
        highest otherwise.
    patience
        Stop after so many rounds without a better monitored value; never by default.
    journal
        Where to keep the run. A journal that holds a run is resumed.
    settings
        What the run was asked to do; a journal of other settings is refused.
    derive
        Turns mean validation metrics, and the number of observations behind them, into those of the history: for
        metrics that are no means of the sites' own.
    payload
        Takes down what leaves each site; what it says after the first round goes to the journal.
    progress
        Show a progress bar.

    Raises
    ------
    ValueError
        If the sites cannot make a round, or the journal holds another run.
    """
    _check(sites, strategy, protections, fraction, min_sites)
    number_between("smoothing", smoothing, 0, 0.999)
    listed, payload = payload is not None, payload or Payload()
    _agree(protections, "training", {site.name: strategy.weight(site.n_obs) for site in sites}, payload)
    validating = {site.name: float(site.n_validation) for site in sites if site.n_validation}
    _agree(protections, "evaluation", validating, payload)
    run = Run(state=state, smooth=state, best_state=state)
    if journal is not None:
        _resume(run, sites, journal, dict(settings or {}))
    first = run.n_rounds + 1
    spending = _spending(protections)
    if spending is not None:
        spending.open_account(n_sites=_n_chosen(sites, fraction, min_sites), n_rounds=n_rounds, journal=journal)
    bar = tqdm(total=n_rounds, initial=min(run.n_rounds, n_rounds), disable=not progress, unit="round", desc="Training")
    with bar:
        while run.n_rounds < n_rounds and not _stalled(run, patience):
            number = run.n_rounds + 1
            started = time.perf_counter()
            chosen = _choose(sites, fraction, min_sites, rng, number)
            updates = [site.fit(number, run.state) for site in chosen]
            mean, encoded = _sum(protections, strategy, updates, payload)
            run.state, run.memory = strategy.apply(run.state, mean, run.memory)
            run.smooth = _smoothed(run.smooth, run.state, min(smoothing, (number - 1) / (number + 9)))
            validation = _validate(sites, run.smooth, number, protections, strategy, payload)
            validated = dict(validation.metrics) if validation else {}
            if validation and derive is not None:
                validated = dict(derive(validation.metrics, validation.weight))
            record = {
                "round": number,
                **{f"train_{name}": value for name, value in mean.metrics.items()},
                **{f"validation_{name}": value for name, value in validated.items()},
                "n_sites": len(chosen),
                "bytes_sent": sum(update.n_bytes for update in encoded),
                "seconds": time.perf_counter() - started,
            }
            spent: dict[str, dict[str, float]] = {}
            if spending is not None:
                record["epsilon"] = spending.epsilon()
                spent = {update.site: {"epsilon": spending.epsilon(update.site)} for update in updates}
            run.history.append(record)
            run.site_history += [
                {"round": number, "site": u.site, "n_obs": u.n_obs, **u.metrics, **spent.get(u.site, {})}
                for u in updates
            ]
            if _best_round(run.history, monitor) == number:
                run.best_round, run.best_state = number, run.smooth
                run.best_local = {site.name: site.local_state() for site in sites}
            if journal is not None:
                _keep(run, sites, journal, dict(settings or {}), encoded)
                if listed and number == first:
                    journal.log("payload", arrays=payload.records())
            shown = {"loss": record.get("train_loss", math.nan)}
            if monitor in record:
                shown[monitor] = record[monitor]
            bar.set_postfix({name: f"{value:.3f}" for name, value in shown.items()})
            bar.update()
    return run


def mean_of(
    updates: Sequence[Update],
    protections: Sequence[Protection] = (),
    *,
    payload: Payload | None = None,
    agree: bool = True,
) -> Update:
    """Mean of what sites know before training (moments, counts), under the same protections as their updates.

    Parameters
    ----------
    updates
        One update a site, of a purpose of its own; weights are those of the updates.
    protections
        What guards the updates, in order.
    payload
        Takes down what leaves each site; a planned one also keeps it from leaving, and the mean is that of the plain
        updates at hand.
    agree
        Agree on the total weight first. Not needed again for a purpose whose weights are those of the last time.

    Examples
    --------
    >>> import numpy as np
    >>> from scinfl.federation import Update, mean_of
    >>> knows = {"a": (10, 1.0), "b": (30, 2.0)}  # cells and a mean
    >>> updates = [Update(s, 0, {"mean": np.array([m])}, n, float(n), purpose="means") for s, (n, m) in knows.items()]
    >>> mean_of(updates).state["mean"].tolist()
    [1.75]
    """
    purpose = updates[0].purpose
    check_order(protections)
    payload = payload or Payload()
    if agree:
        _agree(protections, purpose, {update.site: update.weight for update in updates}, payload)
    return replace(_sum(protections, FedAvg(), updates, payload)[0], purpose=purpose)


def _spending(protections: Sequence[Protection]) -> SpendsPrivacy | None:
    """The protection with a privacy budget, if there is one."""
    found = [protection for protection in protections if isinstance(protection, SpendsPrivacy)]
    if len(found) > 1:
        msg = (
            f"Expected one protection with a privacy budget, found {len(found)}: "
            f"{[type(protection).__name__ for protection in found]}. They guard different things, and `history` has "
            "one `epsilon`: choose one."
        )
        raise ValueError(msg)
    return found[0] if found else None


def _agree(protections: Sequence[Protection], purpose: str, weights: Mapping[str, float], payload: Payload) -> None:
    payload.add_totals(protections, purpose, weights)
    if payload.planned:
        return
    for protection in protections:
        if weights and isinstance(protection, NeedsTotals):
            protection.agree(purpose, weights)


def _check(
    sites: Sequence[Site], strategy: Strategy, protections: Sequence[Protection], fraction: float, min_sites: int
) -> None:
    names = [site.name for site in sites]
    if not names or len(set(names)) < len(names):
        msg = f"Expected sites with different names, found {names}."
        raise ValueError(msg)
    if not 0 < fraction <= 1:
        msg = f"Expected `fraction` above 0 and at most 1, found {fraction}."
        raise ValueError(msg)
    if not 1 <= min_sites <= len(sites):
        msg = f"Expected `min_sites` from 1 to the number of sites ({len(sites)}), found {min_sites}."
        raise ValueError(msg)
    check_order(protections)
    least = max([1, *(getattr(protection, "min_sites", 1) for protection in protections)])
    if _n_chosen(sites, fraction, min_sites) < least:
        cure = "Raise `fraction` or `min_sites`" if len(sites) >= least else "Let more sites take part"
        msg = (
            f"Expected at least {least} sites in a round, as the protections ask for, found "
            f"{_n_chosen(sites, fraction, min_sites)} of {len(sites)}. {cure}."
        )
        raise ValueError(msg)
    if strategy.needs_plaintext and protections:
        msg = (
            f"Expected no protections with {type(strategy).__name__}, found {len(protections)}: it compares single "
            "updates, which a masked sum hides. Use FedAvg, or pass `protections=()`."
        )
        raise ValueError(msg)


def _n_chosen(sites: Sequence[Site], fraction: float, min_sites: int) -> int:
    return max(min_sites, math.ceil(round(fraction * len(sites), 9)))


def _choose(sites: Sequence[Site], fraction: float, min_sites: int, rng: int, number: int) -> list[Site]:
    n = _n_chosen(sites, fraction, min_sites)
    if n == len(sites):
        return list(sites)
    drawn = np.random.default_rng([rng, number]).choice(len(sites), n, replace=False)
    return [sites[index] for index in sorted(drawn)]


def _sum(
    protections: Sequence[Protection], strategy: Strategy, updates: Sequence[Update], payload: Payload
) -> tuple[Update, list[Update]]:
    """Mean of updates, and what was sent for it. A protection may ask to send anew."""
    payload.check(updates)
    if payload.planned:
        payload.plan(updates, protections)
        return strategy.reduce(updates), []
    n_open = next((n for n, guard in enumerate(protections) if getattr(guard, "sums", False)), len(protections))
    for attempt in range(_MAX_ATTEMPTS):
        try:
            exchange(protections, updates)
            opened = [encode(protections[:n_open], update) for update in updates]
            encoded = [encode(protections[n_open:], update) for update in opened]
            combined = combine(protections, strategy, encoded)
            payload.add(opened, encoded)
            return decode(protections, combined, [replace(update, state={}) for update in encoded]), encoded
        except RepeatRoundError as error:
            logger.info("Round %d is sent again (attempt %d): %s", updates[0].round, attempt + 2, error)
    msg = f"Expected a sum within {_MAX_ATTEMPTS} attempts, found none in round {updates[0].round}."
    raise RuntimeError(msg)


def _validate(
    sites: Sequence[Site],
    state: State,
    number: int,
    protections: Sequence[Protection],
    strategy: Strategy,
    payload: Payload,
) -> Update | None:
    """Mean validation metrics of all sites, through the same protections as everything else that leaves a site."""
    updates = [update for site in sites if (update := site.evaluate(number, state)) is not None]
    if not updates:
        return None
    return _sum(protections, strategy, updates, payload)[0]


def _smoothed(past: State, state: State, weight: float) -> State:
    if weight == 0:
        return state
    return {name: (weight * past[name] + (1 - weight) * array).astype(array.dtype) for name, array in state.items()}


def _best_round(history: Sequence[Mapping[str, float]], monitor: str) -> int:
    """Round of the best monitored value, the earliest of equals; the last round where nothing is monitored."""
    sign = 1 if "loss" in monitor or "mse" in monitor else -1
    values = [
        (sign * record[monitor], record["round"]) for record in history if math.isfinite(record.get(monitor, math.nan))
    ]
    return int(min(values)[1]) if values else int(history[-1]["round"])


def _stalled(run: Run, patience: int | None) -> bool:
    return patience is not None and run.n_rounds - run.best_round >= patience


def _keep(
    run: Run, sites: Sequence[Site], journal: Journal, settings: dict[str, Any], encoded: Sequence[Update]
) -> None:
    local = {f"local/{site.name}": site.local_state() for site in sites}
    local |= {f"best local/{name}": state for name, state in run.best_local.items()}
    journal.log(
        "round",
        round=run.n_rounds,
        sent=[
            {
                "site": update.site,
                "arrays": update.payload(),
                "bytes": update.n_bytes,
                "header": {name: value.hex() for name, value in update.header.items()},
            }
            for update in encoded
        ],
    )
    journal.save(
        {"state": run.state, "smooth": run.smooth, "best": run.best_state, "memory": run.memory, **local},
        {
            "settings": settings,
            "best_round": run.best_round,
            "history": run.history,
            "site_history": run.site_history,
        },
    )


def _resume(run: Run, sites: Sequence[Site], journal: Journal, settings: dict[str, Any]) -> None:
    kept = journal.load()
    if kept is None:
        journal.log("start", settings=settings)
        return
    groups, record = kept
    if record["settings"] != settings:
        was = record["settings"]
        odd = sorted(name for name in was.keys() | settings.keys() if was.get(name) != settings.get(name))
        msg = (
            f"Expected the journal in '{journal.path}' to hold this run, found one with other settings: {odd}. "
            "Name a new folder, or train with the settings of the journal."
        )
        raise ValueError(msg)
    run.state, run.smooth, run.best_state, run.memory = (groups[name] for name in ("state", "smooth", "best", "memory"))
    run.best_round, run.history, run.site_history = record["best_round"], record["history"], record["site_history"]
    run.best_local = {site.name: groups[f"best local/{site.name}"] for site in sites}
    for site in sites:
        site.load_local_state(groups[f"local/{site.name}"])
    journal.log("resume", round=run.n_rounds)
    logger.info("Resumed from round %d of the journal in '%s'.", run.n_rounds, journal.path)
