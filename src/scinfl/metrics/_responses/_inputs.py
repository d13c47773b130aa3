"""Predictions, cells and gene sets brought to one order, or refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from scinfl._checks import complete_names, first_of
from scinfl._conditions import canonical, canonical_names

_TABLES = ("top_de", "top_non_zero_de", "top_non_dropout_de")


def aligned_predictions(predicted: pd.DataFrame, cells: Any, genes: Sequence[str] | None, control: str) -> pd.DataFrame:
    """Predictions under canonical names, in the order of the measured genes."""
    if len(predicted) == 0 or cells.shape[0] == 0:
        msg = f"Expected predictions and cells, found {len(predicted)} perturbations and {cells.shape[0]} cells."
        raise ValueError(msg)
    expected = list(map(str, predicted.columns if genes is None else genes))
    if len(expected) != cells.shape[1]:
        msg = f"Expected a name for each of the {cells.shape[1]} genes of `cells`, found {len(expected)}."
        raise ValueError(msg)
    found = list(map(str, predicted.columns))
    if sorted(found) != sorted(expected) or len(set(found)) != len(found):
        odd = sorted(set(found) ^ set(expected)) or sorted({name for name in found if found.count(name) > 1})
        msg = f"Expected predictions for the measured genes, each once, found a difference in {first_of(odd)}."
        raise ValueError(msg)
    names = [canonical(name, control) for name in predicted.index]
    if control in names:
        msg = f"Expected predictions for perturbations only, found one for the control '{control}'. Drop this row."
        raise ValueError(msg)
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        msg = f"Expected one prediction a perturbation, found several for {first_of(repeated)}. Drop or average them."
        raise ValueError(msg)
    predicted = predicted.set_axis(found, axis=1).set_axis(names, axis=0)[expected]
    if not np.isfinite(predicted.to_numpy(np.float64)).all():
        msg = "Expected finite predictions, found missing or infinite ones. Drop these perturbations or genes."
        raise ValueError(msg)
    return predicted


def condition_codes(conditions: Any, cells: Any, names: list[str], control: str) -> np.ndarray:
    """Number of the perturbation of each cell; the control comes last, -1 is none of them."""
    conditions = complete_names(conditions, "conditions", cells.shape[0])
    spelled = canonical_names(conditions, control)
    number = {name: position for position, name in enumerate([*names, control])}
    codes = np.array([number.get(spelled[condition], -1) for condition in conditions])
    empty = np.bincount(codes[codes >= 0], minlength=len(number)) == 0
    if empty[-1]:
        msg = (
            f"Expected control cells ('{control}') in `conditions`, found none. The measured change is relative to "
            "them: keep a half of the control cells for scoring."
        )
        raise ValueError(msg)
    if empty.any():
        without = [name for name, none in zip(names, empty, strict=False) if none]
        msg = f"Expected measured cells of every predicted perturbation, found none of {first_of(without)}."
        raise ValueError(msg)
    return codes


def aligned_control(control_mean: np.ndarray | pd.Series, genes: pd.Index) -> np.ndarray:
    """Mean of the control in the order of the measured genes."""
    if isinstance(control_mean, pd.Series):
        if set(map(str, control_mean.index)) != set(genes):
            msg = "Expected `control_mean` to be indexed by the measured genes, found others. Pass an array or reindex."
            raise ValueError(msg)
        control_mean = control_mean.set_axis(control_mean.index.astype(str))[genes].to_numpy()
    values = np.asarray(control_mean, np.float64)
    if values.shape != (len(genes),) or not np.isfinite(values).all():
        msg = f"Expected `control_mean` to be {len(genes)} finite numbers, one per gene, found shape {values.shape}."
        raise ValueError(msg)
    return values


def subgroup_of(subgroups: Any, names: list[str], control: str) -> dict[str, str]:
    """Subgroup of each perturbation, from either way to write it."""
    if subgroups is None:
        return dict.fromkeys(names, "all")
    found: dict[str, str] = {}
    for name, value in subgroups.items():
        pairs = [(name, value)] if isinstance(value, str) else [(member, name) for member in value]
        found |= {canonical(member, control): str(group) for member, group in pairs}
    if missing := [name for name in names if name not in found]:
        msg = f"Expected a subgroup for every perturbation, found none for {first_of(missing)}. Add it to `subgroups`."
        raise ValueError(msg)
    return found


def aligned_cells(
    predicted_cells: Mapping[str, Any] | None, names: list[str], n_genes: int, control: str
) -> dict[str, Any]:
    """Predicted cells under canonical names."""
    cells = {canonical(name, control): values for name, values in (predicted_cells or {}).items()}
    if unknown := sorted(set(cells) - set(names)):
        msg = f"Expected `predicted_cells` of predicted perturbations, found {first_of(unknown)} as well."
        raise ValueError(msg)
    if wrong := [name for name, values in cells.items() if values.ndim != 2 or values.shape[1] != n_genes]:
        msg = f"Expected `predicted_cells` to be cells × {n_genes} genes, found other shapes for {first_of(wrong)}."
        raise ValueError(msg)
    return cells


def gene_positions(top_genes: Mapping[str, Any] | None, predicted: pd.DataFrame, control: str) -> dict[str, np.ndarray]:
    """Positions of named genes by table, (perturbations, k); -1 where a name is no gene."""
    if top_genes is None:
        return {}
    tables = {key: top_genes[key] for key in _TABLES if key in top_genes}
    if not tables:
        msg = f"Expected `top_genes` to hold some of {', '.join(_TABLES)}, found {first_of(list(top_genes))}."
        raise ValueError(msg)
    if "conditions" in top_genes:
        tables = {key: dict(zip(top_genes["conditions"], table, strict=True)) for key, table in tables.items()}
    return {key: _positions(key, table, predicted, control) for key, table in tables.items()}


def _positions(key: str, table: Any, predicted: pd.DataFrame, control: str) -> np.ndarray:
    rows = table.iterrows() if isinstance(table, pd.DataFrame) else table.items()
    named = {canonical(str(name), control): list(row) for name, row in rows}
    if missing := [name for name in predicted.index if name not in named]:
        msg = f"Expected `top_genes['{key}']` to hold every perturbation, found none for {first_of(missing)}."
        raise ValueError(msg)
    positions = np.full((len(predicted), max(len(named[name]) for name in predicted.index)), -1)
    for number, name in enumerate(predicted.index):
        positions[number, : len(named[name])] = predicted.columns.get_indexer(named[name])
    return positions
