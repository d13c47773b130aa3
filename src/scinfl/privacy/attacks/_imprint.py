"""A server that sends crafted weights, so that the update holds single cells."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scinfl.nn import KeyedLayer, PermutedLinear, PooledLinear, keyed_layers
from scinfl.privacy.attacks._likeness import correlations

_SHARPNESS = 200.0  # a unit switches on within a two-hundredth of the spread of the cells
_LIFT = 8.0  # activations pass on as it is what lies so high
_WEIGHTED = (nn.Linear, PermutedLinear, PooledLinear)
_ANCHOR = 1e3  # outweighs all other units in a layer normalisation, so that it divides by a constant


@dataclass(frozen=True)
class Imprint:
    """Crafted parameters, and where to read the cells.

    Parameters
    ----------
    state
        All parameters by name, to send in place of the honest ones.
    layer
        Name of the linear layer whose change holds the cells.
    n_bins
        Units that sort cells; a cell alone between two of them is read exactly.
    """

    state: dict[str, Tensor]
    layer: str
    n_bins: int


def imprint(network: nn.Module, public: np.ndarray, *, rng: int = 0) -> Imprint:
    r"""Craft the first layer so that its units sort cells by one number (Robbing the Fed, Fowl et al. 2022).

    Unit i of the first layer computes :math:`s(h^\top x - c_i)` with one direction :math:`h` and rising thresholds
    :math:`c_i`, and all units have the same effect on what follows. So the gradients of two neighbours differ by the
    cells between their thresholds alone. A layer normalisation in between is made to divide by a constant: every unit
    has a counterpart of the other sign, and two units outweigh all others.

    Modules of the published forms, whose key acts inside the network, are switched off by their own parameters, which
    a server sends too. A secret projection has none: the layer after it is crafted instead and sorts what the
    projection gives, lifted to where an activation passes it on as it is; :func:`unproject` goes back to cells.

    Parameters
    ----------
    network
        Network whose first two layers with weights follow each other, with at most a layer normalisation, an activation
        and dropout in between; left as it is. Only a secret projection uses its key, which may be a guess.
    public
        Public cells, whose quantiles are the thresholds.
    rng
        Seed of the direction.

    Raises
    ------
    ValueError
        If the network has fewer than two such layers, or a first one of fewer than 6 units.
    """
    crafted = copy.deepcopy(network).eval()
    leaves = {name: module for name, module in crafted.named_modules() if _is_layer(crafted, name)}
    weighted = [name for name, module in leaves.items() if isinstance(module, _WEIGHTED)]
    if len(weighted) < 2 or leaves[weighted[0]].out_features < 6:
        msg = "Expected a network with two linear layers, the first of at least 6 units, found another."
        raise ValueError(msg)
    _switch_off(crafted)
    first, second = (leaves[name] for name in weighted[:2])
    order = list(leaves)
    places = [order.index(name) for name in weighted[:2]]
    for norm in _norms(leaves, order[: places[0]]):
        _fill(norm, 1.0, _LIFT)
    inputs = _arriving(network, leaves, order[: places[0]], public)
    norms = _norms(leaves, order[places[0] : places[1]])
    generator = np.random.default_rng(rng)
    n_units, n_bins = int(first.out_features), (int(first.out_features) - 2) // 2
    weight, bias, on = _sorting(inputs, n_units, n_bins, generator, is_scaled=bool(norms))
    pattern = np.zeros((int(second.out_features), n_units))
    pattern[:, :n_bins] = generator.normal(size=(len(pattern), 1)) / max(on * _SHARPNESS, 1e-9)
    _put(first, weight, bias)
    _put(second, pattern, generator.normal(size=len(pattern)))
    for norm in norms:
        _fill(norm, _SHARPNESS * _ANCHOR * np.sqrt(2 / n_units), 0.0)
    return Imprint({name: p.detach().clone() for name, p in crafted.named_parameters()}, weighted[0], n_bins)


def read_imprint(weight_change: np.ndarray, bias_change: np.ndarray, n_bins: int) -> np.ndarray:
    """Read the cells that lie alone between two thresholds; where several do, their weighted mean.

    Parameters
    ----------
    weight_change, bias_change
        Change of the crafted layer, or its gradient.
    n_bins
        See :class:`Imprint`.

    Returns
    -------
    Cells (one a filled bin × features), in rising order of the thresholds.
    """
    weight = np.asarray(weight_change, dtype=np.float64)[:n_bins]
    bias = np.asarray(bias_change, dtype=np.float64)[:n_bins]
    cells, size = -np.diff(weight, axis=0, append=0), -np.diff(bias, append=0)
    filled = np.abs(size) > 1e-4 * np.abs(size).max(initial=0)
    return cells[filled] / size[filled, None]


def unproject(found: np.ndarray, projection: np.ndarray, public: np.ndarray, *, shrinkage: float = 0.2) -> np.ndarray:
    r"""Go back from what a layer normalisation makes of projected cells to the cells.

    Of :math:`y = (P x - m) / s` the mean m and the size s are lost, and with fewer units than features more. For normal
    cells :math:`x \sim N(\mu, \Sigma)`, m is taken where y is likeliest, s where y is as far from the mean cell as
    cells are, and x is the likeliest cell then.

    Parameters
    ----------
    found
        What :func:`read_imprint` found behind a projection (n × units).
    projection
        :math:`P`, or a guess of it (units × features).
    public
        Public cells, for mean and covariance.
    shrinkage
        Share of the diagonal in the covariance.

    Returns
    -------
    Cells (n × features).

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> generator = np.random.default_rng(0)
    >>> x, projection = generator.normal(size=(300, 20)), generator.normal(size=(64, 20))
    >>> y = x @ projection.T
    >>> y = (y - y.mean(1, keepdims=True)) / y.std(1, keepdims=True)
    >>> cells = si.privacy.attacks.unproject(y[:5], projection, x[5:])
    >>> bool(si.privacy.attacks.reconstruction_scores(x[:5], cells)["pearson"].min() > 0.99)
    True
    """
    public, projection = (np.asarray(values, dtype=np.float64) for values in (public, projection))
    covariance = np.cov(public, rowvar=False)
    covariance = (1 - shrinkage) * covariance + shrinkage * np.diag(np.diag(covariance))
    mean, spread = projection @ public.mean(0), projection @ covariance
    inner = spread @ projection.T
    inverse = np.linalg.inv(inner + 1e-6 * np.trace(inner) / len(inner) * np.eye(len(inner)))
    ones = inverse.sum(1)
    free = inverse - np.outer(ones, ones) / ones.sum()  # of the mean
    a, b, c = ((y @ free * z).sum(-1) for y, z in ((found, found), (found, mean), (mean, mean)))
    size = (b + np.sqrt(np.clip(b**2 - a * (c - min(projection.shape)), 0, None))) / np.maximum(a, 1e-12)
    away = np.nan_to_num(size[:, None] * found) - mean
    away -= (away @ ones / ones.sum())[:, None]
    return public.mean(0) + away @ inverse @ spread


def share_recovered(true: np.ndarray, found: np.ndarray, *, least: float = 0.95) -> float:
    """Share of the true cells that some found one resembles.

    Parameters
    ----------
    true, found
        True and found cells (each × features).
    least
        Pearson correlation from which a cell counts as recovered.

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> x = np.random.default_rng(0).normal(size=(4, 30))
    >>> si.privacy.attacks.share_recovered(x, 3 * x[:2])
    0.5
    """
    found = np.asarray(found, dtype=np.float64)
    found = found[np.isfinite(found).all(1)] if len(found) else found
    if len(found) == 0:
        return 0.0
    return float((correlations(np.asarray(true, dtype=np.float64), found).max(1) >= least).mean())


def _sorting(
    inputs: np.ndarray, n_units: int, n_bins: int, generator: np.random.Generator, *, is_scaled: bool
) -> tuple[np.ndarray, np.ndarray, float]:
    """Weight and bias of a layer whose units sort by a random direction, and how much of them is on for a cell.

    Where a normalisation follows, its scale makes units sharp: that makes larger changes than a large weight.
    """
    direction = generator.normal(size=(inputs.shape[1],))
    direction -= direction.mean()  # blind to a lift, which would cost precision
    direction /= (inputs @ direction).std() + 1e-12
    thresholds = np.quantile(inputs @ direction, np.linspace(0, 1, n_bins + 2)[1:-1])
    sharp = 1.0 if is_scaled else _SHARPNESS
    half = sharp * np.outer(np.ones(n_bins), direction)
    weight, bias = np.zeros((n_units, inputs.shape[1])), np.zeros(n_units)
    weight[: 2 * n_bins] = np.vstack([half, -half])
    bias[: 2 * n_bins] = sharp * np.concatenate([-thresholds, thresholds])
    if is_scaled:
        bias[2 * n_bins : 2 * n_bins + 2] = _ANCHOR, -_ANCHOR
    on = np.clip(inputs @ direction - thresholds[:, None], 0, None).sum(0).mean()
    return weight, bias, float(on)


def _is_layer(network: nn.Module, name: str) -> bool:
    """Whether cells pass through this module as a whole, parts of keyed layers left out."""
    module = network.get_submodule(name)
    parents = name.split(".")[:-1]
    inside = any(isinstance(network.get_submodule(".".join(parents[:n])), KeyedLayer) for n in range(len(parents) + 1))
    return not inside and (isinstance(module, KeyedLayer) or not list(module.children()))


def _norms(leaves: Mapping[str, nn.Module], names: Sequence[str]) -> list[nn.LayerNorm]:
    return [module for name in names if isinstance(module := leaves[name], nn.LayerNorm)]


@torch.no_grad()
def _arriving(
    network: nn.Module, leaves: Mapping[str, nn.Module], before: Sequence[str], public: np.ndarray
) -> np.ndarray:
    """Public cells as they arrive behind some layers; only the network itself has its key."""
    x = torch.from_numpy(np.asarray(public, dtype=np.float32))
    for name in before:
        x = network.get_submodule(name)(x) if isinstance(leaves[name], KeyedLayer) else leaves[name](x)
    return x.numpy().astype(np.float64)


@torch.no_grad()
def _switch_off(network: nn.Module) -> None:
    """Set the last maps of all modules to zero, so that they neither scale nor shift, whatever the key."""
    for layer in keyed_layers(network).values():
        last: list[Any] = []
        if isinstance(layer, PermutedLinear):
            last = [layer.meta[-1]]
        elif isinstance(layer, PooledLinear):
            last = [layer.meta["modulator"][-1], layer.meta["film"]]  # type: ignore[index]
        for linear in last:
            linear.weight.zero_()
            linear.bias.zero_()


@torch.no_grad()
def _fill(norm: nn.LayerNorm, weight: float, bias: float) -> None:
    norm.weight.fill_(weight)
    norm.bias.fill_(bias)


@torch.no_grad()
def _put(linear: nn.Module, weight: np.ndarray, bias: np.ndarray) -> None:
    linear.weight.copy_(torch.from_numpy(weight))  # type: ignore[operator]
    linear.bias.copy_(torch.from_numpy(bias))  # type: ignore[operator]
