"""Measured and predicted change of the cells of one perturbation, as a box plot takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scinfl import _names, metrics
from scinfl._checks import first_of, gene_names, values_of
from scinfl._conditions import SEPARATOR, canonical, genes_of, respelled, scoring_controls

if TYPE_CHECKING:
    from scinfl.model import GEARS


def response(
    adata: AnnData,
    models: Mapping[str, Any] | GEARS | None,
    perturbation: str | Sequence[str],
    genes: Sequence[str] | None,
    n_genes: int,
    layer: str | None,
) -> tuple[pd.DataFrame, dict[str, pd.Series], str]:
    """Change of every cell (tidy), changes predicted by model and by simple rules, and the perturbation's name."""
    known = adata.uns.get(_names.UNS, {}).get("perturbations")
    if known is None:
        msg = (
            "Expected cells with perturbations, found none in adata.uns['infl']. Run `scinfl.pp.perturbations(adata)` "
            "first."
        )
        raise KeyError(msg)
    control, measured = str(known["control"]), [str(name) for name in known["conditions"]]
    name = canonical(perturbation if isinstance(perturbation, str) else SEPARATOR.join(perturbation), control)
    if name not in measured:
        meant = respelled(name, {gene for own in measured for gene in genes_of(own, control)})
        cure = f"Write it as {meant!r}" if meant and canonical(meant) in measured else "Draw one of these"
        msg = f"Expected `perturbation` to be one of {len(measured)}: {first_of(measured)}, found {name!r}. {cure}."
        raise ValueError(msg)
    conditions = adata.obs[_names.PERTURBATION].astype(str).to_numpy()
    parts = adata.obs[_names.SPLIT].astype(object).to_numpy() if _names.SPLIT in adata.obs else None
    columns, matrix = gene_names(adata, known.get("gene_key")), values_of(adata, layer)
    drawn = [
        str(gene) for gene in (known["top_non_dropout_de"][measured.index(name)][:n_genes] if genes is None else genes)
    ]
    places = columns.get_indexer(drawn := [gene for gene in drawn if gene])
    if (places < 0).any():
        msg = (
            f"Expected `genes` to be measured, found {first_of(np.array(drawn)[places < 0].tolist())}. Leave them out."
        )
        raise ValueError(msg)
    start = np.asarray(matrix[np.flatnonzero(scoring_controls(conditions == control, parts))].mean(0)).ravel()
    cells = matrix[np.flatnonzero(conditions == name)][:, places]
    cells = (cells.toarray() if hasattr(cells, "toarray") else np.asarray(cells)) - start[places]
    table = pd.DataFrame({"gene": np.tile(drawn, len(cells)), "change": cells.ravel()})
    changes = _predicted(models, name)
    if parts is not None and (train := parts == "train").any():
        trained = metrics.mean_changes(matrix[np.flatnonzero(train)], conditions[train], columns, control=control)
        trained = trained.drop(index=name, errors="ignore")
        rules = metrics.perturbation_baselines(trained, [name], control=control)
        changes = {rule: rules[rule].loc[name] for rule in ("train mean", "additive") if rule in rules} | changes
    named = dict(zip(adata.var_names, columns, strict=True))
    return table, {method: change.rename(named) for method, change in changes.items()}, name


def _predicted(models: Mapping[str, Any] | GEARS | None, name: str) -> dict[str, pd.Series]:
    """The change that each model predicts."""
    if models is None:
        return {}
    named = models if isinstance(models, Mapping) else {type(models).__name__: models}
    tables = {
        method: model if isinstance(model, pd.DataFrame) else model.predict_change([name])
        for method, model in named.items()
    }
    for method, table in tables.items():
        if name not in table.index:
            msg = f"Expected a row '{name}' in `predictions['{method}']`, found {first_of(list(table.index))}. Add it."
            raise ValueError(msg)
    return {method: table.loc[name] for method, table in tables.items()}
