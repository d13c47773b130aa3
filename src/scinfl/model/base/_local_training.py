"""A site of the federation that trains a torch network on its own cells."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from scinfl.federation import Protection, State, Strategy, Update
from scinfl.federation.rounds import SpendsPrivacy
from scinfl.privacy import check_received

Lock = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
Open = Callable[[State], Mapping[str, Tensor]]


def as_tensors(state: State) -> dict[str, Tensor]:
    """Share the memory of a state's arrays."""
    return {name: torch.from_numpy(array) for name, array in state.items()}


class Batches(Protocol):
    """Observations that come in batches; ``n_effective`` is how many they count for where that is not their number."""

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
        Of the optimiser, which starts afresh each round.
    rng
        Seed of the run.
    optimizer
        ``"adamw"``, or ``"adam"``, whose weight decay is part of the gradient.
    clip_value
        Largest absolute value of a gradient.
    decay_rounds
        Rounds over which the learning rate falls to zero, along a cosine in steps; constant by default.
    """

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    rng: int
    optimizer: Literal["adamw", "adam"] = "adamw"
    clip_value: float | None = None
    decay_rounds: int | None = None

    def make_optimizer(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """Optimiser of one round."""
        kind = torch.optim.AdamW if self.optimizer == "adamw" else torch.optim.Adam
        return kind(parameters, self.lr, weight_decay=self.weight_decay, fused=True)

    def rate(self, round: int, done: float) -> float:
        """Learning rate where a share of the round is done."""
        if self.decay_rounds is None:
            return self.lr
        done = min((round - 1 + done) / self.decay_rounds, 1.0)
        return self.lr * 0.5 * (1 + math.cos(math.pi * done))


class SharedNetwork:
    """Network that sites of one process take turns with; knows which shared state it holds.

    Parameters
    ----------
    network
        Network with ``loss(batch)``, ``evaluate(batches)`` and ``metric_names``; one with ``refresh()`` takes its
        running statistics again from its parameters before it is evaluated; one with ``schedule(epochs_done)`` learns
        before every step how much of the run is over.
    open_state
        Turns a shared state into plain parameters.
    """

    def __init__(self, network: nn.Module, open_state: Open = as_tensors) -> None:
        self.network = network
        self._open_state = open_state
        self._held: State | None = None
        self._received: State | None = None

    def look_over(self, state: State, own: State | None, max_growth: float) -> None:
        """Refuse a state that no honest average of what followed the last one looks like; the first one is agreed."""
        if self._received is not None and state is not self._received:
            check_received(state, self._received, own=own, max_growth=max_growth)
        self._received = state

    def load(self, state: State, local: Mapping[str, Tensor]) -> bool:
        """Load a shared state and what stays at a site; returns whether there was anything to do."""
        if state is self._held and not local:
            return False
        tensors = self.network.state_dict(keep_vars=True)
        with torch.no_grad():
            for name, value in (*self._open_state(state).items(), *local.items()):
                tensors[name].copy_(value)
        self._held = None if local else state
        return True

    def changed(self) -> None:
        """The network was trained: it holds no shared state any more."""
        self._held = None

    @property
    def derives_statistics(self) -> bool:
        """Whether running statistics follow from parameters, so that none need be kept."""
        return hasattr(self.network, "refresh")

    def refresh(self) -> None:
        """Take the running statistics again, where they follow from parameters."""
        if self.derives_statistics:
            self.network.refresh()  # type: ignore[operator]


class LocalSite:
    """Trains the plain network on its own observations; locks what it sends and unlocks what it receives.

    Where a server makes the shared state, the site looks it over before it trains on it
    (:func:`scinfl.privacy.check_received`).

    Sites in one process may share one network, because each round starts from the shared state.

    Parameters
    ----------
    name
        Name of the site.
    shared_network
        Network, and how it takes in what comes to the site. Its buffers (running statistics) stay at the site.
    shared
        Names of the parameters that leave the site; other trained parameters stay, as its personal ones.
    train, validation
        Observations to train on and to choose the best round with.
    training
        How to train.
    strategy
        States the weight of the site, and how near it is held to the shared state (``proximal``).
    lock
        Turns plain parameters into what leaves the site.
    prepare
        Called before the network is used for this site, for example to put in what only the site knows.
    protections
        May draw the batches and take over the gradient of a step, and refuse what they cannot guard.
    key_version
        Version of the key that ``lock`` uses.
    loss_options
        Passed to ``loss``, for example class weights of the site.
    describe
        Numbers that go along with every update as metrics, for a strategy that asks for them.
    receives
        Whether a server on another machine makes the shared state.
    """

    def __init__(
        self,
        name: str,
        shared_network: SharedNetwork,
        shared: Collection[str],
        train: Batches,
        validation: Batches,
        training: LocalTraining,
        strategy: Strategy,
        *,
        lock: Lock = dict,
        prepare: Callable[[], None] | None = None,
        protections: Sequence[Protection] = (),
        key_version: int | None = None,
        loss_options: Mapping[str, Any] | None = None,
        describe: Mapping[str, float] | None = None,
        receives: bool = False,
    ) -> None:
        self.name = name
        self.n_obs, self.n_validation = (getattr(part, "n_effective", len(part)) for part in (train, validation))
        self._shared_network, self._network = shared_network, shared_network.network
        self._train, self._validation = train, validation
        self._training, self._strategy, self._protections = training, strategy, protections
        self._lock, self._prepare, self._key_version = lock, prepare, key_version
        self._loss_options = dict(loss_options or {})
        self._describe = dict(describe or {})
        self._proximal = float(getattr(strategy, "proximal", 0.0))
        self._shared = set(shared)
        self._local = self._local_tensors()
        if prepare is not None:
            prepare()  # protections see what this site trains
        for protection in protections:
            if isinstance(protection, SpendsPrivacy):
                protection.check_site(name, self._network, train, self.n_validation, self._loss_options)
        self._receives = receives
        self._sent: State | None = None
        is_noisy = any(isinstance(protection, SpendsPrivacy) for protection in protections)
        self._max_growth = math.inf if is_noisy else 10.0

    def _local_tensors(self) -> dict[str, Tensor]:
        """What stays here: persistent buffers and personal parameters."""
        persistent = self._network.state_dict(keep_vars=True)
        trained = {name for name, parameter in self._network.named_parameters() if parameter.requires_grad}
        buffers = {name for name, _ in self._network.named_buffers()} & set(persistent)
        if self._shared_network.derives_statistics:
            buffers = set()
        return {name: persistent[name].detach().clone() for name in buffers | (trained - self._shared)}

    def fit(self, round: int, state: State) -> Update:
        """Train for the round's epochs and return the locked parameters and the mean loss.

        Raises
        ------
        ValueError
            If the state looks crafted.
        """
        network, training = self._network, self._training
        if self._receives:
            self._shared_network.look_over(state, self._sent, self._max_growth)
        for protection in self._protections:
            protection.begin_round(self.name, round, state)
        seed = _seed(training.rng, round, self.name)
        shuffle = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=_cuda_devices(network)):
            torch.manual_seed(seed)  # dropout
            self._load(state)
            self._shared_network.changed()
            network.train()
            trained = [p for p in network.parameters() if p.requires_grad]
            optimizer = training.make_optimizer(trained)
            shared = [p.detach().clone() for p in trained] if self._proximal else []
            losses, sizes, n_seen = [], [], 0
            drawn, schedule = self._drawn_batches(), getattr(network, "schedule", None)
            for batch in self._batches(shuffle) if drawn is None else drawn:
                done = n_seen / (training.epochs * len(self._train))
                optimizer.param_groups[0]["lr"] = training.rate(round, done)
                if schedule is not None:
                    schedule(training.epochs * (round - 1 + done))
                losses.append(self._step(batch, optimizer, trained, shared))
                sizes.append(len(batch[0]))
                n_seen += sizes[-1]
        self._local = self._local_tensors()
        parameters = {name: p for name, p in network.named_parameters() if name in self._shared}
        locked = self._lock(parameters)
        loss = {} if drawn is not None else {"loss": float(np.average(losses, weights=sizes))}
        sent = {name: _own_array(tensor, parameters[name]) for name, tensor in locked.items()}
        if self._receives:
            self._sent = sent
        return Update(
            site=self.name,
            round=round,
            state=sent,
            n_obs=self.n_obs,
            weight=self._strategy.weight(self.n_obs),
            metrics={**loss, **self._describe},
            key_version=self._key_version,
        )

    def _drawn_batches(self) -> Iterator[Any] | None:
        """Batches of one round as a protection draws them, if one does."""
        size, epochs = self._training.batch_size, self._training.epochs
        found = (protection.batches(self.name, self._train, size, epochs) for protection in self._protections)
        return next((batches for batches in found if batches is not None), None)

    def _batches(self, shuffle: torch.Generator) -> Iterator[Any]:
        """Batches of one round, in a new order each epoch."""
        for _ in range(self._training.epochs):
            yield from self._train.batches(self._training.batch_size, shuffle)

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
            if parameter.grad is not None:  # of a part that this site does not train
                parameter.grad.add_(parameter.detach() - anchor, alpha=self._proximal)
        if self._training.clip_value is not None:
            nn.utils.clip_grad_value_(trained, self._training.clip_value)
        optimizer.step()
        return loss

    def evaluate(self, round: int, state: State) -> Update | None:
        """Metrics of the shared state on the site's validation observations."""
        if self.n_validation == 0:
            return None
        if self._load(state):
            self._shared_network.refresh()
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

    @property
    def metric_names(self) -> list[str]:
        """Names of what :meth:`evaluate` returns, at a site without rows to validate on too."""
        return list(self._network.metric_names)  # type: ignore[arg-type]

    def local_state(self) -> State:
        """Running statistics and personal parameters (plain: they never leave the site)."""
        return {name: tensor.cpu().numpy() for name, tensor in self._local.items()}

    def load_local_state(self, state: State) -> None:
        """Restore what stays at the site."""
        self._local = as_tensors(state)

    def _load(self, state: State) -> bool:
        if self._prepare is not None:
            self._prepare()
        return self._shared_network.load(state, self._local)


def _own_array(tensor: Tensor, parameter: Tensor) -> np.ndarray:
    """Values that later training does not change."""
    array = tensor.detach().cpu().numpy()
    return array.copy() if tensor is parameter else array


def _seed(rng: int, round: int, site: str) -> int:
    """Seed of one site in one round: a repeated round draws the same."""
    return int(np.random.SeedSequence([rng, round, zlib.crc32(site.encode())]).generate_state(1)[0])


def _cuda_devices(network: nn.Module) -> list[torch.device]:
    return list({p.device for p in network.parameters() if p.device.type == "cuda"})
