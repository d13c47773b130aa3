"""A network and the key that it is locked with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import nn

from scinfl import nn as keyed_nn
from scinfl._checks import warn
from scinfl.federation import State
from scinfl.model.base._local_training import Lock, Open, as_tensors
from scinfl.model.base._rekey import check_rekeyable, rekeyed
from scinfl.model.base._shared_parameters import Share
from scinfl.privacy import Key


class TrainingNetwork(NamedTuple):
    """What the sites train, and how its parameters become what is sent, and back."""

    network: nn.Module
    lock: Lock
    open_state: Open


class KeyedNetwork:
    """A network, plain until it is trained with a key, and locked with that key from then on.

    Copies and pickles come without the key.

    Parameters
    ----------
    module
        Plain network.
    scheme
        Form of the keyed modules; ``None`` for a network that takes no key.
    options
        Options of the keyed modules.
    rng
        Seed of the initial parameters.
    first_layer
        Name of the linear layer that reads the features; ``None`` where no single layer does.
    """

    def __init__(
        self, module: nn.Module, *, scheme: str | None, options: Mapping[str, Any], rng: int, first_layer: str | None
    ) -> None:
        self.module, self.scheme, self.options = module, scheme, dict(options)
        self.rng, self.first_layer = rng, first_layer
        self.locked_with: dict[str, Any] | None = None
        self.key: Key | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "key": None}

    @property
    def is_locked(self) -> bool:
        """Whether the network was trained with a key and does not have it."""
        layers = keyed_nn.keyed_layers(self.module).values()
        return self.locked_with is not None and not all(layer.is_set for layer in layers)

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the key that the network was trained with."""
        return self.locked_with["fingerprint"] if self.locked_with else None

    @property
    def model_id(self) -> str | None:
        """Public id that the offsets of the parameters follow.

        There is none, and there are no offsets, while the network is trained, in other key schemes than
        ``"coordinate"``, and in files of version 0.1.
        """
        return self.locked_with.get("id") if self.locked_with else None

    # ---- the key

    def check(self, key: Key, *, force: bool = False) -> None:
        """Refuse what is not the key of the network; with ``force`` another key is taken."""
        check_key(key)
        if self.locked_with is None:
            msg = "Expected a model that was trained with a key, found a plain one. It predicts without `unlock`."
            raise ValueError(msg)
        if key.fingerprint != self.fingerprint and not force:
            msg = (
                f"Expected the key with fingerprint {self.fingerprint} (federation "
                f"'{self.locked_with['federation']}', version {self.locked_with['version']}), found "
                f"{key.fingerprint} (federation '{key.federation}', version {key.version}). Use the key of this model."
            )
            if key.fingerprint in self.locked_with.get("previous", ()):
                msg += " It was locked with the key found before it was rekeyed."
            raise ValueError(msg)

    def give(self, key: Key) -> None:
        """Give the network a key that was checked."""
        keyed_nn.set_model_id(self.module, self.model_id)
        keyed_nn.set_key(self.module, key.coordinates)
        self.key = key

    def forget(self) -> None:
        """Forget the key."""
        keyed_nn.clear_key(self.module)
        self.key = None

    def check_trainable(self, key: Key | None, *, is_trained: bool) -> None:
        """Refuse to train without the key of the network, or with one that it does not take."""
        if key is None:
            self._check_no_key_needed(is_trained=is_trained)
            return
        check_key(key)
        if self.scheme is None:
            msg = "Expected no key with `key_scheme=None`, found one. Drop the key, or choose a key scheme."
            raise ValueError(msg)
        if self.locked_with is None and is_trained:
            msg = (
                "Expected an untrained model or one trained with a key, found one trained without: its weights are "
                "known in the open, so a key would guard nothing. Make a new model."
            )
            raise ValueError(msg)

    def _check_no_key_needed(self, *, is_trained: bool) -> None:
        if self.locked_with is not None:
            msg = (
                f"Expected the key with fingerprint {self.fingerprint}, found none: the model was trained with "
                "it. Pass `key=`."
            )
            raise ValueError(msg)
        if self.scheme is not None and not is_trained:
            warn(
                "Training without a key: the model is federated but not keyed, anyone who holds its weights can use "
                "it. Pass `key=Key.generate()`, or make the model with `key_scheme=None` to state that this is meant."
            )

    @contextmanager
    def keyed(self, key: Key, share: Share, run: str | None = None) -> Iterator[None]:
        """Key a fresh network for training; a training that fails leaves it plain."""
        plain = copy.deepcopy(self.module)
        self.swap_layers(str(self.scheme), self.options, share)
        self._draw_initial_weights(key, str(self.rng) if run is None else f"{self.rng}/{run}")
        self.give(key)
        self._add_initial_means()
        self.locked_with = {"scheme": self.scheme, "options": self.options, **key_metadata(key)}
        try:
            yield
        except BaseException:
            self.module = plain
            self.locked_with = self.key = None
            raise

    def swap_layers(self, scheme: str, options: Mapping[str, Any], share: Share) -> None:
        """Swap the linear layers of the plain network for keyed ones."""
        if share == "projected" and self.first_layer is not None:
            keyed_nn.projected(self.module, self.first_layer)
        generator = torch.Generator().manual_seed(self.rng)
        keyed_nn.keyed(self.module, scheme, generator=generator, **options)

    def _draw_initial_weights(self, key: Key, seed: str) -> None:
        """Draw the initial weights from the key, uniform for linear layers as torch does, normal for tables.

        From a public seed, anyone who has the final weights could compute how far each of them moved.
        """
        with torch.no_grad():
            for name, layer in keyed_nn.keyed_layers(self.module).items():
                for what, parameter in layer.named_parameters(recurse=False):
                    label = f"{name}/initial {what}/{seed}"
                    values = torch.from_numpy(key.coordinates(label, tuple(parameter.shape)))
                    if isinstance(layer, keyed_nn.CoordinateTable):
                        values = np.sqrt(2) * torch.erfinv(values * (1 - 1e-9)) * layer.start[1]
                    else:
                        values = values / np.sqrt(layer.in_features)
                    parameter.copy_(values)

    def _add_initial_means(self) -> None:
        """Let tables start around the mean that they are made with, which shows once the key is in."""
        tables = {
            f"{name}.weight": layer
            for name, layer in keyed_nn.keyed_layers(self.module).items()
            if isinstance(layer, keyed_nn.CoordinateTable) and layer.start[0]
        }
        means = {name: torch.full_like(layer.weight, layer.start[0]) for name, layer in tables.items()}
        with torch.no_grad():
            for name, stored in keyed_nn.lock(self.module, means).items():
                tables[name].weight.add_(stored)

    def rename(self, model_id: str | None, personal: Mapping[str, State]) -> dict[str, State]:
        """Exchange the offsets of a network that has its key for those of another id, or take them off.

        Returns
        -------
        Personal parameters of every site under the new id.
        """
        if not self._hides or self.key is None or self.key.fingerprint != self.fingerprint:
            return dict(personal)
        states = [self.module.state_dict(), *map(as_tensors, personal.values())]
        states = [keyed_nn.add_offsets(self.module, state, sign=-1) for state in states]
        self.locked_with = _with_id(self.locked_with or {}, model_id)
        self.give(self.key)
        shared, *own = (keyed_nn.add_offsets(self.module, state) for state in states)
        self.module.load_state_dict(shared)
        return {site: {name: t.cpu().numpy() for name, t in s.items()} for site, s in zip(personal, own, strict=True)}

    @property
    def _hides(self) -> bool:
        """Whether the key scheme stores parameters behind offsets."""
        return self.locked_with is not None and self.locked_with["scheme"] == "coordinate"

    def check_rekeyable(self) -> None:
        """Refuse a network whose outputs another key cannot keep."""
        check_rekeyable(self.module)

    def rekey(self, old: Key, new: Key, personal: Mapping[str, State]) -> dict[str, State]:
        """Exchange the key; returns the personal parameters of every site under the new one."""
        state = self.module.state_dict()
        model_id = keyed_nn.new_model_id() if self._hides else None
        shared = rekeyed(self.module, state, old, new, model_id=model_id)
        changed = {}
        for site, local in personal.items():
            own = rekeyed(self.module, {**state, **as_tensors(local)}, old, new, model_id=model_id)
            changed[site] = {name: own[name].numpy() for name in local}
        keyed_nn.set_model_id(self.module, model_id)  # in the precision of what it takes
        self.module.load_state_dict(shared)
        was = self.locked_with or {}
        previous = [*was.get("previous", ()), old.fingerprint]
        self.locked_with = _with_id({**was, **key_metadata(new), "previous": previous}, model_id)
        return changed

    # ---- other forms of the network

    def copy(self) -> Self:
        """A network of its own with the same key."""
        twin = copy.copy(self)
        twin.module = copy.deepcopy(self.module)  # comes without the key
        if self.key is not None:
            twin.give(self.key)
        return twin

    def stripped(self) -> Self:
        """A copy whose keyed modules are removed."""
        plain = copy.copy(self)
        plain.module = keyed_nn.unkeyed(copy.deepcopy(self.module))
        plain.locked_with = plain.key = None
        return plain

    def for_training(self, key: Key | None) -> TrainingNetwork:
        """Network that the sites train.

        Where the key acts at the boundary that is the plain network; else the keyed one, with the key inside. There are
        no offsets in either: an optimiser would see them.
        """
        if self.model_id is not None:
            bare = self.copy()
            bare.rename(None, {})
            return bare.for_training(key)
        network = copy.deepcopy(self.module)  # comes without the key
        if keyed_nn.at_boundary(self.module):
            network = keyed_nn.unkeyed(network)
            lock: Lock = partial(keyed_nn.lock, self.module)
            open_state: Open = _Opener(self.module)
        else:
            network = keyed_nn.with_plain_norms(network)
            lock, open_state = dict, as_tensors
        if key is not None and keyed_nn.keyed_layers(network):
            keyed_nn.set_key(network, key.coordinates)
        return TrainingNetwork(network, lock, open_state)

    # ---- states

    def shared_state(self, shared: Collection[str]) -> State:
        """Parameters that travel, as the (locked) module holds them."""
        return {name: p.detach().cpu().numpy().copy() for name, p in self.module.named_parameters() if name in shared}

    def take(self, state: State) -> None:
        """Take over parameters of a training."""
        parameters = dict(self.module.named_parameters())
        with torch.no_grad():
            for name, array in state.items():
                parameters[name].copy_(torch.from_numpy(array))
        self.module.eval()

    def locked(self, state: State) -> State:
        """What stays at a site, from the plain form to that of the module."""
        return self._at_boundary(state, keyed_nn.lock)

    def opened(self, state: State) -> State:
        """What stays at a site, from the form of the module to the plain one."""
        return self._at_boundary(state, keyed_nn.unlock)

    def _at_boundary(self, state: State, change: Callable[..., dict[str, torch.Tensor]]) -> State:
        if not keyed_nn.at_boundary(self.module):
            return state
        device = next(self.module.parameters()).device
        tensors = {name: tensor.to(device) for name, tensor in as_tensors(state).items()}
        return {name: tensor.cpu().numpy() for name, tensor in change(self.module, tensors).items()}


