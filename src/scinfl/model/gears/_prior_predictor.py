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
from scinfl.model.gears._data import Condition, ConditionBatches, MeanChange, SiteCells, mean_changes
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
    _whole_priors: dict[str, Prior]  # with the conditions that were drawn to validate with
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
        aside_moments = {name: cells.moments(matrix) for name, cells in held_out.items()}
        validated = agreed.validated
        self.module.n_validated, self._agreed = len(validated), agreed.train
        known = {name: mean_changes(cells.conditions, moments[name]) for name, cells in sites.items()}
        drawn: dict[str, list[MeanChange]] = {name: [] for name in sites}
        if agreed.aside:
            drawn = {name: mean_changes(held_out[name].conditions, own) for name, own in aside_moments.items()}
        self._agree_on_graphs(matrix, sites, protections, local=local, looks_at_cells=looks_at_cells)
        self._agree_on_priors(known, drawn, agreed, protections, local=local)
        summing = None if local else protections
        what = "training cells"
        shares = shares_of(sites, summing, what, self._payload, conditions=agreed.train)
        held_shares = shares_of(held_out, summing, "validation cells", self._payload, conditions=validated, agree=what)
        batches = partial(self._batches, device=resolve_device(options.device), local=local)
        return {
            name: SiteData(
                batches(name, cells, moments[name], shares[name], agreed.train, leave_out=True),
                batches(name, aside, aside_moments[name], held_shares[name], validated, leave_out=False),
                {"direction_weight": options.direction_weight, "uncertainty_weight": options.uncertainty_weight},
                partial(self._put_graphs, site=name) if local else None,
            )
            for (name, cells), aside in zip(sites.items(), held_out.values(), strict=True)
        }

    def _agree_on_graphs(
        self,
        matrix: Matrix,
        sites: Mapping[str, SiteCells],
        protections: Sequence[Protection],
        *,
        local: bool,
        looks_at_cells: bool,
    ) -> None:
        """Co-expression graph of all sites; with ``local`` one for each."""
        if not looks_at_cells:
            self._coexpression = dict.fromkeys(sites if local else [EVERYWHERE], alone(len(self._genes)))
        elif local:
            sums = {name: own_second_moments(matrix, cells) for name, cells in sites.items()}
            self._coexpression = {name: self._edges_of(second) for name, second in sums.items()}
        else:
            second = pooled_second_moments(matrix, sites, protections, self._payload)
            self._coexpression = {EVERYWHERE: self._edges_of(second)}
        self._statistics_stored = False
        self._put_agreed()
        if not local:
            self._put_graphs(self.module)

    def _agree_on_priors(
        self,
        known: Mapping[str, Sequence[MeanChange]],
        drawn: Mapping[str, Sequence[MeanChange]],
        agreed: AgreedConditions,
        protections: Sequence[Protection],
        *,
        local: bool,
    ) -> None:
        """Prior of all sites, or one for each; what was drawn to validate with joins it after training."""
        self._whole_priors = {}
        for name in known if local else [EVERYWHERE]:
            members = [name] if local else list(known)
            mine = [[one.condition for own in members for one in part[own]] for part in (known, drawn)]
            if not local:
                mine = [agreed.train, agreed.validated if agreed.aside else []]
            sets, later = (sorted({c.genes for c in part if c.genes}) for part in mine)
            sets += [genes for genes in later if genes not in set(sets)]
            changes, noise = np.zeros((len(sets), len(self._genes))), np.zeros(len(self._genes))
            if self._prior_kind is not None:
                own = {member: [*known[member], *drawn[member]] for member in members}
                changes, noise = pooled_changes(
                    sets, own, () if local else protections, None if local else self._payload
                )
            whole = Prior(self._prior_kind, tuple(sets), changes, dict.fromkeys(ORDERS, 1.0), self._genes, noise)
            n = len({c.genes for c in mine[0] if c.genes})
            if local:
                self._put_graphs(self.module, name)
            self._whole_priors[name] = whole.fit(self._alike)
            early = replace(whole, conditions=whole.conditions[:n], changes=changes[:n])
            self._priors[name] = early.fit(self._alike) if n < len(sets) else self._whole_priors[name]

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
        sets = [condition.genes for condition in cells.conditions]
        if local:
            self._put_graphs(self.module, site)
        change = prior.predict(sets, leave_out=leave_out, alike=self._alike)
        numbers = {condition: number for number, condition in enumerate(agreed)}
        number = np.array([numbers[condition] for condition in cells.conditions], dtype=np.int64)
        return ConditionBatches(cells.conditions, moments, change, weight, number, self._rows, device)

    def _finish_prior(self, key: Key | None) -> None:
        """Shrink the network's part as in the best round, complete the prior, and seal what it is made of."""
        shrinkage = dict.fromkeys(ORDERS, 1.0)
        history = self.history
        if history is not None and f"validation_shrinkage_{ORDERS[0]}" in history:
            best = history.loc[history.attrs["best_round"]]
            shrinkage = {order: float(best[f"validation_shrinkage_{order}"]) for order in ORDERS}
        self._priors = {name: replace(prior, shrinkage=shrinkage) for name, prior in self._whole_priors.items()}
        self._whole_priors = {}
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
            self._priors, self._whole_priors = {}, {}
            for norm in self.module.modules():
                if isinstance(norm, keyed_nn.WeightedBatchNorm):
                    norm.reset_running_stats()

    def stripped(self) -> Self:
        """A copy without keyed modules and prior that predicts nevertheless: what a model-stealing attacker has."""
        plain = super().stripped()
        plain._priors, plain._whole_priors, plain._sealed_priors = {}, {}, None
        plain.module.refresh()
        return plain

    def __getstate__(self) -> dict[str, Any]:
        return {
            **super().__getstate__(),
            "_whole_priors": {},
            **({"_priors": {}} if self.key_fingerprint is not None else {}),
        }

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
