"""Perturbations of a site and their mean changes, from what it sends."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from scinfl._audit._findings import CURIOUS, GUESS, finding
from scinfl._audit._ratings import rated
from scinfl._audit._recorder import read_arrays, received_before_training
from scinfl._audit._simulated_site import COLLUDING, Sent, read, readers
from scinfl._audit.gears._sites import ROWS, Sites
from scinfl._audit.gears._target import GEARSTarget
from scinfl.federation import Protection, State
from scinfl.model.gears import Condition, mean_changes, pooled_changes, pooled_counts
from scinfl.privacy import attacks

_WHICH, _MEANS = "perturbations of a site", "mean changes"
_BIAS = "cross_readout.weight"  # its last column is added last
_LEAST = 1e-3  # of the strongest row, below which one is taken for rounding


def prepared(sites: Sites) -> list[dict[str, Any]]:
    """Read the sums that sites send before training: cells of each perturbation, and its mean change."""
    target = sites.target
    if len(target.sites) < 2:
        return []
    conditions = sorted({c for cells in target.sites.values() for c in cells.conditions if c.genes})
    sets = sorted({condition.genes for condition in conditions})
    counts = {name: cells.counts() for name, cells in target.sites.items()}
    known = {name: mean_changes(cells.conditions, sites.moments[name]) for name, cells in target.sites.items()}

    def prepare(protections: Sequence[Protection]) -> None:
        pooled_counts(conditions, counts, protections, "training cells")
        pooled_changes(sets, known, protections)

    rows = []
    for adversary, uploads, received in received_before_training(prepare, target.key):
        rows += _which(target, received["training cells"], conditions, adversary, uploads)
        rows += _means(sites, received["changes"], sets, adversary, uploads)
    return rows + _others(sites, sets)


def _which(
    target: GEARSTarget, received: dict[str, State], conditions: list[Condition], adversary: str, uploads: str
) -> list[dict[str, Any]]:
    found, true, agreement = [], [], []
    for name, state in received.items():
        has = np.isin(
            np.arange(len(conditions)), [conditions.index(c) for c in target.sites[name].conditions if c.genes]
        )
        guess = read_arrays(state, {"counts": (len(conditions),)})["counts"] > 0
        found.append(int(guess.sum()))
        true.append(int(has.sum()))
        if not has.all():
            agreement.append(balanced_accuracy_score(has, guess))
    row = partial(finding, _WHICH, adversary, "sums before training", uploads=uploads)
    rows = _numbers(row, found, true, len(conditions), f"{len(true)} sites")
    if agreement:
        rows.append(row("balanced accuracy of which", agreement, 0.5, baseline_name=GUESS))
    return rows


def _numbers(row: Any, found: Sequence[int], true: Sequence[int], n_most: int, setting: str) -> list[dict[str, Any]]:
    """How many perturbations a site has, against the guess that it has half of them, or all, whichever does better."""
    guesses = [np.full(len(true), n) for n in (n_most // 2, n_most)]
    guess = max(guesses, key=lambda own: float(_nearness(own, true).mean()))
    exact, near = (np.asarray(found) == true).astype(float), _nearness(found, true)
    rows = []
    for metric, scores, baseline in (
        ("number is exact", exact, float((guess == true).mean())),
        ("number, one less its relative error", near, float(_nearness(guess, true).mean())),
    ):
        rows.append(row(metric, scores, baseline, baseline_name="half or all", setting=setting))
    return rows


def _nearness(found: Any, true: Any) -> np.ndarray:
    found, true = np.asarray(found, float), np.asarray(true, float)
    return 1 - np.abs(found - true) / np.maximum(np.maximum(found, true), 1)


def _means(
    sites: Sites, received: dict[str, State], sets: list[tuple[str, ...]], adversary: str, uploads: str
) -> list[dict[str, Any]]:
    found = []
    for name, state in received.items():
        n_genes = sites.moments[name].mean.shape[1]
        arrays = read_arrays(state, {"sums": (len(sets), n_genes), "counts": (len(sets),)})
        cells = sites.target.sites[name]
        for row, condition in enumerate(cells.conditions):
            if condition.genes and not condition.covariates:
                place = sets.index(condition.genes)
                guess = arrays["sums"][place] / (arrays["counts"][place] or 1)
                found.append((sites.moments[name].mean[[row]], guess[None]))
    return _rated_changes(
        sites.target, found, adversary, uploads, "sums before training", "each perturbation of a site"
    )


def _others(sites: Sites, sets: list[tuple[str, ...]]) -> list[dict[str, Any]]:
    """A site subtracts its own part and reads perturbations that one other site has."""
    owners: dict[tuple[str, ...], list[tuple[str, int]]] = {genes: [] for genes in sets}
    for name, cells in sites.target.sites.items():
        for row, condition in enumerate(cells.conditions):
            if condition.genes and not condition.covariates:
                owners[condition.genes].append((name, row))
    found = []
    for holders in owners.values():
        sums = [sites.moments[name].n_cells[row] * sites.moments[name].mean[row] for name, row in holders]
        counts = [sites.moments[name].n_cells[row] for name, row in holders]
        if not 1 <= len(holders) <= 2:
            continue
        name, row = holders[0]  # the other holder, where there is one, is the attacker
        guess = (sum(sums) - sum(sums[1:])) / (sum(counts) - sum(counts[1:]))
        found.append((sites.moments[name].mean[[row]], guess[None]))
    if not found:
        return []
    setting = "perturbations of one other site"
    return _rated_changes(sites.target, found, CURIOUS, COLLUDING, "sums before training", setting)


def updates(sites: Sites) -> list[dict[str, Any]]:
    """Read an update of the trained network: rows of embeddings that moved, and the gradient of the last bias."""
    if ROWS not in sites.sender.shared:
        return []
    steps = {name: sites.step(name) for name in sites.target.sites}
    rounds = {name: sites.round(name) for name in sites.target.sites}
    rows: list[dict[str, Any]] = []
    for adversary, uploads, what in readers(sites.target):
        knows = what == "opened" or sites.target.keeps_order
        for kind, sent in (("one step", steps), ("local round", rounds)):
            rows += _moved(sites, sent, adversary, uploads, what, kind, knows=knows)
        if _BIAS in sites.sender.shared:
            rows += _last_bias(sites, adversary, uploads, what, knows=knows)
    return rows


def _moved(
    sites: Sites, sent: dict[str, Sent], adversary: str, uploads: str, what: str, kind: str, *, knows: bool
) -> list[dict[str, Any]]:
    """Count the rows that moved, and infer which genes were perturbed, though the graph moves their neighbours too.

    Of a single step, an attacker who knows the order of the rows undoes that; of a round they look for genes all of
    whose neighbours moved.
    """
    graph, before = sites.target.view.ontology, sites.before(travels=what != "opened")
    found, true, areas = [], [], []
    for name, update in sent.items():
        change, has = read(update, what, sites.target)[ROWS], sites.perturbed(name)
        moved = np.abs(change).max(1) > 0 if kind == "one step" else attacks.moved_rows(before, change)
        if kind == "one step" and knows:
            strength = attacks.undo_propagation(change, graph)
            found.append(int((strength > _LEAST * strength.max()).sum()))
        else:
            strength = (moved @ (graph != 0).T) / (graph != 0).sum(1)
            found.append(attacks.number_of_perturbed(int(moved.sum()), graph, rng=sites.target.rng))
        true.append(int(has.sum()))
        if not has.all():
            areas.append(float(roc_auc_score(has, strength)))
    row = partial(finding, _WHICH, adversary, "rows that moved", uploads=uploads)
    setting = kind if knows else f"{kind}, order of the rows unknown"
    rows = _numbers(row, found, true, len(graph), setting)[:1]  # a guess is near the number, too
    if areas:
        rows.append(row("AUC of which", areas, 0.5, baseline_name=GUESS, setting=setting))
    return rows


def _last_bias(sites: Sites, adversary: str, uploads: str, what: str, *, knows: bool) -> list[dict[str, Any]]:
    """Read mean changes off the bias that is added last, after one step on the perturbations."""
    target = sites.target
    variance = target.public.moments.variance.mean(0) if sites.options["loss"] == "quartic" else None
    rows: list[dict[str, Any]] = []
    for size in (1, target.training["batch_size"]):
        found = []
        for number, (name, cells) in enumerate(target.sites.items()):
            own = [row for row, condition in enumerate(cells.conditions) if condition.genes]
            order = np.random.default_rng([target.rng, size, number]).permutation(own).tolist()  # others at each site
            for chosen in [order[start : start + size] for start in range(0, min(len(order), 8 * size), size)]:
                gradient = -read(sites.step(name, chosen), what, target)[_BIAS][:, -1]
                known = sites.predicted(name, chosen) if knows else target.offset
                guess = attacks.missed_change(gradient, variance) + known
                found.append((sites.moments[name].mean[chosen].mean(0)[None], guess[None]))
        setting = f"one step on {'one perturbation' if size == 1 else f'up to {size}, their mean'}"
        rows += _rated_changes(target, found, adversary, uploads, "last bias", setting)
    return rows


def _rated_changes(
    target: GEARSTarget, found: Any, adversary: str, uploads: str, attack: str, setting: str
) -> list[dict[str, Any]]:
    if not found:
        return []
    with torch.no_grad():
        return rated(
            _MEANS,
            adversary,
            attack,
            found,
            target.public.change,
            what="perturbation",
            candidates=np.vstack([target.public.change, target.test.change]),
            uploads=uploads,
            setting=setting,
            rng=target.rng,
        )
