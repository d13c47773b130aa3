"""Attacks on a classifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from anndata import AnnData

from scinfl._audit._alignment import AlignmentEffort
from scinfl._audit._plan import Job, Plan, Request
from scinfl._audit._settings import HELD_OUT, protections_to_watch, twin_of
from scinfl._audit.classifier import _alignment as alignment
from scinfl._audit.classifier import _cells as cells
from scinfl._audit.classifier import _inversion as inversion
from scinfl._audit.classifier import _membership as members
from scinfl._audit.classifier import _model_stealing as model_stealing
from scinfl._audit.classifier import _properties as properties
from scinfl._audit.classifier import _server as site
from scinfl._audit.classifier._settings import not_tested, parameters_of
from scinfl._audit.classifier._target import Rows, Target, split_by_group
from scinfl.model import Classifier
from scinfl.model.base import ModelView
from scinfl.privacy import Key, attacks


@dataclass(frozen=True)
class _Effort:
    """How much of each attack."""

    n_cells: int
    n_batches: int
    batch_sizes: tuple[int, ...]
    n_iterations: int
    site_sizes: tuple[int, ...]
    n_restarts: int
    n_keys: int
    samples: tuple[int, ...]
    n_attackers: int
    n_attack_steps: int
    n_shadows: int
    n_simulated: int
    alignment: AlignmentEffort


_FULL = _Effort(
    40, 8, (4, 8), 250, (10, 50), 25, 50, (50, 200), 3, 600, 24, 60, AlignmentEffort(8, 1800, 20, 12_000_000)
)
_QUICK = _Effort(12, 3, (4,), 80, (10,), 5, 10, (50,), 1, 200, 0, 20, AlignmentEffort(2, 600, 4, 1_000_000))


def plan(request: Request, after_each: Callable[[], object]) -> Plan:
    """Attacks on a classifier, which is unlocked."""
    quick, effort = request.quick, _QUICK if request.quick else _FULL
    target = _target(
        request.data,
        request.model,
        request.held_out,
        request.key,
        request.training,
        request.rng,
        watch=not quick and request.key is not None,
    )
    return Plan(
        _jobs(target, effort, request.attributes, after_each),
        parameters_of(target, is_twin=request.held_out is None, quick=quick),
        partial(not_tested, target, quick=quick),
        effort.n_shadows,
    )


def _jobs(
    target: Target, effort: _Effort, attributes: Sequence[str], after_each: Callable[[], object]
) -> dict[str, Job]:
    jobs: dict[str, Job] = {
        "first layer": partial(
            cells.reconstruct,
            target,
            n_cells=effort.n_cells,
            n_batches=effort.n_batches,
            batch_sizes=effort.batch_sizes,
        ),
        "sums": partial(cells.aggregate, target, n_batches=effort.n_batches),
        "inversion": partial(
            inversion.invert,
            target,
            n_batches=max(effort.n_batches // 2, 2),
            n_iterations=effort.n_iterations,
            site_sizes=effort.site_sizes,
        ),
        "cells and key": partial(
            inversion.invert_jointly,
            target,
            n_updates=effort.n_batches,
            n_iterations=effort.n_iterations,
            n_restarts=effort.n_restarts,
        ),
        "matching": partial(cells.match_key, target, n_restarts=effort.n_restarts, n_cells=effort.n_cells),
        "Gram alignment": partial(alignment.align, target, effort.alignment),
        "key": partial(model_stealing.extract, target),
        "wrong keys": partial(model_stealing.use, target, n_keys=effort.n_keys),
    }
    for n in effort.samples:
        jobs[f"model stealing, {n} labelled samples"] = partial(
            model_stealing.steal, target, n, n_seeds=effort.n_attackers, n_steps=effort.n_attack_steps
        )
    jobs["membership"] = partial(members.membership, target, n_shadows=effort.n_shadows, after_each=after_each)
    jobs["membership from an update"] = partial(members.from_update, target)
    jobs["shares"] = partial(properties.proportions, target, n_simulated=effort.n_simulated)
    for column in attributes:
        jobs[f"shares of {column}"] = partial(properties.proportions, target, column, n_simulated=effort.n_simulated)
        jobs[f"attribute {column}"] = partial(properties.attribute, target, column)
    jobs["classes"] = partial(site.invert_classes, target, n_labels=30, n_iterations=effort.n_iterations)
    jobs["crafted weights"] = partial(site.malicious, target, n_cells=32, n_trials=effort.n_batches)
    return jobs


def _target(
    adata: AnnData,
    model: Classifier,
    held_out: AnnData | None,
    key: Key | None,
    training: Mapping[str, Any],
    rng: int,
    *,
    watch: bool,
) -> Target:
    """Cells of every party, and the twin, whose training a server watches."""
    setup = ModelView(model).setup
    attacked, inside, watched = model, adata, None
    if held_out is None:
        groups = np.arange(adata.n_obs) if setup["group_key"] is None else adata.obs[setup["group_key"]].astype(str)
        kept, aside = split_by_group(groups, HELD_OUT, rng)
        inside, held_out = adata[kept].copy(), adata[aside].copy()
        attacked, watched = _twin(inside, model, key, training)
    elif watch:
        watched = _twin(adata.copy(), model, key, training)[1]
    train, outside = Rows.of(inside, attacked), Rows.of(held_out, attacked)
    groups = np.arange(len(outside)) if outside.groups is None else outside.groups
    test, public = split_by_group(groups, 0.5, rng)
    return Target(attacked, key, train, outside.take(public), outside.take(test), training, rng, watched)


def _twin(
    adata: AnnData, model: Classifier, key: Key | None, training: Mapping[str, Any]
) -> tuple[Classifier, attacks.Watcher]:
    """Train a model of the same settings, with every upload recorded."""
    watcher = attacks.Watcher()
    return twin_of(ModelView(model), adata, key, training, [*protections_to_watch(training), watcher]), watcher
