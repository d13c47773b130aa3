"""What audits, tools and engines may see of a model: the one file that reads its private parts for them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from torch import nn

from scinfl import nn as keyed_nn
from scinfl.model.base._cells import Cells
from scinfl.model.base._keyed_network import TrainingNetwork
from scinfl.model.base._model import FederatedModel
from scinfl.model.base._shared_parameters import Share, shared_names
from scinfl.model.base._site_parameters import as_site
from scinfl.privacy import Key


class ModelView:
    """A model as audits, tools and engines see it.

    Parameters
    ----------
    model
        Any model.
    """

    model: FederatedModel

    def __init__(self, model: FederatedModel) -> None:
        self.model = model

    @property
    def setup(self) -> dict[str, Any]:
        """Arguments that its data were set up with."""
        return self.model._setup_args()

    @property
    def key_scheme(self) -> str | None:
        """Form of the keyed modules; ``None`` for a network that takes no key."""
        return self.model._keyed.scheme

    @property
    def share(self) -> Share:
        """Rule for what leaves a site."""
        return self.model._share

    def shared_names(self, network: nn.Module) -> set[str]:
        """Parameters of a network that leave a site."""
        return shared_names(network, self.share)

    def check_ready(self) -> None:
        """Refuse a model that is untrained or locked.

        Raises
        ------
        RuntimeError
            If it cannot predict.
        """
        self.model._check_ready()

    def check_features(self, data: Any) -> None:
        """Refuse data without the features of the model, in its order.

        Raises
        ------
        ValueError
            If features differ.
        """
        self.model._check_features(data, self.model.registry_)

    @property
    def state_without_offsets(self) -> dict[str, torch.Tensor]:
        """Locked state, the same to the last bit for every version of an unlocked model."""
        return keyed_nn.add_offsets(self.model.module, self.model.module.state_dict(), sign=-1)

    def for_training(self, key: Key | None) -> TrainingNetwork:
        """Network that sites train, and how its parameters become what is sent, and back."""
        return self.model._keyed.for_training(key)

    def cells_by_site(self, adata: AnnData, site: str | None) -> Iterator[tuple[np.ndarray, Cells]]:
        """Rows of data and their cells by site; meanwhile the network of a classifier holds what this site keeps."""
        matrix = self.model._matrix(adata)
        for local, rows in self.model._rows_by_site(adata, site):
            cells = Cells(matrix, rows, None, self.model.device)
            with as_site(self.model.module, local, cells):
                yield rows, cells

    # ---- other models of its kind

    def untrained(self, rng: int) -> nn.Module:
        """A plain network of the same shape with initial weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng)
            return self.model._make_module()

    def start_of(self, key: Key) -> nn.Module:
        """A plain network with the weights that the training of a fresh model with this key starts from."""
        keyed = self.model._keyed.copy()
        with keyed.keyed(key, "all"):
            network, _, open_state = keyed.for_training(key)
            start = keyed.shared_state([name for name, _ in keyed.module.named_parameters()])
        network.load_state_dict(open_state(start), strict=False)  # buffers are as they were made
        return network

    def with_network(self, network: nn.Module, *, is_locked: bool = True, is_personal: bool = True) -> Any:
        """A copy of the model that predicts with another network."""
        other = copy.copy(self.model)
        other._keyed = copy.copy(self.model._keyed)
        other._keyed.module = network
        if not is_locked:
            other._keyed.locked_with = None
        if not is_personal:
            other._local_states, other._share = {}, "all"
        return other

    def remade(self, data: Any, **setup: Any) -> Any:
        """An untrained model of the same settings for other data, which are set up the same way."""
        kind: Any = type(self.model)
        set_up = kind.setup_anndata if isinstance(data, AnnData) else kind.setup_mudata
        set_up(data, **{**self.setup, **setup})
        return kind(data, **self._arguments())

    def _arguments(self) -> dict[str, Any]:
        return self.model.init_params_["non_kwargs"]

    # ---- engines

    def attach(self, data: Any, setup: Mapping[str, Any]) -> None:
        """Train on these data from now on."""
        self.model._attach(data, setup)


def registry_of(kind: type[FederatedModel], data: Any) -> dict[str, Any]:
    """Registry of data that were set up for a class of models."""
    return kind._registry_of(data)
