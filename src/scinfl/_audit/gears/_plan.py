"""Plan of the attacks on a model of perturbation response."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from scinfl._audit import _alignment as alignment
from scinfl._audit import _model_stealing as model_stealing
from scinfl._audit._alignment import AlignmentEffort
from scinfl._audit._findings import CURIOUS, STEALING
from scinfl._audit._plan import Job, Plan, Request
from scinfl._audit._ratings import rated_membership
from scinfl._audit._settings import common_limits, run_parameters
from scinfl._audit.gears import _updates as site
from scinfl._audit.gears._sites import Sites
from scinfl._audit.gears._target import (
    ChangeNetwork,
    GEARSTarget,
    Responses,
    correlation,
    has_test_part,
    spared,
    trained_twin,
)
from scinfl._conditions import name_of

_ALIGNED = {"genes read by one layer": "cross_gene_mlp.linears.0", "embedded genes": "gene_embedding"}
_PEARSON, _SPARED = "Pearson of the change", "share of the error spared"


@dataclass(frozen=True)
class _Effort:
    """How much of each attack."""

    n_keys: int
    n_untrained: int
    samples: tuple[int, ...]
    n_attackers: int
    n_attack_steps: int
    alignment: AlignmentEffort


_FULL = _Effort(50, 20, (5, 15), 3, 200, AlignmentEffort(8, 200, 20, 12_000_000))
_QUICK = _Effort(10, 3, (10,), 1, 60, AlignmentEffort(2, 60, 4, 1_000_000))


def plan(request: Request, after_each: Callable[[], object]) -> Plan:
    """Attacks on a model of perturbation response, which is unlocked."""
    del after_each
    effort = _QUICK if request.quick else _FULL
    model, adata, is_twin = request.model, request.data, False
    if request.held_out is None and not has_test_part(adata, model):
        (model, adata), is_twin = trained_twin(model, adata, request.key, request.training, request.rng), True
    target = GEARSTarget.of(model, request.key, adata, request.held_out, request.training, request.rng)
    return Plan(
        _jobs(target, effort),
        _parameters(target, request, is_twin=is_twin),
        partial(_left_open, target, quick=request.quick),
    )


def _jobs(target: GEARSTarget, effort: _Effort) -> dict[str, Job]:
    sites = Sites(target)
    jobs: dict[str, Job] = {
        "sums before training": partial(site.prepared, sites),
        "updates": partial(site.updates, sites),
        "wrong keys": partial(use, target, effort),
    }
    for n in sorted({min(n, len(target.public)) for n in effort.samples}) if target.is_keyed else ():
        jobs[f"model stealing, {n} perturbations"] = partial(steal, target, n, effort)
    for words, name in _ALIGNED.items():
        jobs[f"Gram alignment, {words}"] = partial(align, target, words, name, effort)
    jobs["membership"] = partial(membership, target)
    return jobs


def use(target: GEARSTarget, effort: _Effort) -> list[dict[str, Any]]:
    """Use the network as it is; where there was a prior, the attacker adds the mean change of own perturbations."""
    rows = []
    for metric, score, rate in ((_PEARSON, target.pearson, correlation), (_SPARED, target.spared, spared)):
        alone = rate(np.tile(target.offset, (len(target.test), 1)), target.test)
        name = "no change" if target.view.prior is None else "mean of own perturbations"
        untrained = [score(target.untrained(target.rng + seed)) for seed in range(effort.n_untrained)]
        baselines = {name: [float(alone.mean())], "untrained network": untrained}
        rows += model_stealing.as_it_is(
            target.reader, score, metric, baselines, n_keys=effort.n_keys, is_keyed=target.is_keyed
        )
    return rows


def steal(target: GEARSTarget, n: int, effort: _Effort) -> list[dict[str, Any]]:
    """Attack with the mean changes of a few perturbations."""

    def draw(seed: int) -> tuple[torch.Tensor, torch.Tensor, Callable[..., float]]:
        own = target.public.take(np.random.default_rng(seed).permutation(len(target.public))[:n])
        offset = own.change.mean(0) if target.view.prior is not None else np.zeros_like(target.offset)
        y = torch.from_numpy(own.change - offset).float()
        return own.x, y, partial(target.pearson, offset=offset)

    return model_stealing.with_samples(
        target.reader,
        draw,
        _PEARSON,
        f"{n} perturbations of the attacker",
        n_seeds=effort.n_attackers,
        rng=target.rng,
        n_steps=effort.n_attack_steps,
        loss=F.mse_loss,
    )


def align(target: GEARSTarget, words: str, name: str, effort: _Effort) -> list[dict[str, Any]]:
    """Align what belongs to named genes with networks of one's own, trained on the perturbations of the attacker."""
    y = torch.from_numpy(target.public.change - target.offset).float()
    return alignment.align(
        target, name, target.public.x, y, effort.alignment, reader=target.reader, loss=F.mse_loss, words=words
    )


