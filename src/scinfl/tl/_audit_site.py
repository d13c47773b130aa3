"""What a class is like, and what a server gets that sends crafted weights."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pandas as pd
import torch

from scinfl.privacy import attacks
from scinfl.privacy._received import check_received
from scinfl.tl._audit_findings import finding
from scinfl.tl._audit_sender import Sender, Sent
from scinfl.tl._audit_target import Rows, Target


def invert_classes(target: Target, *, n_labels: int, n_iterations: int) -> list[dict[str, Any]]:
    """Search for the typical cell of each class, and see whether it is more than that."""
    prior = attacks.CellPrior.from_cells(target.public.x.numpy())
    x, codes = target.train.x.numpy(), target.train.y.numpy()
    labels = [int(label) for label in np.unique(codes)][:n_labels]
    networks = [("thief", target.stripped)]
    if target.is_keyed:
        networks.append(("fellow site", target.network))
    rows = []
    for adversary, network in networks:
        scores = []
        for label in labels:
            found = attacks.invert_class(network, label, prior, n_iterations=n_iterations, rng=target.rng)
            scores.append(attacks.inversion_scores(found, x, codes, label))
        table = pd.DataFrame(scores)
        single, nearest = table["single_cells"].mean(), table["nearest_cell"].mean()
        rows.append(
            finding(
                "typical cell of a class",
                adversary,
                "model inversion",
                "correlation with the class mean",
                table["own_mean"].to_numpy(),
                float(table["other_mean"].mean()),
                baseline_name="with another class",
                setting=f"single cells {single:.2f}, nearest {nearest:.2f}",
            )
        )
    return rows


def malicious(target: Target, *, n_cells: int, n_trials: int) -> list[dict[str, Any]]:
    """Send crafted weights, read cells off one step, and see whether the site would notice."""
    sender = target.sender(fresh=True)
    if sender.first is None or (target.is_keyed and not target.hides_updates):
        return []
    crafted = attacks.imprint(sender.network, target.public.x.numpy(), rng=target.rng)
    honest = {name: p.detach() for name, p in sender.network.named_parameters()}
    cases = [("server + one site" if target.is_keyed else "malicious server", crafted.state, "opened")]
    if target.is_keyed:
        opened = target.model._training_network(target.key)[2]
        as_read = opened({name: value.numpy() for name, value in crafted.state.items()})
        cases.append(("malicious server", {name: value.detach() for name, value in as_read.items()}, "travelling"))
    baseline = np.mean(_imprinted(target, sender, honest, crafted, "opened", n_cells, n_trials))
    rows = []
    for adversary, state, what in cases:
        shares = _imprinted(target, sender, state, crafted, what, n_cells, n_trials)
        noticed = _is_noticed(state, honest)
        rows.append(
            finding(
                "cells by crafted weights",
                adversary,
                "imprint",
                "share of cells recovered",
                shares,
                float(baseline),
                baseline_name="honest weights",
                uploads="in the open",
                setting=f"one step on {n_cells} cells, {'noticed' if noticed else 'not noticed'} at the site",
            )
        )
    return rows


def _imprinted(
    target: Target,
    sender: Sender,
    state: dict[str, torch.Tensor],
    crafted: attacks.Imprint,
    what: str,
    n_cells: int,
    n_trials: int,
) -> list[float]:
    network = copy.deepcopy(sender.network)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name in state:
                parameter.copy_(state[name])
    crafting = Sender(network, target)
    shares = []
    for trial in range(n_trials):
        batch = at_most(target.train, n_cells, target.rng + trial)
        sent: Sent = crafting.step(batch)
        change = getattr(sent, what)
        found = attacks.read_imprint(change[f"{crafted.layer}.weight"], change[f"{crafted.layer}.bias"], crafted.n_bins)
        shares.append(attacks.share_recovered(batch.x.numpy(), found))
    return shares


def _is_noticed(state: dict[str, torch.Tensor], honest: dict[str, torch.Tensor]) -> bool:
    try:
        check_received(*({name: value.numpy() for name, value in side.items()} for side in (state, honest)))
    except ValueError:
        return True
    return False


def at_most(rows: Rows, n: int, rng: int) -> Rows:
    """Some of the cells, if there are more."""
    return rows.take(np.random.default_rng(rng).permutation(len(rows))[:n])
