"""Bricks: keyed linear layers for any torch network, and the networks that scinfl is built of."""

from scinfl.nn._coordinate import CoordinateLinear, Coordinates, MetaLearner
from scinfl.nn._keyed import KEY_SCHEMES, clear_key, keyed, keyed_layers, lock, set_key, unkeyed, unlock
from scinfl.nn._mlp import MLP

__all__ = [
    "KEY_SCHEMES",
    "MLP",
    "CoordinateLinear",
    "Coordinates",
    "MetaLearner",
    "clear_key",
    "keyed",
    "keyed_layers",
    "lock",
    "set_key",
    "unkeyed",
    "unlock",
]
