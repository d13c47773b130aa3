"""Who was in the training data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch

from scinfl._audit._findings import finding
from scinfl._audit.classifier._sender import sender_of
from scinfl._audit.classifier._target import Rows, Target
from scinfl.privacy import attacks

_FAMILY = "membership"


def membership(
    target: Target, *, n_shadows: int, after_each: Callable[[], object] | None = None
) -> list[dict[str, Any]]:
    """Attack the final model by thresholds and by shadow networks, cell by cell and donor by donor."""
    pool, member = _pool(target)
    confidence = attacks.confidence(target.network, pool.x, pool.y)
    stripped = attacks.confidence(target.stripped, pool.x, pool.y)
    holder = "fellow site" if target.is_keyed else "thief"
    rows = []
    if target.is_keyed:
        rows += _rated(stripped, member, pool, "thief", "loss threshold", target.rng)
    rows += _rated(confidence, member, pool, holder, "loss threshold", target.rng)
    if n_shadows:
        settings = target.training
        shadows, inside = attacks.train_shadows(
            target.plain,
            pool.x,
            pool.y,
            n_models=n_shadows,
            share=float(np.clip(member.mean(), 0.3, 0.7)),
            n_epochs=settings["n_rounds"] * settings["local_epochs"],
            batch_size=settings["batch_size"],
            lr=settings["lr"],
            weight_decay=settings["weight_decay"],
            groups=pool.groups,
            after_each=after_each,
            rng=target.rng,
        )
        for online in (False, True):
            score = attacks.likelihood_ratio(confidence, shadows, inside, online=online)
            attack = f"likelihood ratio, {'online' if online else 'offline'}"
            rows += _rated(score, member, pool, holder, attack, target.rng, setting=f"{n_shadows} shadow networks")
    return rows


def from_update(target: Target) -> list[dict[str, Any]]:
    """Attack one local round of the smallest site with as many cells outside."""
    sites, sizes = np.unique(target.train.sites, return_counts=True)
    site = target.train.take(np.flatnonzero(target.train.sites == sites[sizes.argmin()]))
    outside = target.test
    x, y = torch.cat([site.x, outside.x]), torch.cat([site.y, outside.y])
    member = np.arange(len(x)) < len(site)
    sender = sender_of(target, fresh=False)
    sent = sender.round(site)
    setting = f"local round of {len(site)} cells"
    after = sender.with_change(sent.opened)
    drop = attacks.loss_drop(sender.network, after, x, y)
    if not target.is_keyed:
        return rate_membership(drop, member, "server", "loss drop", target.rng, setting, "in the open")
    rows = rate_membership(
        drop, member, "server + one site", "loss drop", target.rng, setting, "in the open or keyed sums"
    )
    locked = sender.as_travelling({})
    drop = attacks.loss_drop(locked, sender.as_travelling(sent.travelling), x, y)
    return rows + rate_membership(drop, member, "server", "loss drop", target.rng, setting, "in the open")


def _pool(target: Target) -> tuple[Rows, np.ndarray]:
    """Training cells and as many outsiders as there are."""
    parts = (target.train, target.public, target.test)
    has_groups = all(part.groups is not None for part in parts)
    pool = Rows(
        torch.cat([part.x for part in parts]),
        torch.cat([part.y for part in parts]),
        np.concatenate([part.groups for part in parts]) if has_groups else None,
        np.concatenate([part.sites for part in parts]),
        pd.concat([part.obs for part in parts]),
    )
    return pool, np.arange(len(pool)) < len(target.train)


def _rated(
    score: np.ndarray, member: np.ndarray, pool: Rows, adversary: str, attack: str, rng: int, *, setting: str = ""
) -> list[dict[str, Any]]:
    rows = rate_membership(score, member, adversary, attack, rng, setting)
    if pool.groups is not None and len(set(pool.groups)) < len(pool):
        usable = ~np.isnan(score)
        by_group, group_member = attacks.by_group(score[usable], member[usable], pool.groups[usable])
        rows += rate_membership(by_group, group_member, adversary, f"{attack}, by donor", rng, setting)
    return rows


def rate_membership(
    score: np.ndarray, member: np.ndarray, adversary: str, attack: str, rng: int, setting: str, uploads: str = ""
) -> list[dict[str, Any]]:
    table = attacks.membership_scores(score, member, rng=rng)
    rows = []
    for metric, row in table.iterrows():
        margin = {"auc": 0.02, "advantage": 0.04}.get(str(metric), float(row["baseline"]))
        rows.append(
            finding(
                _FAMILY,
                adversary,
                attack,
                _NAMES[str(metric)],
                float(row["value"]),
                float(row["baseline"]),
                baseline_name=_BASELINES[str(metric)],
                uploads=uploads,
                setting=setting,
                interval=(float(row["low"]), float(row["high"])),
                margin=margin,
            )
        )
    return rows


_NAMES = {
    "auc": "AUC",
    "advantage": "advantage",
    "tpr_at_1%": "TPR at 1% FPR",
    "tpr_at_0.1%": "TPR at 0.1% FPR",
}
_BASELINES = {"auc": "a coin", "advantage": "a coin", "tpr_at_1%": "a coin", "tpr_at_0.1%": "a coin"}
