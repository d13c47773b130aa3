"""What can be reconstructed of cells by searching for those that explain an update."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scinfl._audit._simulated_site import COLLUDING, OPEN, Sent
from scinfl._audit.classifier._cells import draw_batch, rated_cells
from scinfl._audit.classifier._model_stealing import MOST_FEATURES
from scinfl._audit.classifier._sender import Sender, sender_of
from scinfl._audit.classifier._target import Target
from scinfl.privacy import attacks

_STEP = {"lr": 0.01}  # a round of Adam is inverted best as if it were one step, too


def invert(target: Target, *, n_batches: int, n_iterations: int, site_sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Search for cells that explain an update: a step, several steps, and a real local round."""
    sender = sender_of(target, fresh=True)
    prior = attacks.CellPrior.from_cells(target.public.x.numpy())
    reads = [] if sender.first is None else [("server", OPEN, "travelling")]
    if target.is_keyed:
        reads.append(("server + one site", COLLUDING, "opened"))
    settings: list[tuple[str, int, dict[str, Any], bool]] = [
        ("one step on 4 cells", 4, _STEP, False),
        ("5 steps on 4 cells", 4, {"n_steps": 5, **_STEP}, False),
        *((f"local round of a site of {size} cells", size, _STEP, True) for size in site_sizes),
    ]
    rows: list[dict[str, Any]] = []
    for adversary, uploads, what in reads:
        knows = what == "opened" or not target.is_keyed
        network = sender.network if knows else sender.as_travelling({})
        for setting, size, local, is_round in settings:
            found = []
            for trial in range(n_batches):
                batch = draw_batch(target, size, trial)
                change = _change(sender.round(batch) if is_round else sender.step(batch, **local), what, knows=knows)
                guess = attacks.invert_update(
                    network,
                    change,
                    _labels(target, network, change, size, local),
                    prior=prior if knows or target.keeps_order else None,
                    local=local,
                    n_iterations=n_iterations,
                    rng=target.rng + trial,
                )
                found.append((batch.x.numpy(), guess))
            attack = "optimisation with priors" if knows else "optimisation without key"
            rows += rated_cells(target, found, adversary, uploads, attack, setting)
    return rows


def invert_jointly(
    target: Target, *, n_updates: int, n_iterations: int, n_restarts: int, size: int = 4
) -> list[dict[str, Any]]:
    """Search for cells and key at once, in updates of one round that a server sees in the open.

    Where the key orders the features, once from nothing, and once from the order that a matcher finds in all updates.
    """
    sender = sender_of(target, fresh=True)
    if not target.is_keyed or sender.first is None:
        return []
    network, public = _keyed(target, sender), target.public.x.numpy()
    batches = [draw_batch(target, size, trial) for trial in range(n_updates)]
    changes = [_change(sender.step(batch, **_STEP), "travelling", knows=True) for batch in batches]
    starts: dict[str, dict[str, Any]] = {"optimisation of cells and key": {}}
    if not target.keeps_order and public.shape[1] <= MOST_FEATURES:
        columns = [np.vstack([change[f"{sender.first}.weight"].numpy() for change in changes])]
        order = attacks.match_features(columns, public, n_restarts=n_restarts, rng=target.rng)
        signs = attacks.match_signs(columns, public, order)
        starts["optimisation of cells and key, matched start"] = {"order": order, "signs": signs}
    rows: list[dict[str, Any]] = []
    for attack, start in starts.items():
        guess = attacks.invert_jointly(
            network,
            changes,
            [_labels(target, network, change, size, _STEP) for change in changes],
            prior=attacks.CellPrior.from_cells(public),
            local=_STEP,
            n_iterations=n_iterations,
            rng=target.rng,
            **start,
        )
        found = [(batch.x.numpy(), cells) for batch, cells in zip(batches, guess.cells, strict=True)]
        setting = f"{n_updates} updates of one step on {size} cells"
        rows += rated_cells(target, found, "server", OPEN, attack, setting)
    return rows


def _keyed(target: Target, sender: Sender) -> nn.Module:
    """Network with its keyed layers and the weights as they travel, without the key."""
    network, travelling = copy.deepcopy(target.network), dict(sender.as_travelling({}).named_parameters())
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name in travelling:
                parameter.copy_(travelling[name])
    return network.eval()


def _change(sent: Sent, what: str, *, knows: bool) -> dict[str, Tensor]:
    """Change of parameters; of modules that read the key only where it is known."""
    change = {name: torch.from_numpy(value).float() for name, value in getattr(sent, what).items()}
    return change if knows else {name: value for name, value in change.items() if ".meta." not in name}


def _labels(
    target: Target, network: nn.Module, change: Mapping[str, Tensor], size: int, local: Mapping[str, Any]
) -> Tensor:
    """Labels that the attacker infers from the last bias, with the mean output of the network."""
    name = "head.bias"
    if name not in change:
        return torch.bincount(target.public.y).argmax().repeat(size)
    expected = attacks.outputs_of(network, target.public.x).mean(0)
    moved = -change[name].numpy() / (local["lr"] * local.get("n_steps", 1))
    if np.abs(moved).sum() > 2:  # no gradient of a cross-entropy is longer: Adam kept the direction alone
        moved = moved / np.abs(moved).max() * expected.mean()
    counts = attacks.infer_label_counts(moved, expected, size)
    return torch.from_numpy(np.repeat(np.arange(len(counts)), counts))
