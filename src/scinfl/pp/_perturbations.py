"""Name the perturbations of cells and find the genes that each changes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scinfl import _names
from scinfl._checks import (
    complete_column,
    finite,
    first_of,
    gene_names,
    indexable,
    one_of,
    owns_data,
    unique,
    values_of,
    warn,
    warn_of_counts,
    whole_number,
)
from scinfl._conditions import CONTROL, canonical_names, genes_of, respelled
from scinfl.metrics import condition_moments, rank_genes, top_genes

logger = logging.getLogger(__name__)


def perturbations(
    adata: AnnData,
    condition_key: str = "condition",
    *,
    control: str = CONTROL,
    layer: str | None = None,
    gene_key: str | None = None,
    known_genes: Iterable[str] | None = None,
    unknown: str = "error",
    n_top: int = 20,
) -> None:
    """Name the perturbation of every cell, and find the genes that each perturbation changes.

    ``"A+ctrl"``, ``"ctrl+A"`` and ``"A"`` are one perturbation, and so are ``"A+B"`` and ``"B+A"``. Genes are ranked
    against the control by the absolute value of Welch's t over the cells, as GEARS does (Roohani et al. 2024). Expects
    log-normalised expression.

    Sets the following fields:

    ``.obs["infl_perturbation"]``
        Categorical: the control first, then ``"A"``, ``"A+B"``, … in the order of the alphabet.
    ``.uns["infl"]["perturbations"]``
        ``control`` and ``condition_key`` (and ``gene_key`` if given) as passed, ``conditions`` (without the control),
        ``n_cells`` of each, and names of genes (conditions × ``n_top``, ``""`` where there are fewer): ``top_de``,
        the most differential; ``top_non_zero_de``, of those expressed in the condition; ``top_non_dropout_de``, of
        those expressed in the condition, or neither in the condition nor in the control.

    Parameters
    ----------
    adata
        Annotated data, no view. Expression of a backed one is read into memory.
    condition_key
        Column of ``adata.obs`` with conditions like ``"ctrl"``, ``"A+ctrl"`` and ``"A+B"``.
    control
        The condition of unperturbed cells.
    layer
        Layer with the expression; ``adata.X`` by default.
    gene_key
        Column of ``adata.var`` with the names of genes, where ``adata.var_names`` are ids.
    known_genes
        Genes that may be perturbed though they were not measured, for example those of a gene ontology.
    unknown
        What happens to cells whose perturbed genes are neither measured nor in ``known_genes``: ``"error"``;
        ``"drop"``, which takes these cells out of ``adata`` in place; or ``"keep"``, for expression that was reduced to
        a selection of genes. They are never taken for controls.
    n_top
        Genes of a table.

    Raises
    ------
    KeyError
        If there is no such column or layer.
    TypeError
        If `known_genes` is a single text.
    ValueError
        If conditions are missing or malformed, no cell is a control or none is perturbed, genes are unknown or named
        twice, or expression is not finite.

    Warns
    -----
    UserWarning
        If expression looks like counts, a gene is zero in all cells, or a condition has a single cell.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd, scinfl as si
    >>> X = np.array([[0, 1, 2], [0, 2, 2], [3, 1, 2], [4, 2, 2], [0, 5, 1], [0, 6, 1]], dtype="float32")
    >>> obs = pd.DataFrame({"condition": ["ctrl", "ctrl", "A+ctrl", "ctrl+A", "B+A", "A+B"]}, index=list("uvwxyz"))
    >>> adata = ad.AnnData(X, obs, pd.DataFrame(index=["A", "B", "C"]))
    >>> si.pp.perturbations(adata, n_top=1)
    >>> adata.obs["infl_perturbation"].to_list()
    ['ctrl', 'ctrl', 'A', 'A', 'A+B', 'A+B']
    >>> adata.uns["infl"]["perturbations"]["top_de"].tolist()
    [['A'], ['B']]
    """
    one_of("unknown", unknown, ["error", "drop", "keep"])
    whole_number("n_top", n_top, 1)
    owns_data(adata)
    genes = _gene_names(adata, gene_key)
    names = _perturbation_names(adata, condition_key, control)
    kept = _known(adata, names, set(genes), known_genes, control, unknown)
    if not kept.all() and adata.isbacked:
        msg = "Expected cells in memory to drop some of them, found a backed AnnData. Read with `adata.to_memory()`."
        raise ValueError(msg)
    X = values_of(adata, layer)
    X, names = (X, names) if kept.all() else (X[kept], names[kept])
    conditions = sorted(set(names) - {control})
    if not conditions:
        msg = (
            f"Expected perturbed cells in addition to the control {control!r} in adata.obs['{condition_key}'], found "
            "none. Check `condition_key`, and `known_genes` if cells were dropped."
        )
        raise ValueError(msg)
    finite(X, list(genes))
    values = pd.Categorical(names, categories=[control, *conditions])
    moments = condition_moments(X, values.codes.astype(np.int64), len(values.categories))
    _warn_of_weak_data(X, genes, values, moments)
    record = {"control": control, "condition_key": condition_key, **({"gene_key": gene_key} if gene_key else {})}
    tables = _tables(*moments, genes, n_top)
    if not kept.all():
        indexable(adata, inplace=True)
        adata._inplace_subset_obs(kept)
    adata.obs[_names.PERTURBATION] = values
    adata.uns.setdefault(_names.UNS, {})["perturbations"] = {
        **record,
        "conditions": np.array(conditions, dtype=object),
        "n_cells": moments[0][1:],
        **tables,
    }


def _gene_names(adata: AnnData, gene_key: str | None) -> np.ndarray:
    genes = gene_names(adata, gene_key)
    where = "adata.var_names" if gene_key is None else f"adata.var['{gene_key}']"
    cure = "Make them unique with `adata.var_names_make_unique()`" if gene_key is None else "Rename or drop them"
    unique(genes, f"genes in {where}", f"{cure}.")
    return genes.to_numpy(dtype=object)


def _perturbation_names(adata: AnnData, condition_key: str, control: str) -> np.ndarray:
    cure = "Drop these cells, or name their perturbation."
    column = complete_column(adata, condition_key, "condition_key", "a condition for every cell", cure).astype(str)
    names = column.map(canonical_names(column.unique(), control)).to_numpy(dtype=object)
    if control not in names:
        msg = (
            f"Expected control cells with adata.obs['{condition_key}'] == {control!r}, found none. "
            f"The commonest conditions are {first_of(column.value_counts().index)}. Pass the control's as `control`."
        )
        raise ValueError(msg)
    return names


def _known(
    adata: AnnData,
    names: np.ndarray,
    genes: set[str],
    known_genes: Iterable[str] | None,
    control: str,
    unknown: str,
) -> np.ndarray:
    """Which cells have perturbed genes that are all known."""
    if isinstance(known_genes, str):
        msg = f"Expected `known_genes` to be several names, found the text {known_genes!r}. Pass a list."
        raise TypeError(msg)
    known = genes.union(map(str, () if known_genes is None else known_genes))
    strange = {name: set(genes_of(name, control)) - known for name in set(names)}
    missing = sorted(set().union(*strange.values()))
    kept = ~np.isin(names.astype(str), [name for name, absent in strange.items() if absent])
    if not missing:
        return kept
    n = int((~kept).sum())
    if unknown == "error":
        right = {name: respelled(name, [*known, control]) for name in missing}
        meant = next((f"For example {spelled!r} for {name!r}. " for name, spelled in right.items() if spelled), "")
        msg = (
            f"Expected every perturbed gene among the genes of adata or in `known_genes`, found {len(missing)} that "
            f"are not, in {n} cells: {first_of(missing, 20)}. {meant}{_column_of(adata, missing)}Correct the names, "
            "name the column of gene names with `gene_key`, pass `known_genes`, take the names as they are with "
            "`unknown='keep'` where genes were selected, or leave these cells out with `unknown='drop'`."
        )
        raise ValueError(msg)
    if unknown == "keep":
        logger.info("Kept %d cells whose perturbed genes are not measured: %s.", n, ", ".join(missing))
        return np.ones(len(names), bool)
    logger.info("Dropped %d cells whose perturbed genes are unknown: %s.", n, ", ".join(missing))
    return kept


def _column_of(adata: AnnData, missing: list[str]) -> str:
    """Sentence that names the column of ``adata.var`` with most of the missing genes, if there is one."""
    found = {str(column): int(pd.Index(missing).isin(adata.var[column].astype(str)).sum()) for column in adata.var}
    column = max(found, key=lambda name: found[name], default=None)
    if column is None or 2 * found[column] < len(missing):
        return ""
    return f"adata.var['{column}'] has {found[column]} of them: pass `gene_key='{column}'`. "


def _warn_of_weak_data(
    X: Any, genes: np.ndarray, values: pd.Categorical, moments: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    n, mean, variance = moments
    warn_of_counts(X, "log-normalised expression", ", or name a layer with `layer`")
    if len(silent := genes[((mean == 0) & (variance == 0)).all(0)]):
        warn(
            f"Expected every gene to be expressed, found {len(silent)} that are zero in all cells: {first_of(silent)}. "
            "Remove them with `sc.pp.filter_genes(adata, min_cells=1)`, and pass perturbed ones as `known_genes`."
        )
    if len(alone := values.categories[n == 1]):
        warn(
            f"Expected at least 2 cells of each condition, found 1 of {first_of(alone)}, whose variance counts as 0. "
            "Drop these cells, or read their genes with care."
        )


def _tables(
    n: np.ndarray, mean: np.ndarray, variance: np.ndarray, genes: np.ndarray, n_top: int
) -> Mapping[str, np.ndarray]:
    """Names of the top genes of each condition; the first row of the moments is the control's."""
    order = rank_genes(mean[1:], variance[1:], n[1:], mean[0], variance[0], int(n[0]))
    named = np.append(genes, "")  # so that a filler of -1 picks the empty name
    return {name: named[table] for name, table in top_genes(order, mean[1:], mean[0], n_top).items()}
