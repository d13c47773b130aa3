"""A trained model of perturbations under attack, and who has measured which of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from torch import Tensor, nn

from scinfl import _names
from scinfl._audit._attack_target import AttackTarget
from scinfl._audit._settings import HELD_OUT, check_names, protections_of_twin, twin_of
from scinfl._checks import first_of, same_features
from scinfl._spelling import argument
from scinfl.metrics import mean_squared_error, pearson
from scinfl.model import GEARS
from scinfl.model.gears import EVERYWHERE, TEST, TRAIN, Condition, Design, GEARSView, Moments, SiteCells
from scinfl.module import Conditions, GEARSModule
from scinfl.privacy import Key

_FEWEST = 8  # perturbations held out, half of them to attack with and half to judge by


@dataclass(frozen=True)
class Responses:
    """Perturbations, as a network reads them, and what cells did."""

    conditions: list[Condition]
    x: Tensor  # perturbed genes and covariates (conditions × (vocabulary + covariates))
    moments: Moments

    @classmethod
    def of(cls, view: GEARSView, adata: AnnData, design: Design, part: str) -> Responses:
        """Perturbations of a part, over all sites; those of the test part against controls of it, if it has some."""
        chosen = design.part == part
        control = np.array([not genes for genes in design.genes])
        base = control & chosen
        if not base.any():
            base = control & (design.part == TRAIN)
        parts = np.where((chosen & ~control) | base, TRAIN, "")
        pooled = Design(design.genes, design.covariates, np.full(len(parts), EVERYWHERE), parts)
        return cls.among(view, SiteCells.of(pooled, TRAIN, EVERYWHERE, 2), view.values(adata))

    @classmethod
    def among(cls, view: GEARSView, cells: SiteCells, matrix: Any) -> Responses:
        """Perturbations of some cells."""
        kept = [row for row, condition in enumerate(cells.conditions) if condition.genes]
        moments = Moments.of(matrix, [cells.rows[row] for row in kept], [cells.controls[row] for row in kept])
        conditions = [cells.conditions[row] for row in kept]
        n_genes = len(view.rows)
        x = torch.zeros(len(conditions), n_genes + len(view.levels))
        for row, condition in enumerate(conditions):
            x[row, [view.rows[gene] for gene in condition.genes]] = 1
            x[row, n_genes:] = torch.tensor(condition.covariates, dtype=torch.float32)
        return cls(conditions, x, moments)

    @property
    def change(self) -> np.ndarray:
        """Mean change (perturbations × genes)."""
        return self.moments.mean

    def take(self, rows: np.ndarray) -> Responses:
        """Some of the perturbations."""
        fields = {name: getattr(self.moments, name)[rows] for name in self.moments.__dataclass_fields__}
        return Responses([self.conditions[row] for row in rows], self.x[torch.from_numpy(rows)], Moments(**fields))

    def __len__(self) -> int:
        return len(self.conditions)


class ChangeNetwork(nn.Module):
    """Network of perturbations that reads them as rows of numbers, as attackers of any network give them."""

    def __init__(self, network: GEARSModule) -> None:
        super().__init__()
        self.network = network
        self.n_genes = len(network.perturbation_embedding.row_names)

    def forward(self, x: Tensor) -> Tensor:
        """Change of expression (perturbations × genes) of perturbed genes and covariates."""
        rows, genes = x[:, : self.n_genes].nonzero(as_tuple=True)
        return self.network(Conditions(genes, rows, x[:, self.n_genes :].long(), x.new_ones(len(x))))


@dataclass
class GEARSTarget(AttackTarget):
    """Model under attack, unlocked, with the perturbations of all parties."""

    model: GEARS
    key: Key | None
    adata: AnnData  # what it was trained on
    sites: Mapping[str, SiteCells]  # training cells of every site
    train: Responses
    public: Responses  # perturbations of the attacker
    test: Responses  # perturbations that attackers are judged by
    training: Mapping[str, Any]  # arguments of ``train``
    rng: int  # seed of all that is drawn

    @classmethod
    def of(
        cls,
        model: GEARS,
        key: Key | None,
        adata: AnnData,
        held_out: AnnData | None,
        training: Mapping[str, Any],
        rng: int,
    ) -> GEARSTarget:
        """Deal perturbations out; with none held out, those of the test part of ``adata`` are."""
        view = GEARSView(model)
        design = view.design(adata)
        outside = Responses.of(view, adata, design, TEST) if held_out is None else _held_out(view, held_out)
        design = design.with_validation(training["validation_size"], training["rng"])
        cells = {name: SiteCells.of(design, TRAIN, name, training["min_cells"]) for name in sorted(set(design.site))}
        sites = {name: own for name, own in cells.items() if any(c.genes for c in own.conditions)}
        order = np.random.default_rng(rng).permutation(len(outside))
        half = len(outside) // 2
        return cls(
            model,
            key,
            adata,
            sites,
            Responses.of(view, adata, design, TRAIN),
            outside.take(np.sort(order[:half])),
            outside.take(np.sort(order[half:])),
            training,
            rng,
        )

    @cached_property
    def view(self) -> GEARSView:
        """What may be seen of the model."""
        return GEARSView(self.model)

    @property
    def reader(self) -> ChangeNetwork:
        """The network with its key, for attackers of any network."""
        return ChangeNetwork(self.model.module)

    @cached_property
    def offset(self) -> np.ndarray:
        """What an attacker adds to a network that learned the residual of a prior: the mean change of their own."""
        own = self.public.change.mean(0)
        return own if self.view.prior is not None else np.zeros_like(own)

    def untrained(self, rng: int) -> ChangeNetwork:
        """A plain network of the same shape with random weights, and the graphs of the model."""
        return ChangeNetwork(self.view.untrained(rng))

    def predicted(self, reader: nn.Module, responses: Responses, offset: np.ndarray | None = None) -> np.ndarray:
        """Change that a network predicts, with what the attacker adds."""
        reader.network.refresh()  # type: ignore[union-attr,operator]
        with torch.inference_mode():
            change = reader.eval()(responses.x).double().numpy()
        return change + (self.offset if offset is None else offset)

    def pearson(self, reader: nn.Module, offset: np.ndarray | None = None) -> float:
        """Mean correlation of predicted and measured changes of the perturbations that attackers are judged by."""
        return float(correlation(self.predicted(reader, self.test, offset), self.test).mean())

    def spared(self, reader: nn.Module, offset: np.ndarray | None = None) -> float:
        """Share of the error over the most differential genes that a prediction spares one of no change."""
        return float(spared(self.predicted(reader, self.test, offset), self.test).mean())


def correlation(predicted: np.ndarray, responses: Responses) -> np.ndarray:
    """Pearson correlation of every predicted change; 0 where a side is constant."""
    return np.nan_to_num(pearson(predicted, responses.change))


def spared(predicted: np.ndarray, responses: Responses) -> np.ndarray:
    """One less the error of every prediction over that of no change, over the most differential genes."""
    top = responses.moments.top
    measured, guess = (
        np.where(top < 0, np.nan, np.take_along_axis(values, np.maximum(top, 0), 1))
        for values in (responses.change, predicted)
    )
    none = np.maximum(mean_squared_error(np.zeros_like(measured), measured), 1e-12)
    return np.nan_to_num(1 - mean_squared_error(guess, measured) / none)


def check_gears(adata: AnnData, model: GEARS, held_out: AnnData | None, attributes: Sequence[str]) -> None:
    """Refuse a model of perturbations or data that cannot be audited."""
    if attributes:
        found = list(attributes)
        msg = f"Expected no {argument('attributes')} for GEARS, which predicts no single cells, found {found}."
        raise ValueError(msg)
    if model.module.compat:
        msg = "Expected a network of scinfl, found `compat=True`. Audit one without."
        raise ValueError(msg)
    view = GEARSView(model)
    for data in [adata] if held_out is None else [adata, held_out]:
        same_features(data.var_names, model.var_names)
    check_names(adata, held_out)
    design = view.design(adata)
    if held_out is not None:
        n_aside = len(_held_out(view, held_out))
    else:
        aside = {genes for genes, part in zip(design.genes, design.part, strict=True) if genes and part == TEST}
        n_aside = len(aside) or int(HELD_OUT * len({genes for genes in design.genes if genes}))
    if n_aside < _FEWEST:
        msg = (
            f"Expected at least {_FEWEST} perturbations outside of training to attack with and to judge by, found "
            f"{n_aside}. Give more in `held_out`, or in the test part of the split."
        )
        raise ValueError(msg)


def has_test_part(adata: AnnData, model: GEARS) -> bool:
    """Whether perturbations of the data took no part in training."""
    return bool((GEARSView(model).design(adata).part == TEST).any())


def trained_twin(
    model: GEARS, adata: AnnData, key: Key | None, training: Mapping[str, Any], rng: int
) -> tuple[GEARS, AnnData]:
    """A model of the same settings, graph and key, trained on three fifths of the perturbations."""
    view = GEARSView(model)
    design = view.design(adata)
    generator, aside = np.random.default_rng(rng), set()
    sets = sorted({genes for genes in design.genes if genes})
    for several in (False, True):
        own = [genes for genes in sets if (len(genes) > 1) == several]
        aside |= {own[row] for row in generator.choice(len(own), round(HELD_OUT * len(own)), replace=False)}
    adata = adata.copy()
    column = view.setup["split_key"] or _names.SPLIT
    adata.obs[column] = np.where([genes in aside for genes in design.genes], TEST, design.part)
    return twin_of(view, adata, key, training, protections_of_twin(training, key), split_key=column), adata


def _held_out(view: GEARSView, held_out: AnnData) -> Responses:
    """Perturbations of other data, against control cells of theirs."""
    design = view.design(held_out, split_key=None, site_key=None)
    if unknown := sorted({gene for genes in design.genes for gene in genes if gene not in view.rows}):
        msg = (
            f"Expected perturbed genes in `held_out` that the model knows, found {len(unknown)} others: "
            f"{first_of(unknown)}. Leave their cells out."
        )
        raise ValueError(msg)
    if all(design.genes):
        msg = f"Expected control cells ('{view.setup['control']}') in `held_out` to compare with, found none. Add some."
        raise ValueError(msg)
    return Responses.of(view, held_out, design, TRAIN)
