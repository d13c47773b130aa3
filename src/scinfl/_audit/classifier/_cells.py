"""What can be reconstructed of cells from what a site sends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from scinfl._audit._findings import finding
from scinfl._audit._simulated_site import Sent, masked_change
from scinfl._audit.classifier._model_stealing import MOST_FEATURES
from scinfl._audit.classifier._sender import Sender, sender_of
from scinfl._audit.classifier._target import Rows, Target
from scinfl.nn import CoordinateLinear
from scinfl.privacy import attacks

_FAMILY = "reconstruction"
_SMALLEST_SITE = 10  # `min_cells` of training
Read = Callable[[Sent], tuple[np.ndarray, np.ndarray]]


def views(target: Target, layer: str) -> Iterator[tuple[str, str, Read]]:
    """Who reads a layer of an update, by which uploads, and how."""

    def travelling(sent: Sent) -> tuple[np.ndarray, np.ndarray]:
        return sent.travelling[f"{layer}.weight"], sent.travelling[f"{layer}.bias"]

    def opened(sent: Sent) -> tuple[np.ndarray, np.ndarray]:
        return sent.opened[f"{layer}.weight"], sent.opened[f"{layer}.bias"]

    def masked(sent: Sent) -> tuple[np.ndarray, np.ndarray]:
        return masked_change(sent, layer, target.key)

    yield "server", "in the open", travelling
    if target.keeps_order or target.hides_updates:
        yield "server + one site", "in the open or keyed sums", opened  # the key of a site opens keyed sums
    yield "server", "keyed sums", masked
    yield "outsider", "keyed sums", masked


def reconstruct(target: Target, *, n_cells: int, n_batches: int, batch_sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Read cells off the first layer: one cell, batches, and a whole local round of the smallest site."""
    rows: list[dict[str, Any]] = []
    for fresh, when in ((True, "first round"), (False, "last round")):
        sender = sender_of(target, fresh=fresh)
        if sender.first is None:
            return []
        sizes = [(1, n_cells), *((size, n_batches) for size in batch_sizes if fresh)]
        for adversary, uploads, read in views(target, sender.first):
            if adversary == "outsider" and not fresh:
                continue  # he reads what the server reads
            for size, n_trials in sizes:
                found = _read_batches(target, sender.step, read, size, n_trials)
                setting = f"one step on {size} cell{'s' if size > 1 else ''}, {when}"
                rows += rated_cells(target, found, adversary, uploads, "first layer", setting)
            if fresh:
                found = _read_batches(target, sender.round, read, _SMALLEST_SITE, n_batches)
                setting = f"local round of a site of {_SMALLEST_SITE} cells"
                rows += rated_cells(target, found, adversary, uploads, "first layer", setting)
    return rows


def aggregate(target: Target, *, n_batches: int) -> list[dict[str, Any]]:
    """A fellow site subtracts its own update from the sum and unmixes the rest, one cell at each of the others."""
    sender = sender_of(target, fresh=True)
    n_others = len(np.unique(target.train.sites)) - 1
    if sender.first is None or n_others < 1:
        return []
    name = sender.first

    def send(rows: Rows) -> Sent:
        steps = [sender.step(rows.take(np.array([number]))) for number in range(len(rows))]
        total = {part: sum(step.opened[part] for step in steps) for part in steps[0].opened}
        return Sent(total, total, {})  # type: ignore[arg-type]

    def read(sent: Sent) -> tuple[np.ndarray, np.ndarray]:
        return sent.opened[f"{name}.weight"], sent.opened[f"{name}.bias"]

    layer: Any = sender.network.get_submodule(name)
    n_others = min(n_others, *layer.weight.shape)
    found = _read_batches(target, send, read, n_others, n_batches)
    setting = f"sum of {n_others} other sites, one step on one cell each"
    return rated_cells(target, found, "fellow site", "in the open or keyed sums", "first layer", setting)


