"""Bricks: keyed linear layers for any torch network, and the networks that scinfl is built of."""

from scinfl.nn._coordinate import CoordinateLinear, MetaLearner
from scinfl.nn._keyed import (
    KEY_SCHEMES,
    at_boundary,
    clear_key,
    keyed,
    keyed_layers,
    lock,
    projected,
    set_key,
    unkeyed,
    unlock,
)
from scinfl.nn._keyed_layer import Coordinates, KeyedLayer
from scinfl.nn._mlp import MLP
from scinfl.nn._permuted import PermutedLinear
from scinfl.nn._pooled import PooledLinear
from scinfl.nn._projection import SecretProjection

__all__ = [
    "KEY_SCHEMES",
    "MLP",
    "CoordinateLinear",
    "Coordinates",
    "KeyedLayer",
    "MetaLearner",
    "PermutedLinear",
    "PooledLinear",
    "SecretProjection",
    "at_boundary",
    "clear_key",
    "keyed",
    "keyed_layers",
    "lock",
    "projected",
    "set_key",
    "unkeyed",
    "unlock",
]
