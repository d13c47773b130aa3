"""Properties of a site as a whole and of single persons."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scinfl._audit._attack_target import draw_again
from scinfl._audit._findings import CURIOUS, STEALING, finding
from scinfl._audit._simulated_site import COLLUDING, OPEN, Sent
from scinfl._audit.classifier._sender import Sender, sender_of
from scinfl._audit.classifier._server import at_most
from scinfl._audit.classifier._target import Rows, Target
from scinfl.privacy import attacks

_LARGEST_SITE = 200  # cells of a simulated site


@dataclass(frozen=True)
class _Shares:
    """A property of public cells, and its shares at every site."""

    codes: np.ndarray
    sites: list[Rows]
    true: list[np.ndarray]

    @classmethod
    def of(cls, target: Target, column: str | None) -> _Shares:
        names = np.unique(target.train.sites)
        sites = [target.train.take(np.flatnonzero(target.train.sites == name)) for name in names]
        parts = [target.public, *sites]
        if column is None:
            codes = [part.y.numpy() for part in parts]
        else:
            known = sorted(set(target.public.obs[column].astype(str)))
            codes = [pd.Categorical(part.obs[column].astype(str), categories=known).codes for part in parts]
        n = int(codes[0].max()) + 1
        true = [np.bincount(own[(own >= 0) & (own < n)], minlength=n) / len(own) for own in codes[1:]]
        return cls(codes[0], sites, true)

    def baseline(self) -> float:
        """Overlap of the public shares with those of the sites."""
        public = np.bincount(self.codes, minlength=len(self.true[0])) / len(self.codes)
        return float(np.mean([_overlap(public, shares) for shares in self.true]))


def proportions(target: Target, column: str | None = None, *, n_simulated: int) -> list[dict[str, Any]]:
    """Infer the shares of the classes, or of the values of a column, at every site from its first local round."""
    sender = sender_of(target, fresh=True)
    if sender.last_bias is None:
        return []
    shares = _Shares.of(target, column)
    n_cells = int(min(np.median([len(site) for site in shares.sites]), _LARGEST_SITE))
    sent = [sender.round(at_most(site, n_cells, target.rng)) for site in shares.sites]
    reads = [("server", OPEN, "travelling")]
    if target.is_keyed:
        reads.append(("server + one site", COLLUDING, "opened"))
    rows = []
    for adversary, uploads, what in reads:
        knows = what == "opened" or target.keeps_order
        player = sender if knows else _own_sender(target)
        names = sorted(sender.shared) if knows else [sender.last_bias]
        overlaps = _overlaps(target, shares, player, names, sent, what, n_cells, n_simulated)
        rows.append(
            finding(
                "shares of a site",
                adversary,
                "meta-classifier on simulated sites",
                f"overlap of the shares of {'classes' if column is None else repr(column)}",
                overlaps,
                shares.baseline(),
                baseline_name="public shares",
                uploads=uploads,
                setting=f"first round of {len(shares.sites)} sites",
            )
        )
    return rows


def _overlaps(
    target: Target,
    shares: _Shares,
    player: Sender,
    names: Sequence[str],
    sent: Sequence[Sent],
    what: str,
    n_cells: int,
    n_simulated: int,
) -> list[float]:
    """Overlap of the true shares of every site with those inferred from its update."""

    def send(drawn: np.ndarray) -> dict[str, np.ndarray]:
        played = player.round(target.public.take(drawn))
        return {name: played.opened[name] for name in names}

    played, known = attacks.simulate_sites(shares.codes, send, n_sites=n_simulated, n_cells=n_cells, rng=target.rng)
    found = []
    for own, true in zip(sent, shares.true, strict=True):
        update = attacks.flatten({name: getattr(own, what)[name] for name in names})
        found.append(_overlap(attacks.infer_property(played, known, update), true))
    return found


def attribute(target: Target, column: str) -> list[dict[str, Any]]:
    """Infer an attribute of cells from the output of the model, against inference from their labels."""
    values = target.test.obs[column].astype(str).to_numpy()
    labels = np.eye(len(target.model.labels))[target.test.y.numpy()]
    try:
        baseline = attacks.infer_attribute(labels, values, rng=target.rng)
    except ValueError:
        return []  # too few of each value
    rows = []
    networks = [(STEALING, target.stripped)]
    if target.is_keyed:
        networks.append((CURIOUS, target.network))
    for adversary, network in networks:
        outputs = np.log(attacks.outputs_of(network, target.test.x) + 1e-6)
        accuracy = attacks.infer_attribute(np.hstack([outputs, labels]), values, rng=target.rng)
        rows.append(
            finding(
                "attribute of a person",
                adversary,
                "regression on outputs and label",
                f"balanced accuracy for '{column}'",
                accuracy,
                baseline,
                baseline_name="from the label",
            )
        )
    return rows


def _own_sender(target: Target) -> Sender:
    """A network of the same shape that a server without the key simulates sites with."""
    network = copy.deepcopy(target.plain)
    draw_again(network, target.rng + 1)
    return Sender(network, target)


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """One less half the absolute differences of two distributions."""
    return float(1 - 0.5 * np.abs(a - b).sum())
