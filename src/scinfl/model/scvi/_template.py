"""A model of scvi-tools on cells that nobody has: sites, labels and features are agreed, no value is."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from torch import nn

from scinfl.model.base._registry import setup_of, state_of
from scinfl.model.scvi._classes import SUPPORTED, class_of

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
    """

    name: str
    arguments: Mapping[str, Any]
    features: Sequence[str]
    sites: Sequence[Any]
    labels: Sequence[Any]
    setup: Mapping[str, Any]

    @classmethod
    def of(cls, name: str, arguments: Mapping[str, Any], registry: Mapping[str, Any]) -> Agreed:
        """What a registry of data says."""
        sites, labels = (list(state_of(registry, what)["categorical_mapping"]) for what in ("batch", "labels"))
        features = list(state_of(registry, "X")["column_names"])
        return cls(name, arguments, features, sites, labels, setup_of(registry))

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
        fields = {"batch_key": setup["site_key"], "labels_key": setup["labels_key"], "layer": setup["layer"]}
        if SUPPORTED[self.name].labels:
            fields["unlabeled_category"] = setup["unlabeled_category"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of ones
            kind.setup_anndata(cells, **fields)  # type: ignore[attr-defined]
            model = kind(cells, **self.arguments)
        without_batch_norm(model.module)
        return model

    def weights_by_site(self, native: nn.Module) -> list[str]:
        """Names of the weights whose last columns belong to the sites.

        Found by building the model with one site more, and with more cells.

        Raises
        ------
        ValueError
            If other parameters depend on the sites, or on the number of cells.
        """
        shapes = _shapes(native)
        if more := _differing(shapes, _shapes(self.native(copies=5).module)):
            msg = f"Expected parameters that do not depend on the number of cells, found {more} of {self.name}."
            raise ValueError(msg)
        if len(self.sites) == 1:
            return []
        further = _shapes(replace(self, sites=[*self.sites, _FURTHER_SITE]).native().module)
        names = _differing(shapes, further)
        for name in names:
            rows, columns = shapes[name][0], shapes[name][-1]
            if not name.endswith(".weight") or further[name] != (rows, columns + 1):
                msg = f"Expected sites to change columns of linear layers alone, found '{name}' of {self.name}."
                raise ValueError(msg)
        return names


def without_batch_norm(network: nn.Module) -> None:
    """Swap the batch normalisations that a class insists on for layer normalisations, in place."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm1d):
                setattr(parent, name, nn.LayerNorm(child.num_features, elementwise_affine=False))


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in network.named_parameters()}


def _differing(some: Mapping[str, tuple[int, ...]], others: Mapping[str, tuple[int, ...]]) -> list[str]:
    return sorted(name for name in some.keys() | others.keys() if some.get(name) != others.get(name))
