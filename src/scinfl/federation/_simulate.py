"""All sites in one process, one after the other."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from scinfl._checks import number_between
from scinfl._errors import RepeatRoundError
from scinfl.federation import rounds
from scinfl.federation._journal import Journal
from scinfl.federation._payload import Payload
from scinfl.federation._protection import Protection, check_order, combine, decode, encode, exchange
from scinfl.federation._site import Site
from scinfl.federation._strategy import FedAvg, Strategy
from scinfl.federation._update import State, Update

logger = logging.getLogger(__name__)

_MAX_ATTEMPTS = 30


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
) -> rounds.Run:
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
        Share of the sites that takes part in a round, drawn again for each round.
    min_sites
        Least number of sites in a round.
    smoothing
        Weight :math:`\beta` of the past in a moving average of the shared states, which is validated and kept in place
        of the last state; training goes on from the last state. In round :math:`r` the weight is
        :math:`\min(\beta, (r - 1)/(r + 9))`, so that early rounds do not lag. 0 keeps the states as they are.
    rng
        Seed of the choice of sites.
    monitor
        Column of the history that defines the round that is kept: that of the lowest loss or squared error
        (``mse``), or the last whose accuracy is not below the highest by more than two standard errors.
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
        Records what leaves each site; its records after the first round go to the journal.
    progress
        Show a progress bar.

    Raises
    ------
    ValueError
        If the sites cannot make a round, or the journal holds another run.
    """
    rounds.check_sites(sites, strategy, protections, fraction, min_sites)
    number_between("smoothing", smoothing, 0, 0.999)
    listed, payload = payload is not None, payload or Payload()
    weights = {site.name: strategy.weight(site.n_obs) for site in sites}
    validating = {site.name: float(site.n_validation) for site in sites if site.n_validation}
    _agree_on_totals(protections, {"training": weights, "evaluation": validating}, payload)
    run, settings = rounds.Run(state=state, smooth=state, best_state=state), dict(settings or {})
    if journal is not None:
        _resume(run, sites, journal, settings)
    first = run.n_rounds + 1
    spending = rounds.budget_of(protections)
    if spending is not None:
        n_chosen = rounds.n_chosen(sites, fraction, min_sites)
        spending.open_account(n_sites=n_chosen, n_rounds=n_rounds, journal=journal)
    rules = rounds.Rules(strategy, n_rounds, smoothing, monitor, patience, derive)
    bar = tqdm(total=n_rounds, initial=min(run.n_rounds, n_rounds), disable=not progress, unit="round", desc="Training")
    with bar:
        while not rules.is_finished(run):
            number, started = run.n_rounds + 1, time.perf_counter()
            chosen = rounds.choose_sites(sites, fraction, min_sites, rng, number)
            updates = [site.fit(number, run.state) for site in chosen]
            ((mean, encoded),) = _sums(protections, strategy, [updates], payload)
            rules.apply(run, number, mean)
            validation = _validate(sites, run.smooth, number, protections, strategy, payload)
            record = rounds.record_of(
                number,
                mean,
                n_sites=len(chosen),
                n_bytes=sum(update.n_bytes for update in encoded),
                seconds=time.perf_counter() - started,
                spending=spending,
            )
            rules.finish(run, record, validation, lambda: {site.name: site.local_state() for site in sites})
            run.site_history += [rounds.site_record(number, update, spending) for update in updates]
            if journal is not None:
                _keep(run, sites, journal, settings, encoded)
                if listed and number == first:
                    journal.log("payload", arrays=payload.records())
            shown = {"loss": record.get("train_loss", math.nan)}
            if monitor in run.history[-1]:
                shown[monitor] = run.history[-1][monitor]
            bar.set_postfix({name: f"{value:.3f}" for name, value in shown.items()})
            bar.update()
    return run


def mean_of(
    updates: Sequence[Update],
    protections: Sequence[Protection] = (),
    *,
    payload: Payload | None = None,
    agree: bool | str = True,
) -> Update:
    """Mean of what sites know before training (moments, counts), under the same protections as their updates.

    Parameters
    ----------
    updates
        One update per site, of a purpose of its own; weights are those of the updates.
    protections
        What guards the updates, in order.
    payload
        Records what leaves each site; a planned one also keeps it from leaving, and the mean is that of the plain
        updates at hand.
    agree
        Agree on the total weight first; or take that of another purpose, named here, with the same weights. Not needed
        again for a purpose whose weights did not change.

    Examples
    --------
    >>> import numpy as np
    >>> from scinfl.federation import Update, mean_of
    >>> knows = {"a": (10, 1.0), "b": (30, 2.0)}  # cells and a mean
    >>> updates = [Update(s, 0, {"mean": np.array([m])}, n, float(n), purpose="means") for s, (n, m) in knows.items()]
    >>> mean_of(updates).state["mean"].tolist()
    [1.75]
    """
    return means_of([updates], protections, payload=payload, agree=[agree])[0]


