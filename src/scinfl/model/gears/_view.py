"""What an audit may see of a model of perturbation response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from anndata import AnnData

from scinfl.model.base._cells import Matrix
from scinfl.model.base._view import ModelView
from scinfl.model.gears._data import Condition, ConditionBatches, Design, SiteCells
from scinfl.model.gears._graphs import Edges
from scinfl.model.gears._model import GEARS
from scinfl.model.gears._moments import Moments
from scinfl.module import GEARSModule


class GEARSView(ModelView):
    """A model of perturbation response, as an audit sees it."""

    model: GEARS

    @property
    def prior(self) -> str | None:
        """Baseline whose residual the network learns."""
        return self.model._prior_kind

    @property
    def levels(self) -> Mapping[str, Sequence[str]]:
        """Levels of the covariates, by covariate."""
        return self.model._levels

    @property
    def rows(self) -> Mapping[str, int]:
        """Row of the vocabulary of every gene that may be perturbed."""
        return self.model._rows

    @property
    def conditions(self) -> Sequence[Condition]:
        """Conditions of training, which a saved model lists."""
        return self.model._agreed or ()

    @property
    def ontology_edges(self) -> Edges | None:
        """Edges and weights of the gene ontology."""
        return self.model._ontology

    @property
    def ontology(self) -> np.ndarray:
        """Public graph that spreads the embeddings of perturbed genes (vocabulary × vocabulary)."""
        return self.model.module.graphs["ontology"].to_dense().double().numpy()

    def design(self, adata: AnnData, **setup: Any) -> Design:
        """What is known of each cell beside its expression."""
        return Design.of(adata, {**self.setup, **setup}, self.levels)

    def values(self, adata: AnnData) -> Matrix:
        """Expression (cells × genes)."""
        return self.model._matrix(adata)

    def batches(self, site: str, cells: SiteCells, moments: Moments, weight: np.ndarray) -> ConditionBatches:
        """Conditions of a site as it trains on them."""
        place = torch.device("cpu")
        return self.model._batches(
            site, cells, moments, weight, self.conditions, leave_out=True, device=place, local=False
        )

    def untrained(self, rng: int) -> GEARSModule:
        """A plain network of the same shape with initial weights, on the graphs of the model."""
        model = self.model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng)
            network = GEARSModule(
                model.genes, model.perturbation_genes, covariates=self.levels, **model._network_options
            )
        network.graphs, network.agreed = model.module.graphs, model.module.agreed
        return network

    def remade(self, data: Any, **setup: Any) -> Any:
        """An untrained model of the same settings and ontology for other cells."""
        other = super().remade(data, **setup)
        other._ontology = self.ontology_edges
        return other

    def _arguments(self) -> dict[str, Any]:
        facts = {**self.model._facts(), "agreed": None, "statistics_stored": False}
        return {**super()._arguments(), "facts": facts}
