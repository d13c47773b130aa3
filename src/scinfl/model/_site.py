"""A site of the federation that trains a torch network on its own cells."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from scinfl.federation import Protection, State, Strategy, Update

Lock = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
Open = Callable[[State], Mapping[str, Tensor]]


def as_tensors(state: State) -> dict[str, Tensor]:
    """Share the memory of a state's arrays."""
    return {name: torch.from_numpy(array) for name, array in state.items()}


class Batches(Protocol):
    """Observations that come in batches."""

    def __len__(self) -> int: ...

    def batches(self, batch_size: int, generator: torch.Generator | None = None) -> Iterable[Any]:
        """Batches as the network's ``loss`` takes them; shuffled where a generator is given."""
        ...


@dataclass(frozen=True)
class LocalTraining:
    """How a site trains between two averages.

    Parameters
    ----------
    epochs
        Passes over the site's observations a round.
    batch_size
        Observations a step.
    lr, weight_decay
        Of AdamW, started anew each round.
    rng
        Seed of the run.
    """

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    rng: int


class LocalSite:
    """Trains the plain network on its own observations; locks what it sends and unlocks what it receives.

    Sites in one process may share one network, because each round starts from the shared state.

    Parameters
    ----------
    name
        Name of the site.
    network
        Network with ``loss(batch)`` and ``evaluate(batches)``. Its buffers (running statistics) stay at the site.
    shared
        Names of the parameters that leave the site; other trained parameters stay, as its personal ones.
    train, validation
        Observations to train on and to choose the best round with.
    training
        How to train.
    strategy
        Tells the weight of the site, and how near it is held to the shared state (``proximal``).
    lock
        Turns plain parameters into what leaves the site.
    open_state
        Turns what comes to the site into plain parameters.
    protections
        May take over the gradient of a step.
    key_version
        Version of the key that ``lock`` uses.
    loss_options
        Passed to ``loss``, for example class weights of the site.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        shared: Collection[str],
        train: Batches,
        validation: Batches,
        training: LocalTraining,
        strategy: Strategy,
        *,
        lock: Lock = dict,
        open_state: Open = as_tensors,
        protections: Sequence[Protection] = (),
        key_version: int | None = None,
        loss_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.name, self.n_obs, self.n_validation = name, len(train), len(validation)
        self._network, self._train, self._validation = network, train, validation
        self._training, self._strategy, self._protections = training, strategy, protections
        self._lock, self._open_state, self._key_version = lock, open_state, key_version
        self._loss_options = dict(loss_options or {})
        self._proximal = float(getattr(strategy, "proximal", 0.0))
        self._shared = set(shared)
        self._local = self._local_tensors()

    def _local_tensors(self) -> dict[str, Tensor]:
        """What stays here: persistent buffers and personal parameters."""
        persistent = self._network.state_dict(keep_vars=True)
        trained = {name for name, parameter in self._network.named_parameters() if parameter.requires_grad}
        buffers = {name for name, _ in self._network.named_buffers()} & set(persistent)
        return {name: persistent[name].detach().clone() for name in buffers | (trained - self._shared)}

    def fit(self, round: int, state: State) -> Update:
        """Train for the round's epochs and return the locked parameters and the mean loss."""
        network, training = self._network, self._training
        seed = _seed(training.rng, round, self.name)
        shuffle = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=_cuda_devices(network)):
            torch.manual_seed(seed)  # dropout
            self._load(state)
            network.train()
            trained = [p for p in network.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(trained, training.lr, weight_decay=training.weight_decay, fused=True)
            shared = [p.detach().clone() for p in trained] if self._proximal else []
            losses, sizes = [], []
            for _ in range(training.epochs):
                for batch in self._train.batches(training.batch_size, shuffle):
                    losses.append(self._step(batch, optimizer, trained, shared))
                    sizes.append(len(batch[0]))
        self._local = self._local_tensors()
        parameters = {name: p for name, p in network.named_parameters() if name in self._shared}
        locked = self._lock(parameters)
        return Update(
            site=self.name,
            round=round,
            state={name: _own_array(tensor, parameters[name]) for name, tensor in locked.items()},
            n_obs=self.n_obs,
            weight=self._strategy.weight(self.n_obs),
            metrics={"loss": float(np.average(losses, weights=sizes))},
            key_version=self._key_version,
        )

    def _step(
        self, batch: Any, optimizer: torch.optim.Optimizer, trained: Sequence[Tensor], shared: Sequence[Tensor]
    ) -> float:
        optimizer.zero_grad()
        for protection in self._protections:
            loss = protection.on_step(self._network, batch)
            if loss is not None:
                break
        else:
            value = self._network.loss(batch, **self._loss_options)  # type: ignore[operator]
            value.backward()
            loss = value.item()
        for parameter, anchor in zip(trained, shared, strict=False):  # none without a proximal term
            parameter.grad.add_(parameter.detach() - anchor, alpha=self._proximal)  # type: ignore[union-attr]
        optimizer.step()
        return loss

    def evaluate(self, round: int, state: State) -> Update | None:
        """Metrics of the shared state on the site's validation observations."""
        if self.n_validation == 0:
            return None
        self._load(state)
        self._network.eval()
        metrics = self._network.evaluate(self._validation.batches(4096))  # type: ignore[operator]
        return Update(
            site=self.name,
            round=round,
            state={},
            n_obs=self.n_validation,
            weight=float(self.n_validation),
            metrics=metrics,
            key_version=self._key_version,
            purpose="evaluation",
        )

    def local_state(self) -> State:
        """Running statistics and personal parameters (plain: they never leave the site)."""
        return {name: tensor.cpu().numpy() for name, tensor in self._local.items()}

    def load_local_state(self, state: State) -> None:
        """Restore what stays at the site."""
        self._local = as_tensors(state)

    def _load(self, state: State) -> None:
        tensors = self._network.state_dict(keep_vars=True)
        with torch.no_grad():
            for name, value in (*self._open_state(state).items(), *self._local.items()):
                tensors[name].copy_(value)


def _own_array(tensor: Tensor, parameter: Tensor) -> np.ndarray:
    """Values that later training does not change."""
    array = tensor.detach().cpu().numpy()
    return array.copy() if tensor is parameter else array


def _seed(rng: int, round: int, site: str) -> int:
    """Seed of one site in one round: a repeated round draws the same."""
    return int(np.random.SeedSequence([rng, round, zlib.crc32(site.encode())]).generate_state(1)[0])


def _cuda_devices(network: nn.Module) -> list[torch.device]:
    return list({p.device for p in network.parameters() if p.device.type == "cuda"})