class _Opener:
    """Unlocks the shared state once, however many sites of this process and steps of a round ask for it."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._state: State | None = None
        self._plain: Mapping[str, torch.Tensor] = {}

    def __call__(self, state: State) -> Mapping[str, torch.Tensor]:
        if state is not self._state:
            device = next(self._module.parameters()).device
            tensors = {name: tensor.to(device) for name, tensor in as_tensors(state).items()}
            self._state, self._plain = state, keyed_nn.unlock(self._module, tensors)
        return self._plain


def check_key(key: object) -> None:
    """Refuse what is no key."""
    if not isinstance(key, Key):
        msg = (
            f"Expected `key` to be a scinfl.privacy.Key, found {type(key).__name__}. "
            "Read it with `Key.load(path)` or make one with `Key.generate()`."
        )
        raise TypeError(msg)


def _with_id(locked_with: Mapping[str, Any], model_id: str | None) -> dict[str, Any]:
    """What is known of the lock, under another id; without offsets it looks as in version 0.1."""
    others = {name: value for name, value in locked_with.items() if name != "id"}
    return others if model_id is None else {**others, "id": model_id}


def key_metadata(key: Key) -> dict[str, Any]:
    """What a model and its files state about their key, readable by anybody."""
    return {"fingerprint": key.fingerprint, "version": key.version, "federation": key.federation}