def membership(target: GEARSTarget) -> list[dict[str, Any]]:
    """Infer from prediction errors which perturbations were trained on, among those of as many genes."""
    outside = [target.public, target.test]
    parts = [target.train, *outside]
    conditions = [condition for part in parts for condition in part.conditions]
    member = np.arange(len(conditions)) < len(target.train)
    order = np.array([len(condition.genes) for condition in conditions])

    def rates(predict: Callable[[Responses], np.ndarray]) -> np.ndarray:
        error = np.concatenate([np.square(predict(part) - part.change).mean(1) for part in parts])
        return _within(-error, order)

    named = set(target.view.conditions)  # in the document of a saved model
    listed = np.array([condition in named for condition in conditions])
    attacks = [(STEALING, "list of perturbations in the saved model", listed.astype(float), "no network")]
    network = partial(target.predicted, target.reader)
    holder = CURIOUS if target.is_keyed else STEALING
    if target.is_keyed:
        stripped = ChangeNetwork(target.stripped)  # type: ignore[arg-type]
        attacks.append((STEALING, "error of the prediction", rates(partial(target.predicted, stripped)), "no key"))
    attacks.append((holder, "error of the prediction", rates(network), "network alone"))
    if target.view.prior is not None:
        attacks.append((holder, "error of the prediction", rates(partial(_whole, target)), "network and prior"))
    rows = []
    for adversary, attack, score, setting in attacks:
        rows += rated_membership(score, member, adversary, attack, target.rng, setting)
    return [row for row in rows if not np.isnan(row["score"])]


def _whole(target: GEARSTarget, responses: Responses) -> np.ndarray:
    """Change that the model predicts with its prior, one level of covariates at a time."""
    found = np.zeros_like(responses.change)
    levels = target.view.levels
    for row, condition in enumerate(responses.conditions):
        chosen = {name: levels[name][code] for name, code in zip(levels, condition.covariates, strict=True)}
        found[row] = target.model.predict_change([name_of(condition.genes)], covariates=chosen).to_numpy()[0]
    return found


def _within(score: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Rank among those of the same group, from 0 to 1."""
    return pd.Series(score).groupby(groups).rank(pct=True).to_numpy()


def _parameters(target: GEARSTarget, request: Request, *, is_twin: bool) -> dict[str, Any]:
    whole = _whole(target, target.test)
    pearson, alone = float(correlation(whole, target.test).mean()), target.pearson(target.reader)
    return {
        "summary": (
            f"Trained on {len(target.train)} perturbations at {len(target.sites)} sites. Pearson of the change of "
            f"{len(target.test)} others {pearson:.3f}; of the network without its prior, around the mean of the "
            f"attacker's {len(target.public)} perturbations, {alone:.3f}."
        ),
        "attacked": "a twin trained on 60% of the perturbations" if is_twin else "the model itself",
        "n_train": len(target.train),
        "n_public": len(target.public),
        "n_test": len(target.test),
        "n_sites": len(target.sites),
        "pearson": pearson,
        "pearson_network": alone,
        "spared_network": target.spared(target.reader),
        "loss": target.model.loss or "squared",
        "prior": target.view.prior or "none",
        **run_parameters(target, quick=request.quick),
    }


def _left_open(target: GEARSTarget, table: pd.DataFrame, *, quick: bool) -> list[str]:
    left_out = [
        "Membership of a single cell or donor behind a perturbation: the network sees moments of conditions only.",
        "Second moments of the genes, which sites add before training: in the open they show properties of cells.",
        "Matching the rows of a locked table with genes, by their lengths or by watching many rounds.",
        "Rows of embeddings whose gradient is weaker than the weight decay: counted as not moved in a round.",
        "Crafted weights: no layer of this network reads a cell.",
        "Fine-tuning with cells in place of means, and other gene ontologies than the model's.",
        *common_limits("perturbations"),
    ]
    if quick:
        left_out.insert(0, "More than a few trials of each attack (`quick=True`).")
    if not target.is_keyed:
        left_out.insert(0, "Model stealing: without a key anyone with the weights has the model as it is.")
    if len(target.sites) < 2:
        left_out.insert(0, "Sums before training: there is one site.")
    if not target.keeps_order and not target.hides_updates:
        left_out.insert(0, "What a holder of the key reads off updates of a trained meta learner.")
    if not table["metric"].eq("TPR at 0.1% FPR").any():
        left_out.insert(0, "Membership at false positive rates for which there are too few perturbations.")
    return left_out
