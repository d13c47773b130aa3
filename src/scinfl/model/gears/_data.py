"""Which cell has which perturbation, and the batches that a site trains on."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scinfl._checks import (
    complete_column,
    first_of,
    gene_names,
    is_continuous,
    missing,
    obs_column,
    told_apart,
    unique,
    warn,
)
from scinfl._conditions import canonical_names, genes_of
from scinfl._spelling import argument
from scinfl.model.base._cells import Matrix, sites_of
from scinfl.model.gears._moments import Moments
from scinfl.module import Conditions, Targets

TRAIN, VALIDATION, TEST = "train", "val", "test"


class Condition(NamedTuple):
    """Set of perturbed genes under levels of the covariates; no genes for controls."""

    genes: tuple[str, ...]
    covariates: tuple[int, ...] = ()


class MeanChange(NamedTuple):
    """Mean change of a condition at a site."""

    condition: Condition
    n_cells: float
    change: np.ndarray
    noise: np.ndarray  # variance of the mean of its controls


@dataclass(frozen=True)
class Design:
    """What is known of each cell beside its expression."""

    genes: list[tuple[str, ...]]
    covariates: np.ndarray
    site: np.ndarray
    part: np.ndarray

    @classmethod
    def of(cls, adata: AnnData, setup: Mapping[str, object], levels: Mapping[str, Sequence[str]]) -> Design:
        """Read the columns that the setup names."""
        control = str(setup["control"])
        names = condition_names(adata, str(setup["condition_key"]), control)
        sets = {name: genes_of(name, control) for name in names.unique()}
        covariates = np.column_stack(
            [np.empty((adata.n_obs, 0), int), *(_codes(adata, key, known) for key, known in levels.items())]
        )
        site = sites_of(adata, setup["site_key"]).astype(str).to_numpy()  # type: ignore[arg-type]
        part = np.full(adata.n_obs, TRAIN, dtype=object)
        if setup["split_key"] is not None and setup["split_key"] in adata.obs:
            column = obs_column(adata, str(setup["split_key"]), "split_key")
            part = column.astype(object).where(~missing(column), "").astype(str).to_numpy()
            _check_parts(names.to_numpy(), part, control, str(setup["split_key"]))
        return cls([sets[name] for name in names], covariates.astype(int), site, part)

    def rows(self, part: str, *, site: str | None = None) -> dict[Condition, np.ndarray]:
        """Cells of every condition of a part, controls included, sorted by condition."""
        chosen = self.part == part
        if site is not None:
            chosen = chosen & (self.site == site)
        found: dict[Condition, list[int]] = {}
        for index in np.flatnonzero(chosen):
            found.setdefault(Condition(self.genes[index], tuple(self.covariates[index].tolist())), []).append(
                int(index)
            )
        return {condition: np.array(found[condition]) for condition in sorted(found)}

    def with_validation(self, share: float, rng: int) -> Design:
        """Set a share of the training perturbations aside, if none are yet."""
        if share == 0 or (self.part == VALIDATION).any():
            return self
        return self.set_aside(draw_validation(self.training_sets(), share, rng))

    def training_sets(self) -> set[tuple[str, ...]]:
        """Sets of genes that cells to train on were perturbed in."""
        return {genes for genes, part in zip(self.genes, self.part, strict=True) if part == TRAIN and genes}

    def set_aside(self, sets: Collection[tuple[str, ...]]) -> Design:
        """Validate on some of the training perturbations."""
        moved = np.array([genes in sets for genes in self.genes], dtype=bool)
        part = np.where(moved & (self.part == TRAIN), VALIDATION, self.part)
        return Design(self.genes, self.covariates, self.site, part)

    def at(self, site: str) -> Design:
        """All cells are of one site."""
        return Design(self.genes, self.covariates, np.full(len(self.site), site), self.part)


def draw_validation(sets: Collection[tuple[str, ...]], share: float, rng: int) -> set[tuple[str, ...]]:
    """Draw a share of perturbations to validate on, single ones and combinations apart."""
    generator, aside = np.random.default_rng(rng), set()
    ordered = sorted(sets)
    for chosen in ([genes for genes in ordered if len(genes) == 1], [genes for genes in ordered if len(genes) > 1]):
        n = min(math.ceil(share * len(chosen)), max(len(chosen) - 2, 0))
        aside |= {chosen[index] for index in generator.choice(len(chosen), n, replace=False)}
    return aside


def condition_names(adata: AnnData, condition_key: str, control: str) -> pd.Series:
    """Canonical name of the perturbation of every cell."""
    cure = "Drop these cells, or name their perturbation."
    column = complete_column(adata, condition_key, "condition_key", "a condition for every cell", cure).astype(str)
    return column.map(canonical_names(column.unique(), control))


def check_genes(adata: AnnData, matrix: Matrix, gene_key: str | None, *, zeros: bool = True) -> None:
    """Refuse names of genes that occur twice; warn of genes that are zero in all cells (with ``zeros``)."""
    names = gene_names(adata, gene_key)
    unique(names, "names of genes", "Merge or drop them.")
    zero = np.asarray(abs(matrix).sum(0)).ravel() == 0
    if zeros and zero.any():
        warn(
            f"Expected genes that are expressed somewhere, found {int(zero.sum())} that are zero in all cells: "
            f"{first_of(names[zero])}. The network learns that they stay zero. Drop them with "
            "`sc.pp.filter_genes(adata, min_cells=1)` to leave them out; perturbed ones among them stay known through "
            "the gene ontology or `perturbation_genes`."
        )


def check_conditions(names: pd.Series, control: str, condition_key: str) -> None:
    """Refuse data without controls or without perturbations; warn of perturbations of a single cell."""
    counts = names.value_counts()
    if control not in counts.index:
        msg = (
            f"Expected control cells named '{control}' in adata.obs['{condition_key}'], found none. The commonest "
            f"conditions are {first_of(counts.index)}; name the control with {argument('control')}."
        )
        raise ValueError(msg)
    if len(counts) < 2:
        msg = f"Expected perturbed cells in adata.obs['{condition_key}'], found controls alone."
        raise ValueError(msg)
    if single := sorted(counts.index[counts == 1]):
        warn(
            f"Expected at least 2 cells of every condition, found 1 of {len(single)}: {first_of(single)}. A single "
            "cell has no variance, so training leaves them out."
        )


def covariate(adata: AnnData, key: str, *, shared: bool = False) -> pd.Series:
    """Level of a covariate of every cell; with ``shared``, one that most cells share with others."""
    found = complete_column(adata, key, "covariate_keys", "a level for every cell")
    if shared and is_continuous(found):
        msg = (
            f"Expected levels that many cells share in adata.obs['{key}'], found {found.nunique()} for {len(found)} "
            "cells. Group them, for example with `pandas.cut`."
        )
        raise ValueError(msg)
    return told_apart(found, f"adata.obs['{key}']").astype(str)


def _codes(adata: AnnData, key: str, levels: Sequence[str]) -> np.ndarray:
    values = covariate(adata, key)
    if unknown := sorted(set(values) - set(levels)):
        msg = (
            f"Expected adata.obs['{key}'] to hold the levels {list(levels)}, found {first_of(unknown)}. "
            "Drop these cells."
        )
        raise ValueError(msg)
    return pd.Categorical(values, categories=levels).codes


def _check_parts(names: np.ndarray, part: np.ndarray, control: str, split_key: str) -> None:
    if unknown := sorted(set(part) - {TRAIN, VALIDATION, TEST, ""}):
        msg = (
            f"Expected adata.obs['{split_key}'] to hold 'train', 'val' and 'test', found {first_of(unknown)}. "
            "Write it with `scinfl.pp.split_perturbations`."
        )
        raise ValueError(msg)
    table = pd.DataFrame({"name": names, "part": part})[part != ""].drop_duplicates()  # any cell may be left out
    twice = table["name"][table["name"].duplicated() & (table["name"] != control)].unique()
    if len(twice):
        msg = (
            f"Expected each perturbation in one part of adata.obs['{split_key}'], found {len(twice)} in several: "
            f"{first_of(twice)}. Split by perturbation, with `scinfl.pp.split_perturbations`."
        )
        raise ValueError(msg)


@dataclass(frozen=True)
class SiteCells:
    """Conditions of one site, with the cells of each and the controls they are compared with."""

    conditions: list[Condition]
    rows: list[np.ndarray]
    controls: list[np.ndarray]
    n_left_out: int

    @classmethod
    def of(cls, design: Design, part: str, site: str, min_cells: int) -> SiteCells:
        """Conditions of a part that have enough cells and controls at the site."""
        controls = {c.covariates: rows for c, rows in design.rows(TRAIN, site=site).items() if not c.genes}
        found = {c: rows for c, rows in design.rows(part, site=site).items() if c.genes}
        if found and not controls:
            msg = (
                f"Expected control cells to train on at site '{site}', found none. Every site needs its own: add them, "
                "or leave the site out."
            )
            raise ValueError(msg)
        kept = [c for c, rows in found.items() if len(rows) >= min_cells and len(controls.get(c.covariates, ())) > 1]
        base = [Condition((), covariates) for covariates in controls] if part == TRAIN else []
        return cls(
            [*base, *kept],
            [*[np.array([], int)] * len(base), *[found[c] for c in kept]],
            [*[controls[c.covariates] for c in base], *[controls[c.covariates] for c in kept]],
            len(found) - len(kept),
        )

    def counts(self) -> dict[Condition, int]:
        """Cells of every condition."""
        return {
            condition: len(rows) if condition.genes else len(controls)
            for condition, rows, controls in zip(self.conditions, self.rows, self.controls, strict=True)
        }

    def moments(self, matrix: Matrix) -> Moments:
        """Moments of the change of every condition."""
        return Moments.of(matrix, self.rows, self.controls)


def mean_changes(conditions: Sequence[Condition], moments: Moments) -> list[MeanChange]:
    """Mean change of each condition."""
    columns = (conditions, moments.n_cells, moments.mean, moments.noise)
    return [MeanChange(*own) for own in zip(*columns, strict=True)]


class ConditionBatches:
    """Conditions of a site and their targets, as batches."""

    def __init__(
        self,
        conditions: Sequence[Condition],
        moments: Moments,
        prior: np.ndarray,
        weight: np.ndarray,
        number: np.ndarray,
        vocabulary: Mapping[str, int],
        device: torch.device,
    ) -> None:
        self._members = [[vocabulary[gene] for gene in c.genes] for c in conditions]
        self._covariates = [list(c.covariates) for c in conditions]
        self._device = device
        self.n_effective = float(weight.sum())
        powers = (moments.mean, moments.variance, moments.third, moments.fourth)
        arrays = (*powers, moments.expressed, prior, moments.top, weight, number)
        self._targets = Targets(*(torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays))

    def __len__(self) -> int:
        return len(self._members)

    def batches(
        self, batch_size: int, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Conditions, Targets]]:
        """Batches of nearly equal size, shuffled where a generator is given."""
        n = len(self)
        order = torch.arange(n) if generator is None else torch.randperm(n, generator=generator)
        for chosen in torch.tensor_split(order, max(1, round(n / batch_size))):
            conditions = Conditions.of(
                [self._members[index] for index in chosen],
                covariates=[self._covariates[index] for index in chosen],
                device=self._device,
            )
            yield conditions, self._targets[chosen.to(self._device)]
