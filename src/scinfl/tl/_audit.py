"""Attack a trained model as those would who know how it works."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from tqdm import tqdm

from scinfl import _names
from scinfl._checks import whole_number
from scinfl.model import GEARS, Classifier, SpaMosaic
from scinfl.privacy import Key
from scinfl.tl import _audit_classifier, _audit_gears, _audit_spamosaic
from scinfl.tl._audit_findings import COLUMNS, verdicts
from scinfl.tl._audit_gears_target import check_gears
from scinfl.tl._audit_plan import Plan, Request
from scinfl.tl._audit_settings import check_classifier, check_model, training_of
from scinfl.tl._audit_spamosaic_sections import check_spamosaic

_KINDS: dict[type, tuple[Callable[..., None], Callable[..., Plan]]] = {
    Classifier: (check_classifier, _audit_classifier.plan),
    GEARS: (check_gears, _audit_gears.plan),
    SpaMosaic: (check_spamosaic, _audit_spamosaic.plan),
}


def audit(
    adata: AnnData | MuData,
    model: Classifier | GEARS | SpaMosaic,
    *,
    held_out: AnnData | MuData | None = None,
    key: Key | None = None,
    train: Mapping[str, Any] | None = None,
    attributes: Sequence[str] = (),
    quick: bool = False,
    rng: int = 0,
    progress: bool = True,
) -> None:
    """Attack a trained model and what its sites send, and say in words who gets what.

    Every score stands beside a baseline that looks at nothing of the model: the mean or a public cell, training from
    scratch on the same samples, an untrained network, chance. Attackers know how the method works, have public data of
    the same kind, and keep their best checkpoint.

    Cells, perturbations or sections that took no part in training are needed, half of them for the attackers and half
    to judge by. Give them as ``held_out`` and the model itself is attacked. Without, two fifths of the groups of
    ``adata`` (of a :class:`~scinfl.model.GEARS` those of the test part of its split, or of the perturbations; of a
    :class:`~scinfl.model.SpaMosaic` at least one section) are held out and a twin of the model is trained on the rest,
    with the same settings and key: what is true of it is true of models made like this one. Updates are made anew.

    A classifier is asked what updates show of cells and sites, what a thief gets, who was in the training data, and
    what crafted weights bring. A model of perturbations is asked which perturbations a site has and what they did, and
    a model of tissue what its spots are like; both what a thief gets, and what took part in training.

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
        Data that the model was trained on, with all columns that it needs.
    model
        Trained model.
    held_out
        Cells with labels, perturbations with control cells, or whole sections, that took no part in training.
    key
        The model's key. Needed where it was trained with one; the audit plays those who have it and those who do not.
    train
        Arguments of ``model.train`` that the model was trained with, for the twin, the updates and the shadow networks;
        by default as many rounds as the model had, and the defaults. Protections with a budget must be new objects.
    attributes
        Columns of ``adata.obs`` that somebody might want to infer of a person, or their shares of a site, such as sex.
        Of spots, what thieves want to tell of them, such as domains. GEARS takes none.
    quick
        A tenth of the effort: fewer trials, no shadow networks.
    rng
        Seed of all attacks.
    progress
        Show a progress bar.

    Raises
    ------
    TypeError
        If the model is of another kind.
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
    check, plan_of = _kind(model)
    check_model(model, key)
    whole_number("rng", rng, 0)
    check(adata, model, held_out, attributes)
    training = training_of(model, train or {})
    request = Request(adata, model, held_out, key, training, attributes, quick, rng)
    with _unlocked(model, key), tqdm(total=1, disable=not progress, desc="Auditing") as bar:
        plan = plan_of(request, bar.update)
        bar.reset(total=len(plan.jobs) + plan.n_further)
        rows = []
        for name, job in plan.jobs.items():
            bar.set_postfix_str(name)
            rows += job()
            bar.update()
        table = pd.DataFrame(rows, columns=list(COLUMNS))
        found = {
            "table": table,
            "verdicts": verdicts(table),
            "parameters": dict(plan.said),
            "not_tested": np.array(plan.left_open(table), dtype=object),
        }
    adata.uns.setdefault(_names.UNS, {})["audit"] = found


def _kind(model: object) -> tuple[Callable[..., None], Callable[..., Plan]]:
    for kind, parts in _KINDS.items():
        if isinstance(model, kind):
            return parts
    msg = (
        f"Expected a Classifier, GEARS or SpaMosaic to audit, found {type(model).__name__}. Use "
        "`scinfl.privacy.attacks` directly."
    )
    raise TypeError(msg)


@contextmanager
def _unlocked(model: Any, key: Key | None) -> Iterator[None]:
    """Lock a model again that was locked."""
    was_locked = model.is_locked
    if key is not None:
        model.unlock(key)
    try:
        yield
    finally:
        if was_locked:
            model.lock()
