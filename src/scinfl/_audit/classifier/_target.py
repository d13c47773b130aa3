"""A trained classifier under attack, and the cells of all parties."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor, nn

from scinfl._audit._attack_target import AttackTarget
from scinfl.model import Classifier
from scinfl.model.base import ModelView, values_of
from scinfl.nn import KeyedLayer, add_offsets, keyed_layers, unkeyed, unlock
from scinfl.privacy import Key, attacks


@dataclass(frozen=True)
class Rows:
    """Labelled cells as tensors, with their groups and sites."""

    x: Tensor
    y: Tensor
    groups: np.ndarray | None
    sites: np.ndarray
    obs: pd.DataFrame

    @classmethod
    def of(cls, adata: AnnData, model: Classifier) -> Rows:
        """Cells of a data set that carry a label of the model."""
        codes = pd.Categorical(adata.obs[model.labels_key].astype(str), categories=model.labels).codes
        kept = codes >= 0
        part = adata[kept]
        setup = ModelView(model).setup
        values = values_of(part, setup["layer"])
        x = np.nan_to_num(np.asarray(values.toarray() if hasattr(values, "toarray") else values, dtype=np.float32))
        groups = None if setup["group_key"] is None else part.obs[setup["group_key"]].astype(str).to_numpy()
        named = model.site_key is not None and model.site_key in part.obs
        sites = part.obs[model.site_key].astype(str).to_numpy() if named else np.full(part.n_obs, "all")
        y = torch.from_numpy(codes[kept].astype(np.int64))
        return cls(torch.from_numpy(np.ascontiguousarray(x)), y, groups, sites, part.obs)

    def take(self, rows: np.ndarray) -> Rows:
        """Some of the cells."""
        index = torch.from_numpy(np.asarray(rows))
        groups = None if self.groups is None else self.groups[rows]
        return Rows(self.x[index], self.y[index], groups, self.sites[rows], self.obs.iloc[rows])

    def __len__(self) -> int:
        return len(self.x)


@dataclass
class Target(AttackTarget):
    """Model under attack, unlocked, with the cells of all parties."""

    model: Classifier
    key: Key | None
    train: Rows
    public: Rows
    test: Rows
    training: Mapping[str, Any]
    rng: int
    watched: attacks.Watcher | None = field(default=None)

    @cached_property
    def plain(self) -> nn.Module:
        """Plain network of the same shape; it computes the same where the key acts at the boundary.

        A random projection takes the place of a secret one.
        """
        network = copy.deepcopy(self.network)
        state = dict(self.network.state_dict())
        state = unlock(self.network, state) if self.hides_updates else add_offsets(self.network, state, sign=-1)
        network = unkeyed(network)
        for name, layer in keyed_layers(network).items():  # a secret projection has no plain form
            _put(network, name, _frozen(layer))
        names = set(dict(network.named_parameters()))
        network.load_state_dict({name: value for name, value in state.items() if name in names}, strict=False)
        return network.eval()

    def score(self, network: nn.Module) -> float:
        """Balanced accuracy on the cells that attackers are judged by."""
        with torch.inference_mode():
            return float(balanced_accuracy_score(self.test.y.numpy(), network(self.test.x).argmax(1).numpy()))


def split_by_group(groups: Any, share: float, rng: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of two parts that share no group; the second has about this share of the groups."""
    codes = np.unique(np.asarray(groups), return_inverse=True)[1]
    n_groups = int(codes.max()) + 1
    chosen = np.zeros(n_groups, dtype=bool)
    chosen[np.random.default_rng(rng).permutation(n_groups)[: max(1, round(share * n_groups))]] = True
    return np.flatnonzero(~chosen[codes]), np.flatnonzero(chosen[codes])


def _put(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)


def _frozen(layer: KeyedLayer) -> nn.Module:
    return nn.Linear(layer.in_features, layer.out_features, bias=False).requires_grad_(False)
