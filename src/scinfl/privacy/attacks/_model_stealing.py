"""What model stealing gains from a keyed network with labelled samples of the attacker.

Every attack knows how the scheme works, uses a copy without the key, trains on the samples that it is given, and
keeps its best checkpoint by the score that it is judged with: an upper bound on what an honest attacker could choose.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scinfl.nn import (
    REACH,
    CoordinateLinear,
    CoordinateTable,
    KeyedNorm,
    PooledLinear,
    SecretProjection,
    Table,
    hidden,
    keyed_layers,
    set_model_id,
    unkeyed,
)
from scinfl.privacy.attacks._surrogate_layers import (
    _FreeRows,
    _FreeScales,
    _SurrogateCoordinates,
    _SurrogateRows,
    _SurrogateShift,
    _SurrogateVector,
)
from scinfl.privacy.attacks._without_key import Score

Loss = Callable[[Tensor, Tensor], Tensor]
"""Loss of the output of a network for samples, given what is known of them."""


def train_from_scratch(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    score: Score,
    *,
    loss: Loss = F.cross_entropy,
    n_steps: int = 600,
    lr: float = 3e-3,
    rng: int = 0,
) -> float:
    """Forget the stolen weights and train a plain network of the same shape: what the samples alone suffice for.

    Parameters
    ----------
    network
        Stolen network; left as it is.
    x, y
        Samples (n × features) of the attacker, and their label codes or what else the loss asks for.
    score
        Rates a network on data that the attacker is judged by, for example its balanced accuracy.
    loss
        Loss of the network's output for samples, given ``y``.
    n_steps, lr, rng
        Training.
    """
    own = _forgotten(network, rng)
    return _train(own, own.parameters(), x, y, score, n_steps, lr, rng, loss)


def fitted_anew(
    network: nn.Module, x: Tensor, y: Tensor, *, loss: Loss = F.cross_entropy, n_steps: int, lr: float, rng: int
) -> nn.Module:
    """A plain network of the same shape, trained from scratch for so many steps."""
    own = _forgotten(network, rng)
    _train(own, own.parameters(), x, y, lambda _: 0.0, n_steps, lr, rng, loss)
    return own.eval()


def fine_tune(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    score: Score,
    *,
    frozen: Collection[str] = (),
    loss: Loss = F.cross_entropy,
    n_steps: int = 600,
    lr: float = 3e-3,
    rng: int = 0,
) -> float:
    """Strip the keyed modules and train all stolen weights on.

    Parameters
    ----------
    frozen
        Names of layers to leave as they were stolen.
    network, x, y, score, loss, n_steps, lr, rng
        See :func:`train_from_scratch`.
    """
    stolen = _stripped(network, rng)
    for name in frozen:
        stolen.get_submodule(name).requires_grad_(False)
    trained = [parameter for parameter in stolen.parameters() if parameter.requires_grad]
    return _train(stolen, trained, x, y, score, n_steps, lr, rng, loss)


def fit_scales(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    score: Score,
    *,
    loss: Loss = F.cross_entropy,
    n_steps: int = 600,
    lr: float = 1e-2,
    rng: int = 0,
) -> float:
    """Strip the keyed modules, freeze the weights and fit free scales and shifts of all inputs and outputs of a layer.

    Of a table they are scales of its rows and columns.

    Parameters
    ----------
    network, x, y, score, loss, n_steps, lr, rng
        See :func:`train_from_scratch`.
    """
    stolen = _copied(network, rng)
    names = list(keyed_layers(stolen))
    stolen = unkeyed(stolen)
    for name in names:
        layer = stolen.get_submodule(name)
        _put(stolen, name, _FreeRows(layer) if isinstance(layer, Table) else _FreeScales(layer))  # type: ignore[arg-type]
    return _train(stolen, _freeze_but(stolen, _FreeScales, _FreeRows), x, y, score, n_steps, lr, rng, loss)


def fit_key(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    score: Score,
    *,
    loss: Loss = F.cross_entropy,
    n_steps: int = 600,
    lr: float = 1e-2,
    rng: int = 0,
) -> float:
    """Fit a surrogate key: keep the modules and learn what the key would have given them.

    For ``"coordinate"`` that is a coordinate of every unit (read by the stolen meta learner), with signs relaxed to
    numbers and the permutation guessed, and of a table the coordinate of every row and column, the sign of
    every value and a guessed order; for ``"pooled"`` the pooled vector; for ``"permuted"`` what is added to a unit.

    Parameters
    ----------
    network, x, y, score, loss, n_steps, lr, rng
        See :func:`train_from_scratch`.
    """
    stolen = _copied(network, rng)
    generator = torch.Generator().manual_seed(rng)
    pooled = nn.Parameter(torch.zeros(16))
    for name, layer in keyed_layers(stolen).items():
        if isinstance(layer, CoordinateLinear):
            swap: nn.Module = _SurrogateCoordinates(layer, generator)
        elif isinstance(layer, CoordinateTable):
            swap = _SurrogateRows(layer, generator)
        elif isinstance(layer, PooledLinear):
            swap = _SurrogateVector(layer, pooled)
        else:
            swap = _SurrogateShift(layer)
        _put(stolen, name, swap)
    parameters = _freeze_but(stolen, _SurrogateCoordinates, _SurrogateRows, _SurrogateVector, _SurrogateShift)
    return _train(stolen, parameters, x, y, score, n_steps, lr, rng, loss)


class _GuessedProjection(nn.Linear):
    """A layer that is trained in place of a secret projection."""


def _copied(network: nn.Module, rng: int) -> nn.Module:
    """Copy without the key, rescaled, and with a layer of the attacker's own where there was a secret projection."""
    stolen = _rescaled(copy.deepcopy(network))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng)
        for name, layer in keyed_layers(stolen).items():
            if isinstance(layer, SecretProjection):
                _put(stolen, name, _GuessedProjection(layer.in_features, layer.out_features, bias=False))
    return stolen


