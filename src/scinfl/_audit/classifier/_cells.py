"""What can be reconstructed of cells from what a site sends."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from scinfl._audit._findings import CURIOUS, STEALING, finding
from scinfl._audit._ratings import SCORES, Found, rated
from scinfl._audit._simulated_site import COLLUDING, MASKED, OPEN, Sent, read, readers
from scinfl._audit.classifier._model_stealing import MOST_FEATURES
from scinfl._audit.classifier._sender import sender_of
from scinfl._audit.classifier._target import Rows, Target
from scinfl.nn import CoordinateLinear
from scinfl.privacy import attacks

_SMALLEST_SITE = 10  # `min_cells` of training


def reconstruct(target: Target, *, n_cells: int, n_batches: int, batch_sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Read cells off the first layer: one cell, batches, and a whole local round of the smallest site."""
    rows: list[dict[str, Any]] = []
    for fresh, when in ((True, "first round"), (False, "last round")):
        sender = sender_of(target, fresh=fresh)
        if sender.first is None:
            return []
        sizes = [(1, n_cells), *((size, n_batches) for size in batch_sizes if fresh)]
        outsider = [("outsider", MASKED, "masked")] if fresh else []  # in later rounds it reads the same
        for adversary, uploads, what in [*readers(target), *outsider]:
            for size, n_trials in sizes:
                found = _read_batches(target, sender.step, sender.first, what, size, n_trials)
                setting = f"one step on {size} cell{'s' if size > 1 else ''}, {when}"
                rows += rated_cells(target, found, adversary, uploads, "first layer", setting)
            if fresh:
                found = _read_batches(target, sender.round, sender.first, what, _SMALLEST_SITE, n_batches)
                setting = f"local round of a site of {_SMALLEST_SITE} cells"
                rows += rated_cells(target, found, adversary, uploads, "first layer", setting)
    return rows


def aggregate(target: Target, *, n_batches: int) -> list[dict[str, Any]]:
    """A site subtracts its own update from the sum and unmixes the rest, one cell at each of the others."""
    sender = sender_of(target, fresh=True)
    n_others = len(np.unique(target.train.sites)) - 1
    if sender.first is None or n_others < 1:
        return []

    def send(rows: Rows) -> Sent:
        steps = [sender.step(rows.take(np.array([number]))) for number in range(len(rows))]
        total = {part: sum(step.opened[part] for step in steps) for part in steps[0].opened}
        return Sent(total, total, {})  # type: ignore[arg-type]

    layer: Any = sender.network.get_submodule(sender.first)
    n_others = min(n_others, *layer.weight.shape)
    found = _read_batches(target, send, sender.first, "opened", n_others, n_batches)
    setting = f"sum of {n_others} other sites, one step on one cell each"
    return rated_cells(target, found, CURIOUS, COLLUDING, "first layer", setting)


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
    true = target.true_order(name)
    public = target.public.x.numpy()
    seen = target.watched.mean(f"{name}.weight", (layer.out_features, n_features))
    final = [layer.weight.detach().numpy()]
    rows = []
    for adversary, uploads, weights, setting in (
        ("server", OPEN, seen, f"means of {len(seen)} rounds"),
        (STEALING, "", final, "final weights"),
    ):
        order = attacks.match_features(weights, public, n_restarts=n_restarts, rng=target.rng)
        share = float((order == true).mean())
        row = partial(finding, "the key", adversary, "matching features", uploads=uploads, setting=setting)
        rows.append(row("share of the order", share, 1 / n_features, baseline_name="chance"))
        if adversary == "server":
            signs = attacks.match_signs(weights, public, order)
            found = [
                (true, attacks.unscramble(cells, order, signs, public))
                for true, cells in _read_batches(target, sender.step, sender.first, "travelling", 1, n_cells)
            ]
            attack = "first layer, matched order"
            rows += rated_cells(target, found, "server", OPEN, attack, "one step on 1 cell, first round")
    return rows


def _read_batches(
    target: Target, send: Callable[[Rows], Sent], layer: str, what: str, size: int, n_trials: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """True cells of every trial, and those that were read off a layer."""
    sparse = float((target.public.x == 0).float().mean()) > 0.3
    found = []
    for trial in range(n_trials):
        batch = draw_batch(target, size, trial)
        change = read(send(batch), what, target)
        weight, bias = change[f"{layer}.weight"], change[f"{layer}.bias"]
        n = min(size, *weight.shape)
        cells = attacks.recover_inputs(weight, bias, n, sparse=sparse, rng=target.rng)
        found.append((batch.x.numpy(), np.vstack([cells, np.zeros((size - n, cells.shape[1]))])))
    return found


def draw_batch(target: Target, size: int, trial: int) -> Rows:
    """Training cells of one trial, the same for all attackers."""
    generator = np.random.default_rng([target.rng, size, trial])
    return target.train.take(generator.choice(len(target.train), min(size, len(target.train)), replace=False))


def rated_cells(
    target: Target, found: Found, adversary: str, uploads: str, attack: str, setting: str
) -> list[dict[str, Any]]:
    """Rows of all scores, against the mean cell or random public cells, whichever is the stronger baseline."""
    return rated(
        "reconstruction",
        adversary,
        attack,
        found,
        target.public.x.numpy(),
        what="cell",
        metrics=tuple(SCORES),
        uploads=uploads,
        setting=setting,
        chance=False,
        rng=target.rng,
    )
