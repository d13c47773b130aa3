"""What a stolen keyed network predicts as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from scinfl.nn import clear_key, set_key
from scinfl.privacy.keys._key import Key

Score = Callable[[nn.Module], float]
"""Rates a network on data that the attacker is judged by, for example its balanced accuracy."""


def wrong_keys(network: nn.Module, score: Score, *, n_keys: int = 50) -> np.ndarray:
    """Score a keyed network under keys drawn like the right one.

    Parameters
    ----------
    network
        Network with keyed layers; left as it is.
    score
        Rates a network.
    n_keys
        Number of keys.

    Returns
    -------
    One score per key.

    Examples
    --------
    >>> import torch, scinfl as si
    >>> network = si.nn.keyed(torch.nn.Linear(5, 2))
    >>> si.nn.set_key(network, si.privacy.Key.generate().coordinates)
    >>> x = torch.randn(100, 5)
    >>> right = network(x).argmax(1)
    >>> def agreement(other):
    ...     return float((other(x).argmax(1) == right).float().mean())
    >>> si.privacy.attacks.wrong_keys(network, agreement, n_keys=3).shape
    (3,)
    """
    stolen = copy.deepcopy(network)  # a copy comes without the key
    scores = np.empty(n_keys)
    for number in range(n_keys):
        set_key(stolen, Key.generate().coordinates)
        scores[number] = score(stolen)
    return scores


def matched_statistics(network: nn.Module, x: Tensor, score: Score) -> float:
    """Score a network without its modules after its normalisation was fitted again to unlabelled samples.

    Undoes whatever a module only shifts or scales before a batch normalisation. Networks without batch normalisation
    have nothing to fit, so this is :func:`removed_modules` for them.

    Parameters
    ----------
    network
        Network with keyed layers; left as it is.
    x
        Unlabelled samples (n × features) of the attacker.
    score
        Rates a network.
    """
    stolen = copy.deepcopy(network)
    clear_key(stolen)
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    norms = [module for module in stolen.modules() if isinstance(module, kinds)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # plain average
        norm.train()
    with torch.no_grad():
        stolen(x)
    return score(stolen.eval())


def removed_modules(network: nn.Module, score: Score) -> float:
    """Score a keyed network whose keyed modules were stripped, so that only its weights compute.

    Parameters
    ----------
    network
        Network with keyed layers; left as it is.
    score
        Rates a network.

    Examples
    --------
    >>> import torch, scinfl as si
    >>> network = si.nn.keyed(torch.nn.Linear(5, 2))
    >>> si.nn.set_key(network, si.privacy.Key.generate().coordinates)
    >>> si.privacy.attacks.removed_modules(network, lambda stripped: float(stripped.is_set))
    0.0
    """
    stolen = copy.deepcopy(network)
    clear_key(stolen)
    return score(stolen)
