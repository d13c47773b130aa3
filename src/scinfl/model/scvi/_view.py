"""What an audit may see of a model of scvi-tools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from anndata import AnnData
from torch import nn

from scinfl.model.base._view import ModelView
from scinfl.model.scvi._cells import CountCells
from scinfl.model.scvi._model import ScviModel
from scinfl.model.scvi._network import ScviNetwork, without_key
from scinfl.model.scvi._options import ScviOptions
from scinfl.privacy import Key


class ScviView(ModelView):
    """A model of scvi-tools, as an audit sees it."""

    model: ScviModel

    @property
    def n_sites(self) -> int:
        """Sites that the network has columns for."""
        return len(self.model.sites)

    def untrained(self, rng: int) -> ScviNetwork:
        """A plain network of the same shape with initial weights."""
        return cast("ScviNetwork", super().untrained(rng))

    def plain(self, network: nn.Module) -> ScviNetwork:
        """What a network computes with the key that it has, or with none."""
        return without_key(network)

    def cells(self, data: AnnData) -> CountCells:
        """Cells as the network reads them."""
        return self.model._cells_of(data)

    def native(self, data: AnnData) -> Any:
        """The model of scvi-tools with initial weights, on a copy of cells."""
        return self.model._agreed.over(data)

    @torch.inference_mode()
    def latent(self, network: ScviNetwork) -> np.ndarray:
        """Latent codes of the model's own cells by another network of its shape (cells × dimensions)."""
        cells = self.cells(self.model.adata)
        return torch.cat([network.eval().latent(batch) for batch in cells.batches(4096)]).numpy()

    def training_cells(self, training: Mapping[str, Any], key: Key | None) -> tuple[CountCells, CountCells]:
        """Cells that were trained on, and cells that were set aside, of all sites."""
        sites = self.model._data(ScviOptions(**{**training, "key": key})).values()
        rows = [np.concatenate([getattr(own, part).rows for own in sites]) for part in ("train", "validation")]
        every = self.model._training_cells(self.model.device)
        return every.part(np.sort(rows[0])), every.part(np.sort(rows[1]))
