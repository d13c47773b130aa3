"""The typical cell of a class, and what a server reads that sends crafted weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from scinfl._audit._attack_target import with_key
from scinfl._audit._findings import CURIOUS, STEALING, finding
from scinfl._audit._simulated_site import OPEN
from scinfl._audit.classifier._sender import Sender, sender_of
from scinfl._audit.classifier._target import Rows, Target
from scinfl.federation import State
from scinfl.nn import SecretProjection, keyed_layers
from scinfl.privacy import Key, attacks, check_received


def invert_classes(target: Target, *, n_labels: int, n_iterations: int) -> list[dict[str, Any]]:
    """Search for the typical cell of each class, and see whether it is more than that."""
    prior = attacks.CellPrior.from_cells(target.public.x.numpy())
    x, codes = target.train.x.numpy(), target.train.y.numpy()
    labels = [int(label) for label in np.unique(codes)][:n_labels]
    networks = [(STEALING, target.stripped)]
    if target.is_keyed:
        # what a layer keeps of its key may come from inference, and then takes no gradients; a copy reads it again
        networks.append((CURIOUS, with_key(target.network, target.key).eval()))
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
    sender = sender_of(target, fresh=True)
    if target.is_keyed and not target.hides_updates and not target.keeps_order and sender.first is not None:
        return []  # a trained meta learner
    public = target.public.x.numpy()
    honest = {name: p.detach() for name, p in sender.network.named_parameters() if name in sender.shared}
    known = _Trap.set_up(sender, with_key(sender.network, target.key).eval(), public, target.rng)
    cases = [("server + one site" if target.is_keyed else "malicious server", known, known.crafted.state, "opened")]
    if target.is_keyed:
        guess = _Trap.set_up(sender, with_key(sender.network, Key.generate()).eval(), public, target.rng)
        cases.append(("malicious server", guess, _as_read(target, guess.crafted.state), "travelling"))
    baseline = _trapped(target, known, honest, "opened", n_cells, n_trials)
    rows = []
    for adversary, trap, state, what in cases:
        scores = _trapped(target, trap, state, what, n_cells, n_trials)
        noticed = _is_noticed({name: value for name, value in state.items() if name in honest}, honest)
        setting = f"one step on {n_cells} cells, {'noticed' if noticed else 'not noticed'} at the site"
        for metric, score in scores.items():
            rows.append(
                finding(
                    "cells by crafted weights",
                    adversary,
                    "imprint",
                    metric,
                    score,
                    float(np.mean(baseline[metric])),
                    baseline_name="honest weights",
                    uploads=OPEN,
                    setting=setting,
                )
            )
    return rows


@dataclass(frozen=True)
class _Trap:
    """Crafted weights, and the projection that the malicious server has or guesses."""

    network: nn.Module
    crafted: attacks.Imprint
    projection: np.ndarray | None

    @classmethod
    def set_up(cls, sender: Sender, network: nn.Module, public: np.ndarray, rng: int) -> _Trap:
        layers = [layer for layer in keyed_layers(network).values() if isinstance(layer, SecretProjection)]
        projection = layers[0](torch.eye(layers[0].in_features)).T.numpy() if layers else None
        return cls(sender.network, attacks.imprint(network, public, rng=rng), projection)

    def read(self, change: State, public: np.ndarray) -> np.ndarray:
        """Cells in the change of a step."""
        layer = self.crafted.layer
        found = attacks.read_imprint(change[f"{layer}.weight"], change[f"{layer}.bias"], self.crafted.n_bins)
        return found if self.projection is None else attacks.unproject(found, self.projection, public)


def _as_read(target: Target, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a site makes of plain weights that are sent as if they were locked."""
    opened = target.view.for_training(target.key).open_state
    return {name: value.detach() for name, value in opened({name: p.numpy() for name, p in state.items()}).items()}


def _trapped(
    target: Target, trap: _Trap, state: Mapping[str, torch.Tensor], what: str, n_cells: int, n_trials: int
) -> dict[str, list[float]]:
    network = with_key(trap.network, target.key).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name in state:
                parameter.copy_(state[name])
    crafting, public = Sender(network, target), target.public.x.numpy()
    scores: dict[str, list[float]] = {"share of cells recovered": [], "Pearson with the most similar": []}
    for trial in range(n_trials):
        batch = at_most(target.train, n_cells, target.rng + trial)
        true, found = batch.x.numpy(), trap.read(getattr(crafting.step(batch), what), public)
        scores["share of cells recovered"].append(attacks.share_recovered(true, found))
        scores["Pearson with the most similar"].append(
            float(attacks.correlations(true, found).max(1, initial=0).mean())
        )
    return scores


def _is_noticed(state: dict[str, torch.Tensor], honest: dict[str, torch.Tensor]) -> bool:
    """Whether a site refuses weights, or warns of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        try:
            check_received(*({name: value.numpy() for name, value in side.items()} for side in (state, honest)))
        except (ValueError, UserWarning):
            return True
    return False


def at_most(rows: Rows, n: int, rng: int) -> Rows:
    """Some of the cells, if there are more."""
    return rows.take(np.random.default_rng(rng).permutation(len(rows))[:n])
