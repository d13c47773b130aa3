"""Attack a trained model as those would who know how it works."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from tqdm import tqdm

from scinfl import _names
from scinfl._checks import whole_number
from scinfl.model import Classifier
from scinfl.privacy import Key, attacks
from scinfl.tl import _audit_cells as cells
from scinfl.tl import _audit_membership as members
from scinfl.tl import _audit_property as properties
from scinfl.tl import _audit_site as site
from scinfl.tl import _audit_thief as thief
from scinfl.tl._audit_findings import COLUMNS, verdicts
from scinfl.tl._audit_settings import HELD_OUT, check_audit, not_tested, parameters_of, training_of
from scinfl.tl._audit_target import Rows, Target, split_by_group


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
    n_thief_seeds: int
    n_thief_steps: int
    n_shadows: int
    n_simulated: int


_FULL = _Effort(40, 8, (4, 8), 250, (10, 50), 25, 50, (50, 200), 3, 600, 24, 60)
_QUICK = _Effort(12, 3, (4,), 80, (10,), 5, 10, (50,), 1, 200, 0, 20)


def audit(
    adata: AnnData,
    model: Classifier,
    *,
    held_out: AnnData | None = None,
    key: Key | None = None,
    train: Mapping[str, Any] | None = None,
    attributes: Sequence[str] = (),
    quick: bool = False,
    rng: int = 0,
    progress: bool = True,
) -> None:
    """Attack a trained classifier and what its sites send, and say in words who gets what.

    Every score stands beside a baseline that looks at nothing of the model: the mean or a random public cell, training
    from scratch on the same samples, chance. Attackers know how the method works, have public cells of the same kind,
    and keep their best checkpoint.

    Cells that took no part in training are needed, half of them for the attackers and half to judge by. Give them as
    ``held_out`` and the model itself is attacked. Without, 40 % of the groups of ``adata`` are held out and a twin of
    the model is trained on the rest, with the same settings and key: what is true of it is true of models made like
    this one. Updates are those of a first and a last round, made anew.

    Sets the following fields:

    ``.uns["infl"]["audit"]["table"]``
        Data frame with one row a finding: ``family``, ``adversary``, ``uploads`` (``"in the open"`` or ``"keyed
        sums"``), ``attack``, ``setting``, ``metric``, ``score`` with a 95 % interval (``low``, ``high``; of thieves and
        wrong keys the range), ``baseline``, ``baseline_name`` and ``verdict``: ``"leaks"`` (the interval lies above the
        baseline), ``"holds"``, ``"unclear"`` or ``"not told"`` (too few cells).
    ``.uns["infl"]["audit"]["verdicts"]``
        What each adversary gets, in words.
    ``.uns["infl"]["audit"]["parameters"]``
        Settings and seeds that repeat it.
    ``.uns["infl"]["audit"]["not_tested"]``
        What this audit cannot say.

    Parameters
    ----------
    adata
        Cells that the model was trained on, with its labels and sites.
    model
        Trained classifier.
    held_out
        Cells that took no part in training, with labels.
    key
        The model's key. Needed where it was trained with one; the audit plays those who have it and those who do not.
    train
        Arguments of ``model.train`` that the model was trained with, for the twin, the updates and the shadow networks;
        by default as many rounds as the model had, and the defaults. Protections with a budget must be new objects.
    attributes
        Columns of ``adata.obs`` that somebody might want to infer of a person, or their shares of a site, such as sex.
    quick
        A tenth of the effort: fewer trials, no shadow networks.
    rng
        Seed of all attacks.
    progress
        Show a progress bar.

    Raises
    ------
    ValueError
        If the model, its key or the data cannot be used; before any attack.

    Examples
    --------
    >>> import scinfl as si
    >>> adata = si.datasets.pbmc()
    >>> si.pp.split_sites(adata, n_sites=3, by="bulk_labels", rng=0)
    >>> si.model.Classifier.setup_anndata(adata, labels_key="bulk_labels", site_key="site")
    >>> model = si.model.Classifier(adata, n_hidden=16, key_scheme=None)
    >>> model.train(n_rounds=2, progress=False)
    >>> si.tl.audit(adata, model, train={"n_rounds": 2}, quick=True, progress=False)
    >>> sorted(adata.uns["infl"]["audit"])
    ['not_tested', 'parameters', 'table', 'verdicts']
    """
    check_audit(adata, model, held_out, key, attributes)
    whole_number("rng", rng, 0)
    training = training_of(model, train or {})
    effort = _QUICK if quick else _FULL
    with _unlocked(model, key), tqdm(total=1, disable=not progress, desc="Auditing") as bar:
        target = _target(adata, model, held_out, key, training, rng, watch=not quick and key is not None)
        jobs = _jobs(target, effort, attributes, bar.update)
        bar.reset(total=len(jobs) + effort.n_shadows)
        rows = []
        for name, job in jobs.items():
            bar.set_postfix_str(name)
            rows += job()
            bar.update()
        table = pd.DataFrame(rows, columns=list(COLUMNS))
        found = {
            "table": table,
            "verdicts": verdicts(table),
            "parameters": parameters_of(target, training, is_twin=held_out is None, quick=quick, rng=rng),
            "not_tested": np.array(not_tested(target, table, quick=quick), dtype=object),
        }
    adata.uns.setdefault(_names.UNS, {})["audit"] = found


@contextmanager
def _unlocked(model: Classifier, key: Key | None) -> Iterator[None]:
    """Lock a model again that was locked."""
    was_locked = model.is_locked
    if key is not None:
        model.unlock(key)
    try:
        yield
    finally:
        if was_locked:
            model.lock()


def _jobs(
    target: Target, effort: _Effort, attributes: Sequence[str], after_each: Callable[[], object]
) -> dict[str, Callable[[], list[dict[str, Any]]]]:
    jobs: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "first layer": partial(
            cells.reconstruct,
            target,
            n_cells=effort.n_cells,
            n_batches=effort.n_batches,
            batch_sizes=effort.batch_sizes,
        ),
        "sums": partial(cells.aggregate, target, n_batches=effort.n_batches),
        "inversion": partial(
            cells.invert,
            target,
            n_batches=max(effort.n_batches // 2, 2),
            n_iterations=effort.n_iterations,
            site_sizes=effort.site_sizes,
        ),
        "matching": partial(cells.match_key, target, n_restarts=effort.n_restarts, n_cells=effort.n_cells),
        "key": partial(thief.extract, target),
        "wrong keys": partial(thief.use, target, n_keys=effort.n_keys),
    }
    for n in effort.samples:
        jobs[f"thief, {n}"] = partial(
            thief.steal, target, n, n_seeds=effort.n_thief_seeds, n_steps=effort.n_thief_steps
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
    """Who has which cells; and the twin, whose training a server watches."""
    setup = model._setup_args()
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
    """Train a model of the same settings, with every upload kept."""
    type(model).setup_anndata(adata, **model._setup_args())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the user saw them with the model itself
        twin = type(model)(adata, **model.init_params_["non_kwargs"])
        watcher = attacks.Watcher()
        protections = training["protections"]
        open_ones = [] if protections == "default" else [p for p in protections if not getattr(p, "sums", False)]
        twin.train(**{**training, "key": key, "protections": [*open_ones, watcher], "progress": False})
    if key is not None:
        twin.unlock(key)
    return twin, watcher
