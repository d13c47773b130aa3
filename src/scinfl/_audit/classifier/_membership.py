"""Who was in the training data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch

from scinfl._audit._findings import CURIOUS, STEALING
from scinfl._audit._ratings import rated_membership
from scinfl._audit._simulated_site import COLLUDING, OPEN
from scinfl._audit.classifier._sender import sender_of
from scinfl._audit.classifier._target import Rows, Target
from scinfl.model.base import rows_per_step
from scinfl.privacy import attacks


def membership(
    target: Target, *, n_shadows: int, after_each: Callable[[], object] | None = None
) -> list[dict[str, Any]]:
    """Attack the final model by thresholds and by shadow networks, cell by cell and donor by donor."""
    pool, member = _pool(target)
    confidence = attacks.confidence(target.network, pool.x, pool.y)
    stripped = attacks.confidence(target.stripped, pool.x, pool.y)
    holder = CURIOUS if target.is_keyed else STEALING
    rows = []
    if target.is_keyed:
        rows += _rated(stripped, member, pool, STEALING, "loss threshold", target.rng)
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
            batch_size=settings["batch_size"] or rows_per_step(len(pool.x)),
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
        return rated_membership(drop, member, "server", "loss drop", target.rng, setting, OPEN)
    rows = rated_membership(drop, member, "server + one site", "loss drop", target.rng, setting, COLLUDING)
    locked = sender.as_travelling({})
    drop = attacks.loss_drop(locked, sender.as_travelling(sent.travelling), x, y)
    return rows + rated_membership(drop, member, "server", "loss drop", target.rng, setting, OPEN)


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
    rows = rated_membership(score, member, adversary, attack, rng, setting)
    if pool.groups is not None and len(set(pool.groups)) < len(pool):
        usable = ~np.isnan(score)
        by_group, group_member = attacks.by_group(score[usable], member[usable], pool.groups[usable])
        rows += rated_membership(by_group, group_member, adversary, f"{attack}, by donor", rng, setting)
    return rows
