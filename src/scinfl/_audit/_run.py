"""Runs an audit: checks, plan, attacks, verdicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from scinfl._audit._findings import COLUMNS, verdicts
from scinfl._audit._plan import Plan, Request
from scinfl._audit._settings import check_model, training_of
from scinfl._audit.classifier import check_classifier
from scinfl._audit.classifier import plan as classifier_plan
from scinfl._audit.gears import check_gears
from scinfl._audit.gears import plan as gears_plan
from scinfl._audit.scvi import check_scvi
from scinfl._audit.scvi import plan as scvi_plan
from scinfl._audit.spamosaic import check_spamosaic
from scinfl._audit.spamosaic import plan as spamosaic_plan
from scinfl._checks import whole_number
from scinfl.model import GEARS, Classifier, ScviModel, SpaMosaic
from scinfl.privacy import Key

_KINDS: dict[type, tuple[Callable[..., None], Callable[..., Plan]]] = {
    Classifier: (check_classifier, classifier_plan),
    GEARS: (check_gears, gears_plan),
    SpaMosaic: (check_spamosaic, spamosaic_plan),
    ScviModel: (check_scvi, scvi_plan),
}


def run_audit(request: Request, *, progress: bool) -> dict[str, Any]:
    """Table of findings, verdicts, parameters and limits of an audit; see :func:`scinfl.tl.audit`."""
    model, key = request.model, request.key
    check, plan_of = _kind(model)
    check_model(model, key)
    whole_number("rng", request.rng, 0)
    check(request.data, model, request.held_out, request.attributes)
    request = replace(request, training=training_of(model, request.training))
    with _unlocked(model, key), tqdm(total=1, disable=not progress, desc="Auditing") as bar:
        plan = plan_of(request, bar.update)
        bar.reset(total=len(plan.jobs) + plan.n_further)
        rows = []
        for name, job in plan.jobs.items():
            bar.set_postfix_str(name)
            rows += job()
            bar.update()
        table = pd.DataFrame(rows, columns=list(COLUMNS))
        return {
            "table": table,
            "verdicts": verdicts(table),
            "parameters": dict(plan.parameters),
            "not_tested": np.array(plan.left_open(table), dtype=object),
        }


def _kind(model: object) -> tuple[Callable[..., None], Callable[..., Plan]]:
    for kind, parts in _KINDS.items():
        if isinstance(model, kind):
            return parts
    msg = (
        f"Expected a Classifier, GEARS, SpaMosaic or ScviModel to audit, found {type(model).__name__}. Use "
        "`scinfl.privacy.attacks` directly."
    )
    raise TypeError(msg)


@contextmanager
def _unlocked(model: Any, key: Key | None) -> Iterator[None]:
    """Unlock a model, and lock it again if it was locked."""
    was_locked = model.is_locked
    if key is not None:
        model.unlock(key)
    try:
        yield
    finally:
        if was_locked:
            model.lock()
