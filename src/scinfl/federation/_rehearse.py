"""A run without a server: what would leave the sites."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from scinfl.federation._choice import check_sites
from scinfl.federation._journal import Journal
from scinfl.federation._payload import Payload
from scinfl.federation._protection import Protection, SpendsPrivacy, encode
from scinfl.federation._site import Site
from scinfl.federation._strategy import Strategy
from scinfl.federation._update import State, Update


def rehearse(
    sites: Sequence[Site],
    state: State,
    strategy: Strategy,
    protections: Sequence[Protection],
    payload: Payload,
    *,
    n_rounds: int,
    fraction: float = 1.0,
    min_sites: int = 1,
    journal: Journal | None = None,
    n_elsewhere: int = 0,
) -> None:
    """List what would leave the sites in a run, from one local round of each by itself.

    Nothing is encoded, combined or uploaded, and no privacy budget is charged. Whatever would be refused before
    training is refused. The list goes to the payload, and to the journal as an event of its own.

    Raises
    ------
    ValueError
        If the sites cannot make a round, or an update holds what must not leave.
    """
    if n_elsewhere == 0:
        check_sites(sites, strategy, protections, fraction, min_sites)
    payload.add_totals(protections, "training", {site.name: strategy.weight(site.n_obs) for site in sites})
    validating = {site.name: float(site.n_validation) for site in sites if site.n_validation}
    payload.add_totals(protections, "evaluation", validating)
    is_noisy = any(isinstance(protection, SpendsPrivacy) for protection in protections)  # then no loss is reported
    for site in sites:
        update = site.fit(1, state)
        _list([replace(update, metrics={}) if is_noisy else update], protections, payload, n_rounds)
        validation = site.evaluate(1, state)
        _list([] if validation is None else [validation], protections, payload, n_rounds)
    if journal is not None:
        journal.log("dry run", arrays=payload.records())


def _list(updates: Sequence[Update], protections: Sequence[Protection], payload: Payload, n_rounds: int) -> None:
    payload.check(updates)
    changing = [protection for protection in protections if protection.adds_alike]
    payload.plan([encode(changing, update) for update in updates], protections, n_rounds)
