"""Sites of a screen: their conditions and moments, and what they send of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from scinfl._audit._simulated_site import Sent, SimulatedSite
from scinfl._audit.gears._target import GEARSTarget
from scinfl.model.gears import Condition, ConditionBatches, Moments, SiteCells

ROWS = "perturbation_embedding.weight"
"""Embeddings of the genes that may be perturbed."""


@dataclass
class Sites:
    """What sites of a screen know and send."""

    target: GEARSTarget

    @cached_property
    def moments(self) -> dict[str, Moments]:
        """Moments of the conditions of every site."""
        matrix = self.target.view.values(self.target.adata)
        return {name: cells.moments(matrix) for name, cells in self.target.sites.items()}

    @cached_property
    def sender(self) -> SimulatedSite:
        """A site that holds the trained network; gradients are those of training."""
        return SimulatedSite(self.target.site_network().train(), self.target)

    @cached_property
    def shares(self) -> dict[str, np.ndarray]:
        """Share of the cells of each condition that a site has."""
        counts = {name: cells.counts() for name, cells in self.target.sites.items()}
        totals: Counter[Condition] = Counter()
        for own in counts.values():
            totals.update(own)
        return {
            name: np.array([counts[name][condition] / totals[condition] for condition in cells.conditions])
            for name, cells in self.target.sites.items()
        }

    @property
    def options(self) -> dict[str, Any]:
        """Options of the loss."""
        chosen = {name: self.target.training[name] for name in ("direction_weight", "uncertainty_weight")}
        return {"loss": self.target.model.loss or "squared", **chosen}

    def batches(self, site: str, rows: Sequence[int] | None = None) -> ConditionBatches:
        """Conditions of a site as it trains on them, or some of them alone."""
        cells, moments, weight = self.target.sites[site], self.moments[site], self.shares[site]
        if rows is not None:
            fields = {name: getattr(moments, name)[list(rows)] for name in moments.__dataclass_fields__}
            cells = SiteCells(
                [cells.conditions[row] for row in rows],
                [cells.rows[row] for row in rows],
                [cells.controls[row] for row in rows],
                0,
            )
            moments, weight = Moments(**fields), np.ones(len(rows))
        return self.target.view.batches(site, cells, moments, weight)

    def step(self, site: str, rows: Sequence[int] | None = None) -> Sent:
        """One step of gradient descent on the conditions of a site, or some of them."""
        batch = next(iter(self.batches(site, rows).batches(1 << 20)))
        return self.sender.gradient(lambda network: network.loss(batch, **self.options))

    def predicted(self, site: str, rows: Sequence[int]) -> np.ndarray:
        """Mean change that network and prior predict of some conditions, for an adversary with the key and the sums."""
        conditions, targets = next(iter(self.batches(site, rows).batches(1 << 20)))
        with torch.no_grad():
            change = self.sender.copy()(conditions)
        return (change + targets.prior).mean(0).numpy()

    def round(self, site: str) -> Sent:
        """A real local round."""
        return self.sender.local_round(
            self.batches(site),
            loss_options=self.options,
            optimizer="adam",
            clip_value=1.0,
            decay_rounds=self.target.training["n_rounds"],
        )

    def perturbed(self, site: str) -> np.ndarray:
        """Which genes of the vocabulary a site perturbed."""
        found = np.zeros(len(self.target.model.perturbation_genes), dtype=bool)
        for condition in self.target.sites[site].conditions:
            found[[self.target.view.rows[gene] for gene in condition.genes]] = True
        return found

    def before(self, *, travels: bool) -> np.ndarray:
        """Embeddings of perturbations as sites receive them, with the key or as they travel."""
        state = {name: p.detach() for name, p in self.sender.network.named_parameters() if name in self.sender.shared}
        return (self.sender.locked(state) if travels else state)[ROWS].numpy()
