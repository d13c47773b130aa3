"""Keyed layers for any torch network, and building blocks of the networks of scinfl."""

from scinfl.nn._coordinate import CoordinateLinear, MetaLearner
from scinfl.nn._keyed import KEY_SCHEMES, at_boundary, clear_key, keyed, keyed_layers, lock, set_key, unkeyed, unlock
from scinfl.nn._keyed_layer import KeyedLayer
from scinfl.nn._mlp import MLP
from scinfl.nn._offsets import Coordinates, new_model_id, set_model_id
from scinfl.nn._permuted import PermutedLinear
from scinfl.nn._pooled import PooledLinear
from scinfl.nn._projection import SecretProjection
from scinfl.nn._table import CoordinateTable, Table

__all__ = [
    "KEY_SCHEMES",
    "MLP",
    "CoordinateLinear",
    "CoordinateTable",
    "Coordinates",
    "KeyedLayer",
    "MetaLearner",
    "PermutedLinear",
    "PooledLinear",
    "SecretProjection",
    "Table",
    "at_boundary",
    "clear_key",
    "keyed",
    "keyed_layers",
    "lock",
    "new_model_id",
    "set_key",
    "set_model_id",
    "unkeyed",
    "unlock",
]

# for other packages of scinfl: not part of the public interface
from scinfl.nn._graph_conv import normalised_adjacency, propagate  # noqa: F401
from scinfl.nn._keyed import folded, projected, with_plain_norms  # noqa: F401
from scinfl.nn._keyed_norm import KeyedNorm  # noqa: F401
from scinfl.nn._offsets import REACH, add_offsets, has_offsets, hidden, offsets_under  # noqa: F401
from scinfl.nn._pair_decoder import decode_pairs  # noqa: F401
from scinfl.nn._weighted_norm import NormMLP, WeightedBatchNorm  # noqa: F401
