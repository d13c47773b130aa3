"""Plan of the attacks on a model of scvi-tools."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from scinfl._audit import _model_stealing as model_stealing
from scinfl._audit._findings import CURIOUS, STEALING, finding
from scinfl._audit._plan import Job, Plan, Request
from scinfl._audit._ratings import rated_membership
from scinfl._audit._settings import HELD_OUT, common_limits, protections_of_twin, run_parameters, twin_of
from scinfl._audit.scvi._target import ScviTarget
from scinfl.model.scvi import ScviView
from scinfl.privacy.attacks import Score

_FEWEST_ASIDE = 20
_WORST = 1e30  # of a bound that is not finite
_CHANNEL = "share of the gain in the evidence lower bound"


@dataclass(frozen=True)
class _Effort:
    """How much of each attack."""

    n_keys: int
    n_untrained: int
    samples: tuple[int, ...]
    epochs: tuple[int, ...]
    n_attackers: int


_FULL = _Effort(20, 20, (50, 150), (10, 40, 120), 3)
_QUICK = _Effort(5, 5, (50,), (10,), 1)


def plan(request: Request, after_each: Callable[[], object]) -> Plan:
    """Attacks on a generative model, which is unlocked."""
    del after_each
    effort = _QUICK if request.quick else _FULL
    model, data, held_out = request.model, request.data, request.held_out
    if held_out is None:
        aside = np.random.default_rng(request.rng).random(data.n_obs) < HELD_OUT
        data, held_out = data[~aside].copy(), data[aside].copy()
        protections = protections_of_twin(request.training, request.key)
        model = twin_of(ScviView(model), data, request.key, request.training, protections)
    target = ScviTarget.of(model, request.key, data, held_out, request.training, request.attributes, request.rng)
    jobs: dict[str, Job] = {"wrong keys": partial(use, target, effort)}
    for n in effort.samples if target.is_keyed else ():
        for epochs in effort.epochs:
            jobs[f"model stealing, {n} unlabelled cells, {epochs} epochs"] = partial(steal, target, n, epochs, effort)
    if len(target.aside) >= _FEWEST_ASIDE:
        jobs["membership"] = partial(membership, target)
    return Plan(jobs, _parameters(target, request), partial(_left_open, target, quick=request.quick))


def use(target: ScviTarget, effort: _Effort) -> list[dict[str, Any]]:
    """Use the network as it is, against untrained ones: random encoders keep much of what distinguishes cells."""
    scores: dict[str, Score] = {_CHANNEL: target.gain, "Pearson of expected and observed counts": target.contrasts}
    for column in target.columns:
        scores[f"label transfer of '{column}'"] = partial(target.transfer, column=column)
    untrained = [target.untrained(seed) for seed in range(effort.n_untrained)]
    rows = []
    for metric, score in scores.items():
        rows += model_stealing.as_it_is(
            target.network,
            score,
            metric,
            {"untrained network": [score(network) for network in untrained]},
            n_keys=effort.n_keys,
            is_keyed=target.is_keyed,
        )
    return rows


def steal(target: ScviTarget, n: int, epochs: int, effort: _Effort) -> list[dict[str, Any]]:
    """Train the stolen network on unlabelled cells, against a network of initial weights on the same ones."""
    found: list[float] = []
    scratch: list[float] = []
    for seed in range(effort.n_attackers):
        for network, scores in ((copy.deepcopy(target.stripped), found), (target.untrained(seed), scratch)):
            scores.append(target.gain_after(network, n, epochs, seed))  # type: ignore[arg-type]
    return [
        finding(
            model_stealing.FAMILY,
            STEALING,
            "fine-tuning",
            _CHANNEL,
            float(np.mean(found)),
            float(np.mean(scratch)),
            baseline_name="from scratch",
            setting=f"{n} unlabelled cells, {epochs} epochs",
            interval=(min(found), max(found)) if len(found) > 1 else None,
        )
    ]


def membership(target: ScviTarget) -> list[dict[str, Any]]:
    """Distinguish cells that were trained on from cells of the same sites that were set aside, by their bound."""
    member = np.repeat([True, False], [len(target.train), len(target.aside)])
    networks = [(CURIOUS if target.is_keyed else STEALING, target.network, "")]
    if target.is_keyed:
        networks.insert(0, (STEALING, target.stripped, "no key"))
    rows = []
    for adversary, network, words in networks:
        losses = np.concatenate([target.losses(network, cells) for cells in (target.train, target.aside)])
        score = -np.nan_to_num(losses, nan=_WORST, posinf=_WORST)
        rows += rated_membership(score, member, adversary, "bound of a cell", target.rng, words)
    return rows


def _parameters(target: ScviTarget, request: Request) -> dict[str, Any]:
    untrained, right = target.scale
    transfers = {f"label_transfer_{name}": target.transfer(target.network, name) for name in target.columns}
    words = "".join(f" {name.replace('_', ' ', 2)} {value:.3f}." for name, value in transfers.items())
    return {
        "summary": (
            f"{target.model.class_name} trained on {len(target.train)} cells of {target.view.n_sites} sites. Negative "
            f"evidence lower bound per unseen cell {right:.1f}, of untrained networks {untrained:.1f}.{words}"
        ),
        "attacked": "a twin trained without some cells" if request.held_out is None else "the model itself",
        "n_train": len(target.train),
        "n_public": len(target.public),
        "n_test": len(target.test),
        "n_sites": target.view.n_sites,
        "loss": right,
        "loss_untrained": untrained,
        **transfers,
        **run_parameters(target, quick=request.quick),
    }


def _left_open(target: ScviTarget, table: pd.DataFrame, *, quick: bool) -> list[str]:
    del table
    left_out = [
        "The lock does not hide what the input shows: untrained encoders of the same shape separate types in part.",
        "Updates in the open: reconstruction of cells from them, and crafted weights.",
        "Membership of donors, and of cells by shadow models.",
        "Surrogate keys from known mean counts, marker genes, or a public model of the same tissue.",
        *common_limits("cells"),
    ]
    if quick:
        left_out.insert(0, "More than a few trials of each attack (`quick=True`).")
    if len(target.aside) < _FEWEST_ASIDE:
        left_out.insert(0, f"Membership of cells: fewer than {_FEWEST_ASIDE} were set aside (`validation_size`).")
    if not target.columns:
        left_out.insert(0, "Label transfer: name columns in `attributes`.")
    if not target.is_keyed:
        left_out.insert(0, "Model stealing: without a key anyone with the weights has the model as it is.")
    return left_out
