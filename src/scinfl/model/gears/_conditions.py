"""Which conditions the sites of a perturbation experiment train on and validate with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from anndata import AnnData

from scinfl.model.gears._data import TRAIN, VALIDATION, Condition, Design, SiteCells, covariate, draw_validation


@dataclass(frozen=True)
class AgreedConditions:
    """Conditions of all sites."""

    train: list[Condition]  # that any site trains on, in order
    validated: list[Condition]  # that any site validates with, in order
    aside: frozenset[tuple[str, ...]] = frozenset()  # perturbations that were drawn to validate with

    @classmethod
    def of_cells(
        cls, sites: Mapping[str, SiteCells], held_out: Mapping[str, SiteCells], aside: frozenset[tuple[str, ...]]
    ) -> AgreedConditions:
        """Conditions of sites that are all here."""
        train, validated = (_union(cells.conditions for cells in part.values()) for part in (sites, held_out))
        return cls(train, validated, aside)

    @classmethod
    def of_facts(
        cls, facts: Mapping[str, Mapping[str, Any]], levels: Mapping[str, Sequence[str]], share: float, rng: int
    ) -> AgreedConditions:
        """Conditions of sites that exchanged what they have, see :func:`condition_facts`."""
        rows = [_read(row, levels) for own in facts.values() for row in own["conditions"]]
        aside: set[tuple[str, ...]] = set()
        if share and not any(part == VALIDATION for _, part, _ in rows):
            aside = draw_validation({c.genes for c, part, _ in rows if part == TRAIN and c.genes}, share, rng)
        kept = [(c, VALIDATION if c.genes in aside else part) for c, part, enough in rows if enough]
        train, validated = (_union([[c for c, own in kept if own == part]]) for part in (TRAIN, VALIDATION))
        return cls(train, validated, frozenset(aside))


def condition_facts(adata: AnnData, setup: Mapping[str, Any], min_cells: int) -> dict[str, Any]:
    """What one site sends the others about its conditions: which it has, and whether it has enough cells of each."""
    levels = {key: sorted(covariate(adata, key).unique()) for key in setup["covariate_keys"]}
    design = Design.of(adata, setup, levels).at("here")
    rows = []
    for part in (TRAIN, VALIDATION):
        enough = {c for c in SiteCells.of(design, part, "here", min_cells).conditions if c.genes or part == TRAIN}
        found = set(design.rows(part, site="here")) if part == TRAIN else {c for c in design.rows(part) if c.genes}
        for condition in sorted(found | enough):
            names = [levels[key][code] for key, code in zip(levels, condition.covariates, strict=True)]
            rows.append([list(condition.genes), names, part, condition in enough])
    perturbed = sorted({gene for genes in design.genes for gene in genes})
    return {"conditions": rows, "levels": levels, "perturbed": perturbed}


def levels_of(facts: Mapping[str, Mapping[str, Any]], covariate_keys: Sequence[str]) -> dict[str, list[str]]:
    """Levels of each covariate over all sites."""
    return {key: sorted({level for own in facts.values() for level in own["levels"][key]}) for key in covariate_keys}


def _union(parts: Iterable[Sequence[Condition]]) -> list[Condition]:
    return sorted({condition for part in parts for condition in part})


def _read(row: Sequence[Any], levels: Mapping[str, Sequence[str]]) -> tuple[Condition, str, bool]:
    genes, names, part, enough = row
    codes = tuple(int(np.searchsorted(levels[key], name)) for key, name in zip(levels, names, strict=True))
    return Condition(tuple(genes), codes), str(part), bool(enough)