def _rescaled(network: nn.Module) -> nn.Module:
    """Bring what is stored behind offsets to the size that it starts from; normalisations start afresh. In place.

    Used as they are, up to 1,024 times as large, stolen parameters train worse than random ones.
    """
    with torch.no_grad():
        for module in hidden(network).values():
            for name, parameter in module.named_parameters() if module.model_id is not None else ():
                if isinstance(module, KeyedNorm):
                    parameter.fill_(1.0 if name == "weight" else 0.0)
                elif parameter.requires_grad:
                    parameter.div_(REACH)
    set_model_id(network, None)
    return network


def _put(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)


def _stripped(network: nn.Module, rng: int) -> nn.Module:
    stolen = unkeyed(_copied(network, rng))
    for parameter in stolen.parameters():
        parameter.requires_grad_(True)
    return stolen


def _forgotten(network: nn.Module, rng: int) -> nn.Module:
    """A plain copy with all weights drawn again."""
    own = _stripped(network, rng)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(rng)
        for module in own.modules():
            if isinstance(module, Table):
                module.weight.copy_(torch.randn_like(module.weight) * module.std)
            elif hasattr(module, "reset_parameters"):
                module.reset_parameters()  # type: ignore[operator]
    return own


def _freeze_but(network: nn.Module, *kinds: type[nn.Module]) -> list[nn.Parameter]:
    """Freeze a network except for the attacker's own parameters, which modules of these kinds hold directly."""
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    own: dict[int, nn.Parameter] = {}
    for module in network.modules():
        if isinstance(module, (*kinds, _GuessedProjection)):
            own |= {id(p): p for p in module.parameters(recurse=False)}
    for parameter in own.values():
        parameter.requires_grad_(True)
    return list(own.values())


def _train(
    network: nn.Module,
    parameters: Iterable[nn.Parameter],
    x: Tensor,
    y: Tensor,
    score: Score,
    n_steps: int,
    lr: float,
    rng: int,
    loss: Loss = F.cross_entropy,
) -> float:
    """Train on the attacker's samples and return the best score of twenty checkpoints, the start included."""
    generator = torch.Generator().manual_seed(rng)
    optimizer = torch.optim.AdamW(list(parameters), lr)
    best = score(network.eval())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng)
        for step in range(1, n_steps + 1):
            rows = torch.randint(len(x), (min(32, len(x)),), generator=generator)
            network.train()
            optimizer.zero_grad()
            loss(network(x[rows]), y[rows]).backward()
            optimizer.step()
            if step % max(n_steps // 20, 1) == 0:
                best = max(best, score(network.eval()))
    return float(np.float64(best))