def means_of(
    groups: Sequence[Sequence[Update]],
    protections: Sequence[Protection] = (),
    *,
    payload: Payload | None = None,
    agree: Sequence[bool | str] | None = None,
) -> list[Update]:
    """Means that do not wait for each other: sites on machines of their own take one exchange for all of them.

    Parameters
    ----------
    groups
        For each mean one update per site, see :func:`mean_of`; every mean has a purpose of its own.
    protections, payload
        As there.
    agree
        For each mean as there; all agree by default.
    """
    check_order(protections)
    payload = payload or Payload()
    settled = dict(zip([updates[0].purpose for updates in groups], agree or [True] * len(groups), strict=True))
    fresh = [updates for updates in groups if settled[updates[0].purpose] is True]
    totals = {own[0].purpose: {update.site: update.weight for update in own} for own in fresh}
    if totals:
        _agree_on_totals(protections, totals, payload)
    for purpose, agreed in settled.items():
        if isinstance(agreed, str):
            for protection in protections:
                protection.reuse_total(purpose, agreed)
    found = _sums(protections, FedAvg(), groups, payload)
    return [replace(mean, purpose=purpose) for purpose, (mean, _) in zip(settled, found, strict=True)]


def _agree_on_totals(
    protections: Sequence[Protection], weights: Mapping[str, Mapping[str, float]], payload: Payload
) -> None:
    for purpose, own in weights.items():
        payload.add_totals(protections, purpose, own)
    if not payload.planned:
        for protection in protections:
            protection.agree_on({purpose: own for purpose, own in weights.items() if own})


def _sums(
    protections: Sequence[Protection], strategy: Strategy, groups: Sequence[Sequence[Update]], payload: Payload
) -> list[tuple[Update, list[Update]]]:
    """Means of updates, and what was sent for them. A protection may ask to send again."""
    for updates in groups:
        payload.check(updates)
    if payload.planned:
        for updates in groups:
            payload.plan(updates, protections)
        return [(strategy.reduce(updates), []) for updates in groups]
    for attempt in range(_MAX_ATTEMPTS):
        try:
            sent = [_encoded(protections, updates) for updates in groups]
            sums = [combine(protections, strategy, encoded) for _, encoded in sent]
        except RepeatRoundError as error:
            logger.info("Round %d is sent again (attempt %d): %s", groups[0][0].round, attempt + 2, error)
            continue
        found = []
        for combined, (opened, encoded) in zip(sums, sent, strict=True):
            payload.add(opened, encoded)
            members = [replace(update, state={}) for update in encoded]
            found.append((decode(protections, combined, members), encoded))
        return found
    msg = f"Expected a sum within {_MAX_ATTEMPTS} attempts, found none in round {groups[0][0].round}."
    raise RuntimeError(msg)


def _encoded(protections: Sequence[Protection], updates: Sequence[Update]) -> tuple[list[Update], list[Update]]:
    """What sites make of updates before something hides them, and what they send."""
    n_open = next((n for n, guard in enumerate(protections) if guard.sums), len(protections))
    exchange(protections, updates)
    opened = [encode(protections[:n_open], update) for update in updates]
    return opened, [encode(protections[n_open:], update) for update in opened]


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
    return _sums(protections, strategy, [updates], payload)[0][0]


def _keep(
    run: rounds.Run, sites: Sequence[Site], journal: Journal, settings: dict[str, Any], encoded: Sequence[Update]
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
    rounds.keep(run, journal, settings, local)


def _resume(run: rounds.Run, sites: Sequence[Site], journal: Journal, settings: dict[str, Any]) -> None:
    cure = "Name a new folder, or train with the settings of the journal."
    kept = rounds.resume(run, journal, settings, cure)
    if kept is None:
        return
    groups, _ = kept
    run.best_local = {site.name: groups[f"best local/{site.name}"] for site in sites}
    for site in sites:
        site.load_local_state(groups[f"local/{site.name}"])
    journal.log("resume", round=run.n_rounds)
    logger.info("Resumed from round %d of the journal in '%s'.", run.n_rounds, journal.path)
