"""Bricks: keyed linear layers for any torch network, and the networks that scinfl is built of."""

from scinfl.nn._coordinate import CoordinateLinear, MetaLearner
from scinfl.nn._graph_conv import normalised_adjacency, propagate
from scinfl.nn._keyed import (
    KEY_SCHEMES,
    at_boundary,
    clear_key,
    folded,
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
from scinfl.nn._pair_decoder import decode_pairs
from scinfl.nn._permuted import PermutedLinear
from scinfl.nn._pooled import PooledLinear
from scinfl.nn._projection import SecretProjection
from scinfl.nn._table import CoordinateTable, Table
from scinfl.nn._weighted_norm import NormMLP, WeightedBatchNorm

__all__ = [
    "KEY_SCHEMES",
    "MLP",
    "CoordinateLinear",
    "CoordinateTable",
    "Coordinates",
    "KeyedLayer",
    "MetaLearner",
    "NormMLP",
    "PermutedLinear",
    "PooledLinear",
    "SecretProjection",
    "Table",
    "WeightedBatchNorm",
    "at_boundary",
    "clear_key",
    "decode_pairs",
    "folded",
    "keyed",
    "keyed_layers",
    "lock",
    "normalised_adjacency",
    "projected",
    "propagate",
    "set_key",
    "unkeyed",
    "unlock",
]
