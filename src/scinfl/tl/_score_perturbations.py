"""Score predicted responses to perturbations, with the simple baselines beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scinfl import _names
from scinfl import metrics as scores
from scinfl._checks import first_of, gene_names, obs_column, one_of, values_of
from scinfl._conditions import canonical, scoring_controls
from scinfl.model import GEARS


def score_perturbations(
    adata: AnnData,
    models: Mapping[str, GEARS | pd.DataFrame] | GEARS,
    *,
    part: str = "test",
    layer: str | None = None,
    similarity: pd.DataFrame | None = None,
    baselines: bool = True,
    covariates: Mapping[str, str] | None = None,
    metrics: Sequence[str] | str | None = None,
) -> pd.DataFrame:
    """Score models on held-out perturbations, and simple baselines on the same.

    Predictions start from the control cells of the training half, the measured change from those of the test half
    (:func:`scinfl.pp.split_perturbations`), so that they share no noise.

    Parameters
    ----------
    adata
        Cells that went through :func:`scinfl.pp.perturbations` and :func:`scinfl.pp.split_perturbations`.
    models
        Trained models by name, or predicted changes (perturbations × genes, by ``adata.var_names`` or by name) of any
        other method.
    part
        ``"test"`` or ``"val"``.
    layer
        Layer that the models were trained on.
    similarity
        Gene similarities (source, target, importance) for the baseline ``"similar"``.
    baselines
        Add no change, train mean, nearest, additive and linear (:func:`scinfl.metrics.perturbation_baselines`).
    covariates
        See :meth:`scinfl.model.GEARS.predict`.
    metrics
        Names of the scores to return, all by default.

    Returns
    -------
    Tidy data frame with the columns ``method``, ``perturbation``, ``metric``, ``value`` and ``subgroup``, see
    :func:`scinfl.metrics.perturbation`.

    Raises
    ------
    KeyError
        If the cells were not prepared.
    ValueError
        If no perturbation is held out.

    Examples
    --------
    >>> import scinfl as si
    >>> adata = si.datasets.perturbseq_simulated(100, n_singles=12, n_doubles=8, n_cells=20)
    >>> si.pp.perturbations(adata)
    >>> si.pp.split_perturbations(adata, "combo_seen2")
    >>> table = si.tl.score_perturbations(adata, {})
    >>> sorted(table["method"].unique())
    ['additive', 'linear', 'nearest', 'no change', 'train mean']
    """
    one_of("part", part, ["test", "val"])
    if isinstance(models, GEARS):
        models = {"GEARS": models}
    known = prepared(adata, part)
    names = adata.obs[_names.PERTURBATION].astype(str).to_numpy()
    parts = adata.obs[_names.SPLIT].astype(object).to_numpy()
    is_control = names == str(known["control"])
    wanted = held_out(adata, part)
    matrix = values_of(adata, layer)
    start = matrix[np.flatnonzero(is_control & (parts == "train"))]
    control = np.asarray(start.mean(0), np.float64).ravel()
    changes = {
        name: model.copy() if isinstance(model, pd.DataFrame) else model.predict_change(wanted, covariates=covariates)
        for name, model in models.items()
    }
    for name, change in changes.items():
        change.index = [canonical(str(row), str(known["control"])) for row in change.index]
        if absent := sorted(set(wanted) - set(change.index)):
            msg = f"Expected a row of `models['{name}']` for each of {len(wanted)}, found none for {first_of(absent)}."
            raise ValueError(msg)
    # genes are ranked, and perturbed, by name
    genes = gene_names(adata, known.get("gene_key"))
    changes = {
        name: change.rename(columns=dict(zip(adata.var_names, genes, strict=True))) for name, change in changes.items()
    }
    rows = np.flatnonzero(parts == "train")
    trained = scores.mean_changes(matrix[rows], names[rows], genes, control=str(known["control"]))
    if baselines:
        changes = {**scores.perturbation_baselines(trained, wanted, similarity=similarity), **changes}
    scored = ((parts == part) & ~is_control) | scoring_controls(is_control, parts)
    subgroups = adata.uns[_names.UNS].get("split", {}).get(part) or None
    tables = []
    for method, change in changes.items():
        table = scores.perturbation(
            change.loc[wanted] + control,
            matrix[scored],
            names[scored],
            control_mean=control,
            perturbed_mean=control + trained.to_numpy().mean(0),
            control=str(known["control"]),
            subgroups=_named_groups(subgroups, wanted),
            top_genes=known,
            control_cells=start,
        )
        tables.append(table.assign(method=method))
    table = pd.concat(tables, ignore_index=True)[["method", "perturbation", "metric", "value", "subgroup"]]
    if metrics is None:
        return table
    chosen = [metrics] if isinstance(metrics, str) else list(metrics)
    for metric in chosen:
        one_of("metrics", metric, sorted(table["metric"].unique()))
    return table[table["metric"].isin(chosen)].reset_index(drop=True)


def prepared(adata: AnnData, part: str) -> Mapping[str, Any]:
    """What is known of the perturbations of cells; refuse cells without names, or of which none are held out."""
    known = adata.uns.get(_names.UNS, {}).get("perturbations")
    if known is None or _names.SPLIT not in adata.obs:
        msg = (
            "Expected cells with perturbations and a split, found none in adata.uns['infl'] and adata.obs. Run "
            "`scinfl.pp.perturbations(adata)` and `scinfl.pp.split_perturbations(adata)` first."
        )
        raise KeyError(msg)
    obs_column(adata, _names.PERTURBATION, "perturbation_key")
    if not held_out(adata, part):
        msg = f"Expected perturbations in part '{part}' of adata.obs['{_names.SPLIT}'], found none. Split again."
        raise ValueError(msg)
    return known


def held_out(adata: AnnData, part: str = "test") -> list[str]:
    """Perturbations of a part, in the order of the alphabet."""
    names, control = adata.obs[_names.PERTURBATION].astype(str), str(adata.uns[_names.UNS]["perturbations"]["control"])
    return sorted(set(names[(adata.obs[_names.SPLIT] == part) & (names != control)]))


def _named_groups(subgroups: Mapping[str, Any] | None, held_out: list[str]) -> dict[str, str] | None:
    if subgroups is None:
        return None
    found = {str(name): group for group, members in subgroups.items() for name in members}
    return {name: found.get(name, "other") for name in held_out}
