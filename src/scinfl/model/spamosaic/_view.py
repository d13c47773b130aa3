"""What an audit may see of a model of spatial sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from scinfl.federation import Payload, Protection
from scinfl.model.base._view import ModelView
from scinfl.model.spamosaic._basis_fit import BasisFit, fit_bases
from scinfl.model.spamosaic._batches import MosaicBatches, SpotTensors
from scinfl.model.spamosaic._measured import Measured
from scinfl.model.spamosaic._model import SpaMosaic, site_data
from scinfl.model.spamosaic._options import SpaMosaicOptions
from scinfl.model.spamosaic._prediction import X, place_of
from scinfl.model.spamosaic._spatial_basis import SpatialBasis
from scinfl.model.spamosaic._spots import Data, column_of
from scinfl.module import SpaMosaicModule
from scinfl.privacy import Key


class SpaMosaicView(ModelView):
    """A model of spatial sections, as an audit sees it."""

    model: SpaMosaic

    @property
    def bases(self) -> Mapping[str, SpatialBasis]:
        """Directions of the tissue by modality."""
        return self.model._bases

    @property
    def n_latent(self) -> int:
        """Length of a code."""
        return self.model._network_options["n_latent"]

    def untrained(self, rng: int) -> SpaMosaicModule:
        """A plain network of the same shape with initial weights."""
        return cast("SpaMosaicModule", super().untrained(rng))

    def sections(self, data: Data) -> np.ndarray:
        """Section of every spot."""
        return column_of(data, self.setup["section_key"], "section_key")

    def measured(self, data: Data, *, train: bool = False) -> dict[str, Measured]:
        """Spots by modality; with ``train`` what cannot be trained on is refused."""
        return self.model._measured(data, train=train)

    def tensors(self, modality: str, own: Measured, n_spots: int) -> SpotTensors:
        """What the network reads of spots of any sections."""
        return self.model._tensors_of(modality, own, n_spots)

    def columns(self, modality: str) -> slice:
        """Columns of the embedding that reconstruct a modality."""
        start = 0
        for name, names in self.model.feature_names.items():
            n_outputs = self.model._options.sizes(len(names))[2]
            if name == modality:
                break
            start += n_outputs
        return slice(start, start + n_outputs)

    def fitted(self, own: Measured, *, key: Key | None, protections: Sequence[Protection], rng: int) -> BasisFit:
        """Let the sites of a modality agree on its directions again."""
        sums: Any = {"key": key, "protections": protections, "payload": Payload(), "rng": rng}
        return fit_bases({X: own}, self.model._options, **sums)[X]

    def training_data(
        self, data: Data, training: Mapping[str, Any]
    ) -> tuple[dict[str, Measured], dict[str, SpotTensors], dict[str, tuple[MosaicBatches, MosaicBatches]]]:
        """Spots and tensors by modality, and spots to train on and to validate with by site, from sums in the open."""
        options = SpaMosaicOptions(**{**training, "device": "cpu"})
        measured, tensors = self.measured(data, train=True), {}
        for modality, own in measured.items():
            fit = self.fitted(own, key=None, protections=(), rng=options.seed)
            place = place_of(own, data.n_obs)
            tensors[modality] = fit.tensors(place, values=len(measured) > 1, graph=bool(options.graph_weight))
        names = sorted(set().union(*(own.site for own in measured.values())))
        sites = site_data(measured, tensors, names, options, {})
        return measured, tensors, {name: (own.train, own.validation) for name, own in sites.items()}  # type: ignore[misc]

    def _arguments(self) -> dict[str, Any]:
        return {**super()._arguments(), "facts": None}
