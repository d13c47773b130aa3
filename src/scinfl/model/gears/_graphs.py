"""Which genes can be perturbed, and which of them are similar."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scinfl._checks import first_of, gene_names, warn
from scinfl._conditions import genes_of
from scinfl.model.gears._data import condition_names, covariate
from scinfl.model.gears._gene_ontology import gene_similarity, strongest_neighbours
from scinfl.module import GEARSModule

Edges: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Sources and targets (2 × n), and weights."""
Ontology: TypeAlias = pd.DataFrame | Mapping[str, Iterable[str]] | str | os.PathLike[str]


@dataclass(frozen=True)
class Vocabulary:
    """Names that a network is built for."""

    genes: list[str]
    perturbations: list[str]
    levels: dict[str, list[str]]
    ontology: Edges | None

    @classmethod
    def of(
        cls,
        adata: AnnData,
        setup: Mapping[str, Any],
        *,
        source: Ontology | None,
        further: Sequence[str],
        n_neighbours: int,
        levels: Mapping[str, Sequence[str]] | None = None,
    ) -> Vocabulary:
        """Names of data that were set up; warns of perturbed genes that are neither measured nor in the ontology."""
        genes = list(gene_names(adata, setup["gene_key"]))
        names = condition_names(adata, setup["condition_key"], setup["control"])
        sets = {name: genes_of(name, setup["control"]) for name in names.unique()}
        perturbed = sorted({gene for members in sets.values() for gene in members})
        table = None
        if source is not None:
            wanted = None if isinstance(source, pd.DataFrame) else {*genes, *perturbed, *further}
            table = gene_similarity(source, wanted)
        listed: set[str] = set() if table is None else {*table["source"], *table["target"]}
        if unknown := {gene for gene in perturbed if gene not in {*genes, *further, *listed}}:
            n_cells = int(names.map(lambda name: not unknown.isdisjoint(sets[name])).sum())
            warn(
                f"Expected perturbed genes among the {len(genes)} measured genes or those of the gene ontology, found "
                f"{len(unknown)} in neither ({n_cells} cells): {first_of(sorted(unknown))}. Nothing is known of which "
                "genes they resemble: their own cells alone train them. Correct their names, or drop their cells with "
                "`scinfl.pp.perturbations(adata, unknown='drop')`."
            )
        vocabulary = sorted({*perturbed, *further, *(listed or genes)})
        found = {key: set(covariate(adata, key)) | set((levels or {}).get(key, ())) for key in setup["covariate_keys"]}
        found_levels = {key: sorted(own) for key, own in found.items()}
        return cls(genes, vocabulary, found_levels, _ontology_edges(table, vocabulary, n_neighbours))


def _ontology_edges(table: pd.DataFrame | None, vocabulary: Sequence[str], n_neighbours: int) -> Edges | None:
    if table is None:
        warn(
            "No gene ontology: perturbed genes are compared by their co-expression alone, which is unknown for genes "
            "that were not measured. Pass `gene_ontology=`, for example `scinfl.datasets.gene_ontology()`."
        )
        return None
    rows = {gene: row for row, gene in enumerate(vocabulary)}
    table = strongest_neighbours(table, n_neighbours)
    edges = np.stack([table[end].map(rows).to_numpy(np.int64) for end in ("source", "target")])
    return edges, table["importance"].to_numpy(np.float32)


def put_graphs(
    module: GEARSModule, coexpression: Edges, ontology: Edges | None, genes: Sequence[str], rows: Mapping[str, int]
) -> None:
    """Give a network its graphs; without an ontology perturbed genes are compared by co-expression too."""
    edges, weights = coexpression
    module.set_graph("coexpression", torch.from_numpy(edges), torch.from_numpy(weights).float())
    if ontology is None:
        edges = np.array([rows.get(gene, -1) for gene in genes])[edges]
        known = (edges >= 0).all(0)
        ontology = edges[:, known], weights[known]
    module.set_graph("ontology", torch.from_numpy(ontology[0]), torch.from_numpy(ontology[1]).float())
