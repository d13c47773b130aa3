"""Cells and key at once, from what sites of one key sent."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from scinfl.nn import CoordinateLinear, PooledLinear, SecretProjection, at_boundary, keyed_layers, unkeyed
from scinfl.privacy.attacks._inversion import CellPrior, Change, distance_of, local_change
from scinfl.privacy.attacks._model_stealing import _put
from scinfl.privacy.attacks._surrogate_layers import _SurrogateShift, _SurrogateVector

_SURE = 1.0  # of a start order: a column reads the feature that it is taken to read by about three quarters
_SMALL = 1e-2  # keeps the inverse of a scale finite that changes its sign


@dataclass(frozen=True)
class JointGuess:
    """What a joint search found.

    Parameters
    ----------
    cells
        Cells of each update (labels × features).
    order
        For every column of the first layer, the feature that it is taken to read; ``None`` where the key orders
        nothing.
    distance
        Mean distance of the changes that they explain from those that were sent, at best 0.
    """

    cells: list[np.ndarray]
    order: np.ndarray | None
    distance: float


def invert_jointly(
    network: nn.Module,
    changes: Sequence[Change],
    labels: Sequence[Tensor],
    *,
    prior: CellPrior,
    strength: float = 1e-2,
    order: np.ndarray | None = None,
    signs: np.ndarray | None = None,
    n_iterations: int = 300,
    lr: float = 0.1,
    key_lr: float = 0.05,
    local: Mapping[str, Any] | None = None,
    rng: int = 0,
) -> JointGuess:
    r"""Search for the cells and the key that together would have changed a locked network as it changed.

    The attacker watches updates in the open, knows the method and has public cells, but not the key. The key is
    replaced by anything that it could make of a layer: under ``"coordinate"`` a doubly stochastic matrix of the inputs
    (Sinkhorn, Mena et al. 2018) for the permutation, a number for every sign and magnitude, and a shift; under
    ``"pooled"`` the pooled vector; under ``"permuted"`` what is added to every unit. With a guess of it the attacker
    unlocks the weights, trains them on guessed cells as a site does, locks the result, and compares. All updates share
    one key, so each constrains it; a prior indicates which order of the features real cells have. The search goes by
    Adam over all cells and the key at once.

    Parameters
    ----------
    network
        Network with keyed layers, with the weights as they travelled; left as it is. Its key is not used.
    changes
        Changes of the parameters by name, of updates that started from this network.
    labels
        Label codes of the cells of each update.
    prior
        What is known of cells.
    strength
        Weight of the prior.
    order, signs
        What :func:`match_features` found for the first layer, and signs of its features, to start from.
    n_iterations, lr, key_lr
        Search; ``key_lr`` is that of the key.
    local
        How the sites trained: ``n_steps``, ``lr`` and ``optimizer`` of :func:`local_change`.
    rng
        Seed of the start.

    Raises
    ------
    ValueError
        If the network has no keyed layer, or a secret projection, which has no weights to unlock.

    Examples
    --------
    >>> import numpy as np, torch, scinfl as si
    >>> from scinfl.privacy import attacks
    >>> network = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    >>> network = si.nn.keyed(network)
    >>> x, y = torch.rand(20, 6), torch.tensor([0, 1])
    >>> change = attacks.local_change(network, x[:2], y, lr=0.1)  # of a stripped network
    >>> guess = attacks.invert_jointly(
    ...     network, [change], [y], prior=attacks.CellPrior.from_cells(x.numpy()), n_iterations=5
    ... )
    >>> guess.cells[0].shape, sorted(guess.order.tolist())
    ((2, 6), [0, 1, 2, 3, 4, 5])
    """
    layers = keyed_layers(network)
    if not layers or any(isinstance(layer, SecretProjection) for layer in layers.values()):
        msg = "Expected keyed layers that all have weights, found none or a secret projection. Use `invert_update`."
        raise ValueError(msg)
    generator = torch.Generator().manual_seed(rng)
    guess = (_FreeLock if at_boundary(network) else _FreeModules)(network, generator)
    if guess.first is not None and order is not None:
        guess.first.start_from(order, signs)
    sent = [{name: value.detach() for name, value in change.items()} for change in changes]
    cells = [prior.mean + 0.1 * torch.randn(len(y), len(prior.mean), generator=generator) for y in labels]
    searched = [*(x.requires_grad_() for x in cells), *guess.key]
    groups: list[dict[str, Any]] = [{"params": cells}, {"params": guess.key, "lr": key_lr}]
    search = torch.optim.Adam(groups, lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(search, n_iterations)
    best, found = np.inf, JointGuess([], None, np.inf)
    for _ in range(n_iterations):
        guess.read()
        own = [guess.change(x, y, local or {}) for x, y in zip(cells, labels, strict=True)]
        distance = torch.stack([distance_of(*pair) for pair in zip(own, sent, strict=True)]).mean()
        value = distance + strength * torch.stack([prior.penalty(x) for x in cells]).mean()
        if value.item() < best:
            best = value.item()
            arrays = [x.detach().numpy().astype(np.float64) for x in cells]
            found = JointGuess(arrays, None if guess.first is None else guess.first.hard(), distance.item())
        gradients = torch.autograd.grad(value, searched, allow_unused=True)
        for parameter, gradient in zip(searched, gradients, strict=True):
            parameter.grad = gradient
        search.step()
        schedule.step()
        if prior.smallest >= 0:
            with torch.no_grad():
                for x in cells:
                    x.clamp_(min=prior.smallest)
    return found


class _FreeOrder(nn.Module):
    """What a key of the coordinate scheme could make of a layer."""

    def __init__(self, layer: nn.Linear, generator: torch.Generator) -> None:
        super().__init__()
        n_in, n_out = layer.in_features, layer.out_features
        self.logits = nn.Parameter(0.1 * torch.randn(n_in, n_in, generator=generator))
        self.input_scale = nn.Parameter(torch.randint(0, 2, (n_in,), generator=generator) * 2.0 - 1)
        self.output_scale = nn.Parameter(torch.randint(0, 2, (n_out,), generator=generator) * 2.0 - 1)
        self.shift = nn.Parameter(torch.zeros(n_out))

    def start_from(self, order: np.ndarray, signs: np.ndarray | None) -> None:
        """Take over a guess of the order and the signs of the inputs."""
        with torch.no_grad():
            self.logits[np.arange(len(order)), order] += math.log(len(order)) + _SURE
            if signs is not None:
                self.input_scale.copy_(torch.from_numpy(np.asarray(signs, dtype=np.float32)))

    def mixing(self) -> Tensor:
        """Soft permutation of the inputs with their scales (columns of the layer × features)."""
        log: Tensor = self.logits
        for _ in range(10):
            log = log - log.logsumexp(1, keepdim=True)
            log = log - log.logsumexp(0, keepdim=True)
        return log.exp() * self.input_scale[:, None]

    def hard(self) -> np.ndarray:
        """Feature that every column is taken to read, all different."""
        return np.asarray(linear_sum_assignment(-self.mixing().detach().abs().numpy())[1])


class _FreeLock:
    """Plain network behind a guessed lock: the coordinate scheme, whose key acts on what travels."""

    def __init__(self, network: nn.Module, generator: torch.Generator) -> None:
        names = [name for name, layer in keyed_layers(network).items() if isinstance(layer, CoordinateLinear)]
        self._plain = unkeyed(copy.deepcopy(network)).eval()
        self._locked = {name: p.detach() for name, p in self._plain.named_parameters() if p.requires_grad}
        self._orders = {name: _FreeOrder(self._plain.get_submodule(name), generator) for name in names}  # type: ignore[arg-type]
        self._mixing: dict[str, Tensor] = {}
        self._start: dict[str, Tensor] = {}
        self.first: _FreeOrder | None = next(iter(self._orders.values()))
        self.key = [parameter for order in self._orders.values() for parameter in order.parameters()]

    def read(self) -> None:
        """Unlock the weights with the present guess."""
        self._mixing = {name: free.mixing() for name, free in self._orders.items()}
        self._start = {name: value.clone().requires_grad_() for name, value in self._locked.items()}
        for name, free in self._orders.items():
            weight = self._locked[f"{name}.weight"] @ self._mixing[name]
            self._start[f"{name}.weight"] = free.output_scale[:, None] * weight
            if f"{name}.bias" in self._locked:
                self._start[f"{name}.bias"] = self._locked[f"{name}.bias"] + free.shift

    def change(self, x: Tensor, y: Tensor, local: Mapping[str, Any]) -> dict[str, Tensor]:
        """Train on cells and lock what came of it, with inverses that are exact where the order is a permutation."""
        change = local_change(self._plain, x, y, start=self._start, create_graph=True, **local)
        for name, free in self._orders.items():
            mixing, scale = self._mixing[name], free.output_scale
            columns = mixing / (mixing.square().sum(1, keepdim=True) + _SMALL)
            rows = scale / (scale.square() + _SMALL)
            change[f"{name}.weight"] = (rows[:, None] * change[f"{name}.weight"]) @ columns.T
        return change


class _FreeModules:
    """Network with guesses in place of the modules that its key acts in."""

    def __init__(self, network: nn.Module, generator: torch.Generator) -> None:
        self._network = copy.deepcopy(network)  # comes without the key
        vector = nn.Parameter(0.1 * torch.randn(16, generator=generator))
        self.first: _FreeOrder | None = None
        guesses: list[nn.Module] = []
        for name, layer in keyed_layers(network).items():
            plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
            plain.load_state_dict({what: p for what, p in layer.state_dict().items() if "." not in what})
            if isinstance(layer, PooledLinear):
                guesses.append(_SurrogateVector(self._network.get_submodule(name), vector))  # type: ignore[arg-type]
            elif isinstance(layer, CoordinateLinear):
                guesses.append(_FreeInputs(plain, generator))
                self.first = self.first or guesses[-1].free  # type: ignore[assignment]
            else:
                guesses.append(_SurrogateShift(plain))  # type: ignore[arg-type]
            _put(self._network, name, guesses[-1])
        self._network.eval()
        own = {id(p): p for guess in guesses for name, p in guess.named_parameters() if not name.startswith("layer.")}
        self.key = list(own.values())
        trained = {name: p for name, p in self._network.named_parameters() if p.requires_grad and id(p) not in own}
        self._start = {name: p.detach().requires_grad_() for name, p in trained.items()}

    def read(self) -> None:
        """The modules read the guess themselves."""

    def change(self, x: Tensor, y: Tensor, local: Mapping[str, Any]) -> dict[str, Tensor]:
        """Train on cells."""
        change = local_change(self._network, x, y, start=self._start, create_graph=True, **local)
        return {name.replace(".layer.", "."): value for name, value in change.items()}


class _FreeInputs(nn.Module):
    """Layer whose inputs and outputs a key could have moved."""

    def __init__(self, layer: nn.Linear, generator: torch.Generator) -> None:
        super().__init__()
        self.layer, self.free = layer, _FreeOrder(layer, generator)

    def forward(self, x: Tensor) -> Tensor:
        free, bias = self.free, 0 if self.layer.bias is None else self.layer.bias
        return F.linear(F.linear(x, free.mixing()), self.layer.weight) * free.output_scale + bias + free.shift