def match_key(target: Target, *, n_restarts: int, n_cells: int) -> list[dict[str, Any]]:
    """Learn order and signs of the features from the updates of a whole training, and read cells with them."""
    name = target.model.first_layer
    n_features = target.train.x.shape[1]
    sender = sender_of(target, fresh=True)
    if target.watched is None or target.key is None or name is None or sender.first is None:
        return []
    layer: Any = target.network.get_submodule(name)
    if not isinstance(layer, CoordinateLinear) or n_features > MOST_FEATURES:
        return []
    true = np.argsort(target.key.coordinates(f"{name}/permutation", (n_features,)), kind="stable")
    public = target.public.x.numpy()
    seen = target.watched.mean(f"{name}.weight", (layer.out_features, n_features))
    final = [layer.weight.detach().numpy()]
    rows = []
    for adversary, uploads, weights, setting in (
        ("server", "in the open", seen, f"means of {len(seen)} rounds"),
        ("thief", "", final, "final weights"),
    ):
        order = attacks.match_features(weights, public, n_restarts=n_restarts, rng=target.rng)
        share = float((order == true).mean())
        row = partial(finding, "the key", adversary, "matching features", uploads=uploads, setting=setting)
        rows.append(row("share of the order", share, 1 / n_features, baseline_name="chance"))
        if adversary == "server":
            signs = attacks.match_signs(weights, public, order)
            rows += _read_with(target, sender, order, signs, n_cells)
    return rows


def _read_with(
    target: Target, sender: Sender, order: np.ndarray, signs: np.ndarray, n_cells: int
) -> list[dict[str, Any]]:
    """Cells of a server without the key that matched what the key does to the features."""
    public = target.public.x.numpy()

    def read(sent: Sent) -> tuple[np.ndarray, np.ndarray]:
        return sent.travelling[f"{sender.first}.weight"], sent.travelling[f"{sender.first}.bias"]

    found = [
        (batch, attacks.unscramble(cells, order, signs, public))
        for batch, cells in _read_batches(target, sender.step, read, 1, n_cells)
    ]
    setting = "one step on 1 cell, first round"
    return rated_cells(target, found, "server", "in the open", "first layer, matched order", setting)


def _read_batches(
    target: Target, send: Callable[[Rows], Sent], read: Read, size: int, n_trials: int
) -> list[tuple[Rows, np.ndarray]]:
    sparse = float((target.public.x == 0).float().mean()) > 0.3
    found = []
    for trial in range(n_trials):
        batch = draw_batch(target, size, trial)
        weight, bias = read(send(batch))
        n = min(size, *weight.shape)
        cells = attacks.recover_inputs(weight, bias, n, sparse=sparse, rng=target.rng)
        found.append((batch, np.vstack([cells, np.zeros((size - n, cells.shape[1]))])))
    return found


def draw_batch(target: Target, size: int, trial: int) -> Rows:
    """Training cells of one trial, the same for all attackers."""
    generator = np.random.default_rng([target.rng, size, trial])
    return target.train.take(generator.choice(len(target.train), min(size, len(target.train)), replace=False))


def rated_cells(
    target: Target, found: list[tuple[Rows, np.ndarray]], adversary: str, uploads: str, attack: str, setting: str
) -> list[dict[str, Any]]:
    """Rows of all scores, against the mean cell or random public cells, whichever is the stronger baseline."""
    public = target.public.x.numpy()
    candidates = public[:500]
    own, means, random = [], [], []
    for trial, (batch, cells) in enumerate(found):
        true = batch.x.numpy()
        drawn = np.random.default_rng([target.rng, 7, trial]).choice(len(public), len(true))
        own.append(attacks.reconstruction_scores(true, cells, candidates))
        means.append(attacks.reconstruction_scores(true, attacks.mean_cell(true, public), candidates))
        random.append(attacks.reconstruction_scores(true, public[drawn], candidates))
    tables = [_mean_of(scores) for scores in (own, means, random)]
    rows = []
    for metric, name in _METRICS.items():
        values = np.concatenate([scores[metric].to_numpy() for scores in own])
        if np.isnan(values).any():
            continue
        baseline = {"mean cell": tables[1][metric], "random public cells": tables[2][metric]}
        strongest = max(baseline, key=lambda kind: baseline[kind])
        rows.append(
            finding(
                _FAMILY,
                adversary,
                attack,
                name,
                values,
                baseline[strongest],
                baseline_name=strongest,
                uploads=uploads,
                setting=setting,
            )
        )
    return rows


_METRICS = {
    "pearson": "Pearson",
    "top_features": "top features found",
    "nonzero": "zeros right",
    "reidentified": "re-identified",
}


def _mean_of(scores: list[Any]) -> dict[str, float]:
    return {metric: float(np.mean([part[metric].mean() for part in scores])) for metric in _METRICS}
