"""A server that sends crafted weights, so that the update holds single cells."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from scinfl.privacy.attacks._likeness import correlations

_SHARPNESS = 200.0  # a unit switches on within a two-hundredth of the spread of the cells
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
    :math:`c_i`, and all units act alike on what follows. So the gradients of two neighbours differ by the cells between
    their thresholds alone. A layer normalisation in between is made to divide by a constant: every unit has a
    counterpart of the other sign, and two units outweigh all others.

    Parameters
    ----------
    network
        Network whose first two linear layers follow each other, with at most a layer normalisation, an activation and
        dropout in between; left as it is.
    public
        Public cells, whose quantiles are the thresholds.
    rng
        Seed of the direction.

    Raises
    ------
    ValueError
        If the network has fewer than two linear layers, or a first one of fewer than 6 units.
    """
    crafted = copy.deepcopy(network)
    modules = dict(crafted.named_modules())
    linears = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    if len(linears) < 2 or modules[linears[0]].out_features < 6:
        msg = "Expected a network with two linear layers, the first of at least 6 units, found another."
        raise ValueError(msg)
    first, second = modules[linears[0]], modules[linears[1]]
    between = list(modules)[list(modules).index(linears[0]) : list(modules).index(linears[1])]
    norms = [modules[name] for name in between if isinstance(modules[name], nn.LayerNorm)]
    n_units = int(first.out_features)
    n_bins = (n_units - 2) // 2
    generator = np.random.default_rng(rng)
    public = np.asarray(public, dtype=np.float64)
    direction = generator.normal(size=public.shape[1])
    direction /= (public @ direction).std() + 1e-12
    thresholds = np.quantile(public @ direction, np.linspace(0, 1, n_bins + 2)[1:-1])
    sharp_first = 1.0 if norms else _SHARPNESS  # a scale that follows makes larger changes than a large weight
    half = sharp_first * np.outer(np.ones(n_bins), direction)
    weight, bias = np.zeros((n_units, public.shape[1])), np.zeros(n_units)
    weight[: 2 * n_bins] = np.vstack([half, -half])
    bias[: 2 * n_bins] = sharp_first * np.concatenate([-thresholds, thresholds])
    if norms:
        bias[2 * n_bins : 2 * n_bins + 2] = _ANCHOR, -_ANCHOR
    on = np.clip(public @ direction - thresholds[:, None], 0, None).sum(0).mean() * _SHARPNESS
    pattern = np.zeros((int(second.out_features), n_units))
    pattern[:, :n_bins] = generator.normal(size=(len(pattern), 1)) / max(on, 1e-9)
    with torch.no_grad():
        _put(first, weight, bias)
        _put(second, pattern, generator.normal(size=len(pattern)))
        for norm in norms:
            norm.weight.fill_(_SHARPNESS * _ANCHOR * np.sqrt(2 / n_units))
            norm.bias.zero_()
    return Imprint({name: p.detach().clone() for name, p in crafted.named_parameters()}, linears[0], n_bins)


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


def _put(linear: nn.Module, weight: np.ndarray, bias: np.ndarray) -> None:
    linear.weight.copy_(torch.from_numpy(weight))  # type: ignore[operator]
    linear.bias.copy_(torch.from_numpy(bias))  # type: ignore[operator]
