"""A model of scvi-tools on cells that nobody has: sites, labels and features are agreed, no value is."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from inspect import Parameter, signature
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from torch import Tensor, nn

from scinfl.model.base._registry import categories_of, setup_of, state_of
from scinfl.model.scvi._classes import SUPPORTED, class_of, supported
from scinfl.model.scvi._native_data import native_form, register

_FEWEST_ROWS = 40  # POISSONVI asks for 100 in all
_FURTHER_SITE = "\x00further site"


@dataclass(frozen=True)
class Agreed:
    """What all sites agree on before any of them trains.

    Parameters
    ----------
    name
        Class of scvi-tools.
    arguments
        Its arguments.
    features, sites, labels
        Names in order; ``labels`` with that of cells without one at the end.
    setup
        Arguments of the setup of the data.
    modalities
        Number of features of each modality, in order; none where all are of one kind.
    """

    name: str
    arguments: Mapping[str, Any]
    features: Sequence[str]
    sites: Sequence[str]
    labels: Sequence[str]
    setup: Mapping[str, Any]
    modalities: Mapping[str, int]

    @classmethod
    def of(
        cls, name: str, arguments: Mapping[str, Any], registry: Mapping[str, Any], modalities: Mapping[str, int]
    ) -> Agreed:
        """What a registry of data says."""
        sites, labels = (categories_of(registry, what) or [] for what in ("batch", "labels"))
        features = list(state_of(registry, "X")["column_names"])
        return cls(name, arguments, features, sites, labels, setup_of(registry), modalities)

    def native(self, *, copies: int = 3) -> Any:
        """The model of scvi-tools on ones: a constructor that reads cells reads nobody's.

        Every site and every label occurs, because scvi-tools counts classes by what occurs.
        """
        kind, setup = class_of(self.name), self.setup
        n = copies * max(len(self.sites), len(self.labels), _FEWEST_ROWS)
        values = np.ones((n, len(self.features)), np.float32)
        cells = AnnData(values, pd.DataFrame(index=[f"agreed {i}" for i in range(n)]))
        cells.var_names = list(self.features)
        if setup["layer"] is not None:
            cells.layers[setup["layer"]] = values
        for column, names in ((setup["site_key"], self.sites), (setup["labels_key"], self.labels)):
            if column is not None:
                taken = [names[i % len(names)] for i in range(n)]
                cells.obs[column] = pd.Categorical(taken, categories=list(names))
        with quiet():
            data = self.native_form(cells)
            register(kind, data, setup, self.modalities)
            model = kind(data, **self.arguments)
        _without_batch_norm(model.module)
        return model

    def over(self, cells: AnnData, state: Mapping[str, Tensor] | None = None) -> Any:
        """The model of scvi-tools on a copy of cells: with these weights, or an untrained one."""
        model = self.native()
        if state is not None:
            model.module.load_state_dict(state)
            model.module.eval()
            model.is_trained_ = True
        with quiet():
            model.adata = self.native_form(cells)
        if hasattr(model, "_set_indices_and_labels"):
            asks = signature(model._set_indices_and_labels).parameters.values()
            model._set_indices_and_labels(*[model.adata for p in asks if p.default is Parameter.empty])
        return model

    def native_form(self, cells: AnnData) -> Any:
        """A copy of cells as the class of scvi-tools reads them."""
        in_mudata = len(supported(self.name).modalities) > 2
        return native_form(cells, self.modalities, self.setup, in_mudata=in_mudata)

    def axes_by_site(self, native: nn.Module) -> dict[str, int]:
        """Parameters of which each site owns a part, with the axis of the sites.

        Found by building the model with one site more, and with more cells.

        Raises
        ------
        ValueError
            If parameters depend on the sites in another way or on the number of cells, or there are values that no
            training makes.
        """
        shapes = _shapes(native)
        if more := _differing(shapes, _shapes(self.native(copies=5).module)):
            msg = f"Expected parameters that do not depend on the number of cells, found {more} of {self.name}."
            raise ValueError(msg)
        if self.name not in SUPPORTED and (buffers := sorted(name for name, _ in native.named_buffers())):
            msg = f"Expected trained parameters alone, found {buffers} of {self.name}, which may be made of cells."
            raise ValueError(msg)
        if len(self.sites) == 1:
            return {}
        further = _shapes(replace(self, sites=[*map(str, self.sites), _FURTHER_SITE]).native().module)
        names = [name for name in _differing(shapes, further) if 0 not in shapes.get(name, ())]  # of no features
        return {name: self._axis(native, name, further.get(name)) for name in names}

    def _axis(self, native: nn.Module, name: str, further: Sequence[int] | None) -> int:
        """Axis that another site made longer: the last one of a linear layer, or one that counts sites."""
        path, _, what = name.rpartition(".")
        is_linear = isinstance(native.get_submodule(path), nn.Linear)
        shape = tuple(native.get_parameter(name).shape)
        axes = [axis for axis, (size, more) in enumerate(zip(shape, further or (), strict=False)) if size != more]
        longer = [(*shape[:axis], shape[axis] + 1, *shape[axis + 1 :]) for axis in axes]
        is_column = what == "weight" and axes == [1]
        if longer != [further] or not (is_column if is_linear else shape[axes[0]] == len(self.sites)):
            msg = f"Expected parts of '{name}' of {self.name} to belong to one site each, found that they do not."
            raise ValueError(msg)
        return axes[0]


@contextmanager
def quiet() -> Iterator[None]:
    """Say nothing of ones, of a copy that is set up, and of where it is trained."""
    logs = [logging.getLogger(name) for name in ("scvi", "lightning.pytorch", "pytorch_lightning")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def _without_batch_norm(network: nn.Module) -> None:
    """Swap the batch normalisations that a class insists on for layer normalisations, in place."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm1d):
                setattr(parent, name, nn.LayerNorm(child.num_features, elementwise_affine=False))


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in network.named_parameters()}


def _differing(some: Mapping[str, tuple[int, ...]], others: Mapping[str, tuple[int, ...]]) -> list[str]:
    return sorted(name for name in some.keys() | others.keys() if some.get(name) != others.get(name))
