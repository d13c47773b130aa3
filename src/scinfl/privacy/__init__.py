"""What protects: the secret key and its life, secure aggregation, differential privacy, sealed files.

``attacks`` holds the attackers. What loads torch is loaded on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from scinfl._checks import warn
from scinfl._errors import TamperedSumError
from scinfl.privacy import aggregation, dp
from scinfl.privacy._linter import PayloadLinter
from scinfl.privacy._model_file import inspect_model_file
from scinfl.privacy._received import check_received
from scinfl.privacy.aggregation import HomomorphicSum, KeyedSum, PairwiseSum
from scinfl.privacy.keys import (
    Identity,
    Key,
    KeyRing,
    PublicIdentity,
    Revocation,
    Seal,
    WrappedKey,
    agree_version,
    revoke,
    rotate,
)

if TYPE_CHECKING:
    from scinfl.privacy.dp import SampleDP, Shuffle, UpdateDP

__all__ = [
    "HomomorphicSum",
    "Identity",
    "Key",
    "KeyRing",
    "KeyedSum",
    "PairwiseSum",
    "PayloadLinter",
    "PublicIdentity",
    "Revocation",
    "SampleDP",
    "Seal",
    "Shuffle",
    "TamperedSumError",
    "UpdateDP",
    "WrappedKey",
    "agree_version",
    "check_received",
    "inspect_model_file",
    "revoke",
    "rotate",
]

_LATER = ("SampleDP", "Shuffle", "UpdateDP")
_MOVED = ("Advertisement", "Aggregator", "FixedPoint", "HomomorphicServer", "PairwiseParticipant", "PairwiseServer")


def __getattr__(name: str) -> Any:
    if name == "attacks":
        return import_module("scinfl.privacy.attacks")
    if name in _LATER:
        return getattr(dp, name)
    if name in _MOVED:
        msg = f"`scinfl.privacy.{name}` is not public any more. Use `scinfl.privacy.aggregation.{name}`."
        warn(msg, DeprecationWarning)
        return getattr(aggregation, name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
