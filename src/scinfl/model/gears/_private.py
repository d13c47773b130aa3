"""A perturbation experiment as noisy sums, in place of its cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scinfl.model.base._cells import Matrix
from scinfl.model.gears._data import Condition, SiteCells
from scinfl.model.gears._graphs import Edges
from scinfl.model.gears._moments import N_TOP, Moments
from scinfl.privacy import SampleDP


@dataclass(frozen=True)
class SiteSums:
    """Conditions of one site with their noisy mean change, in place of :class:`SiteCells`."""

    conditions: list[Condition]
    n_cells: np.ndarray
    change: np.ndarray

    def counts(self) -> dict[Condition, float]:
        """Noisy number of cells of every condition."""
        return dict(zip(self.conditions, self.n_cells.tolist(), strict=True))

    def moments(self, matrix: Matrix) -> Moments:
        """Noisy means; what a squared loss does not need of the other moments is 0. The cells are not looked at."""
        del matrix
        none = np.zeros_like(self.change)
        top = np.full((len(self.change), N_TOP), -1)
        order = np.argsort(-np.abs(self.change), axis=1)[:, :N_TOP]
        perturbed = np.array([bool(condition.genes) for condition in self.conditions], dtype=bool)
        top[perturbed, : order.shape[1]] = order[perturbed]
        return Moments(self.n_cells, self.change, none, none, none, np.ones_like(none, dtype=bool), top, none)


def check_private(
    private: SampleDP, loss: str, uncertainty: str | None, ontology: Edges | None, sites: Mapping[str, SiteCells]
) -> None:
    """Refuse settings that need more of the cells than noisy means."""
    if loss == "quartic" or uncertainty is not None:
        what = "loss='quartic'" if loss == "quartic" else f"uncertainty={uncertainty!r}"
        msg = (
            f"Expected a loss that takes mean changes alone under SampleDP, found `{what}`: noise on higher moments "
            "would drown them. Use `loss='squared'` and `uncertainty=None`."
        )
        raise ValueError(msg)
    if ontology is None:
        msg = (
            "Expected a gene ontology under SampleDP, found none: perturbed genes would be compared by the "
            "co-expression of cells, which no noise of use hides. Make the model with `gene_ontology=`."
        )
        raise ValueError(msg)
    if private.unit == "group":
        msg = "Expected SampleDP to guard single cells of perturbations, found groups. Use `SampleDP(unit='row')`."
        raise ValueError(msg)
    n_cells = {name: sum(cells.counts().values()) for name, cells in sites.items()}
    for name, n in n_cells.items():
        if private.delta * n >= 1:
            msg = (
                f"Expected `SampleDP(delta=)` below one over the {n} cells of site '{name}', found {private.delta:g}: "
                "it would allow to show one of them whole. Lower it."
            )
            raise ValueError(msg)


def released(
    private: SampleDP,
    matrix: Matrix,
    train: Mapping[str, SiteCells],
    held_out: Mapping[str, SiteCells],
    *,
    spend: bool,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Noisy sums of every site (:class:`SiteSums`), to train on and to validate on."""
    parts: tuple[dict[str, SiteSums], dict[str, SiteSums]] = ({}, {})
    for name in train:
        sides = (train[name], held_out[name])
        controls = {
            condition.covariates: rows
            for side in sides
            for condition, rows in zip(side.conditions, side.controls, strict=True)
        }
        perturbed = [rows for side in sides for c, rows in zip(side.conditions, side.rows, strict=True) if c.genes]
        sums, numbers = private.release_sums(name, matrix, [*controls.values(), *perturbed], spend=spend)
        n_cells = np.maximum(numbers, 1)
        means = sums / n_cells[:, None]
        base = dict(zip(controls, range(len(controls)), strict=True))
        row = len(controls)
        for side, part in zip(sides, parts, strict=True):
            rows = []
            for condition in side.conditions:
                rows.append(row if condition.genes else base[condition.covariates])
                row += bool(condition.genes)
            part[name] = _site_sums(
                side.conditions, rows, [base[c.covariates] for c in side.conditions], n_cells, means
            )
    return parts


def _site_sums(
    conditions: list[Condition], rows: Sequence[int], base: Sequence[int], n_cells: np.ndarray, means: np.ndarray
) -> SiteSums:
    own, control = np.array(rows, dtype=int), np.array(base, dtype=int)
    return SiteSums(conditions, n_cells[own], means[own] - means[control])


def alone(n_genes: int) -> Edges:
    """Co-expression graph without any cell: every gene is linked to itself alone."""
    genes = np.arange(n_genes)
    return np.stack([genes, genes]), np.ones(n_genes)
