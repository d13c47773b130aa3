"""A model of perturbations that adds its network to a prior, over graphs that the sites agreed on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Self

import numpy as np
import torch

from scinfl import nn as keyed_nn
from scinfl.federation import Protection, Run, State
from scinfl.model.base._cells import Matrix
from scinfl.model.base._options import TrainOptions
from scinfl.model.base._training import SiteData, resolve_device
from scinfl.model.gears._conditions import AgreedConditions
from scinfl.model.gears._data import Condition, ConditionBatches, SiteCells
from scinfl.model.gears._graphs import Edges
from scinfl.model.gears._moments import Moments
from scinfl.model.gears._options import GEARSOptions
from scinfl.model.gears._prediction import EVERYWHERE, PerturbationPredictor
from scinfl.model.gears._prior import Prior, pack_priors, unpack_priors
from scinfl.model.gears._private import alone
from scinfl.model.gears._shrinkage import ORDERS
from scinfl.model.gears._sums import own_second_moments, pooled_changes, pooled_second_moments, shares_of
from scinfl.module import Conditions
from scinfl.privacy import Key, Seal


class PriorPredictor(PerturbationPredictor):
    """What a model of perturbations knows beside its network, how sites agree on it, and how it is kept and sealed."""

    _edges_of: Callable[[State], Edges]
    _sealed_priors: bytes | None
    _statistics_stored: bool

    @property
    def shrinkage(self) -> dict[str, float] | None:
        """Share of the network's change that is added to the prior, by number of perturbed genes."""
        priors = list(self._priors.values())
        return dict(priors[0].shrinkage) if priors else None

    # ---- agreed before training

    def _data(
        self,
        matrix: Matrix,
        sites: Mapping[str, SiteCells],
        held_out: Mapping[str, SiteCells],
        agreed: AgreedConditions,
        protections: Sequence[Protection],
        options: GEARSOptions,
        *,
        looks_at_cells: bool,
    ) -> dict[str, SiteData]:
        """Conditions of each site, after the sites agreed on graphs, prior and shares."""
        local = options.share == "meta"
        moments = {name: cells.moments(matrix) for name, cells in sites.items()}
        validated = agreed.validated
        self.module.n_validated, self._agreed = len(validated), agreed.train
        self._agree(matrix, sites, moments, protections, local=local, looks_at_cells=looks_at_cells)
        summing = None if local else protections
        shares = shares_of(sites, summing, "training cells", self._payload, conditions=agreed.train)
        held_shares = shares_of(held_out, summing, "validation cells", self._payload, conditions=validated)
        batches = partial(self._batches, device=resolve_device(options.device), local=local)
        return {
            name: SiteData(
                batches(name, cells, moments[name], shares[name], agreed.train, leave_out=True),
                batches(name, aside, aside.moments(matrix), held_shares[name], validated, leave_out=False),
                {"direction_weight": options.direction_weight, "uncertainty_weight": options.uncertainty_weight},
                partial(self._put_graphs, site=name) if local else None,
            )
            for (name, cells), aside in zip(sites.items(), held_out.values(), strict=True)
        }

    def _agree(
        self,
        matrix: Matrix,
        sites: Mapping[str, SiteCells],
        moments: Mapping[str, Moments],
        protections: Sequence[Protection],
        *,
        local: bool,
        looks_at_cells: bool,
    ) -> None:
        """Co-expression graph and prior of all sites; with ``local`` a graph and prior for each."""
        known = {name: (cells.conditions, moments[name]) for name, cells in sites.items()}
        groups = {name: {name: known[name]} for name in sites} if local else {EVERYWHERE: known}
        if not looks_at_cells:
            self._coexpression = dict.fromkeys(groups, alone(len(self._genes)))
        elif local:
            sums = {name: own_second_moments(matrix, cells) for name, cells in sites.items()}
            self._coexpression = {name: self._edges_of(second) for name, second in sums.items()}
        else:
            second = pooled_second_moments(matrix, sites, protections, self._payload)
            self._coexpression = {EVERYWHERE: self._edges_of(second)}
        protections = () if local else protections
        for name, members in groups.items():
            mine = (c for conditions, _ in members.values() for c in conditions)
            sets = sorted({c.genes for c in (mine if local else self._agreed or ()) if c.genes})
            changes = np.zeros((len(sets), len(self._genes)))
            if self._prior_kind is not None:
                changes = pooled_changes(sets, members, protections, None if local else self._payload)
            self._priors[name] = Prior(self._prior_kind, tuple(sets), changes, dict.fromkeys(ORDERS, 1.0))
        self._statistics_stored = False
        self._put_agreed()
        if not local:
            self._put_graphs(self.module)

    def _put_agreed(self) -> None:
        if self._agreed is not None:
            self.module.set_agreed(
                Conditions.of(
                    [[self._rows[gene] for gene in condition.genes] for condition in self._agreed],
                    covariates=[list(condition.covariates) for condition in self._agreed],
                )
            )

    def _batches(
        self,
        site: str,
        cells: SiteCells,
        moments: Moments,
        weight: np.ndarray,
        agreed: Sequence[Condition],
        *,
        leave_out: bool,
        device: torch.device,
        local: bool,
    ) -> ConditionBatches:
        prior = self._priors[site if local else EVERYWHERE]
        change = prior.predict([condition.genes for condition in cells.conditions], leave_out=leave_out)
        numbers = {condition: number for number, condition in enumerate(agreed)}
        number = np.array([numbers[condition] for condition in cells.conditions], dtype=np.int64)
        return ConditionBatches(cells.conditions, moments, change, weight, number, self._rows, device)

    def _finish_prior(self, key: Key | None) -> None:
        """Shrink the network's part as in the best round, and seal what the prior is made of."""
        shrinkage = dict.fromkeys(ORDERS, 1.0)
        history = self.history
        if history is not None and f"validation_shrinkage_{ORDERS[0]}" in history:
            best = history.loc[history.attrs["best_round"]]
            shrinkage = {order: float(best[f"validation_shrinkage_{order}"]) for order in ORDERS}
        self._priors = {name: replace(prior, shrinkage=shrinkage) for name, prior in self._priors.items()}
        self._sealed_priors = None if key is None else Seal(key).seal(pack_priors(self._priors), name="priors")

    # ---- the lock

    def _finish(self, run: Run | None, options: TrainOptions) -> None:
        super()._finish(run, options)
        self._refresh()

    def unlock(self, key: Key, *, force: bool = False) -> None:
        """Give the model its key, and with it its prior; see :meth:`scinfl.model.Classifier.unlock`.

        Parameters
        ----------
        key
            The key that it was trained with.
        force
            Take another key nevertheless, to see what a wrong key predicts: it opens no prior.
        """
        super().unlock(key, force=force)
        right = key.fingerprint == self.key_fingerprint
        if self._sealed_priors is not None:
            self._priors = unpack_priors(Seal(key).unseal(self._sealed_priors, name="priors")) if right else {}
        self._refresh()

    def _reseal(self, key: Key) -> None:
        if self._sealed_priors is not None:
            self._sealed_priors = Seal(key).seal(pack_priors(self._priors), name="priors")

    def lock(self) -> None:
        """Forget the key, the prior and the running statistics."""
        super().lock()
        if self.key_fingerprint is not None:
            self._priors = {}
            for norm in self.module.modules():
                if isinstance(norm, keyed_nn.WeightedBatchNorm):
                    norm.reset_running_stats()

    def stripped(self) -> Self:
        """A copy without keyed modules and prior that predicts nevertheless: what a model-stealing attacker has."""
        plain = super().stripped()
        plain._priors, plain._sealed_priors = {}, None
        plain.module.refresh()
        return plain

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **({"_priors": {}} if self.key_fingerprint is not None else {})}

    # ---- files

    def _unsaved_names(self) -> set[str]:
        return set() if self._statistics_stored else super()._unsaved_names()

    def _arrays(self, site: str | None) -> State:
        name = site if site in self._coexpression else EVERYWHERE
        arrays = dict(
            zip(("coexpression/edges", "coexpression/weights"), self._coexpression.get(name, ()), strict=False)
        )
        if self._ontology is not None:
            arrays |= dict(zip(("ontology/edges", "ontology/weights"), self._ontology, strict=True))
        if self._priors:
            content = pack_priors({EVERYWHERE: self._priors[name]})
            if self._keyed.key is not None:
                content = Seal(self._keyed.key).seal(content, name="priors")
            arrays["priors"] = np.frombuffer(content, np.uint8)
        return arrays

    def _take_arrays(self, arrays: State) -> None:
        def edges(name: str) -> Edges | None:
            return (arrays[f"{name}/edges"], arrays[f"{name}/weights"]) if f"{name}/edges" in arrays else None

        self._ontology = edges("ontology")
        if (own := edges("coexpression")) is not None:
            self._coexpression = {EVERYWHERE: own}
            self._put_graphs(self.module)
        self._put_agreed()
        content = arrays["priors"].tobytes() if "priors" in arrays else None
        if content is not None and self.key_fingerprint is not None:
            self._sealed_priors = content
        elif content is not None:
            self._priors = unpack_priors(content)
        if self.key_fingerprint is None:
            self._refresh()
