"""What protects: the secret key and its life, sums that nobody reads, noise, sealed files.

``attacks`` holds those who try. What loads torch is loaded on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from scinfl._errors import TamperedSumError
from scinfl.privacy._linter import PayloadLinter
from scinfl.privacy._received import check_received
from scinfl.privacy.aggregation._advertisement import Advertisement
from scinfl.privacy.aggregation._aggregator import Aggregator
from scinfl.privacy.aggregation._fixed_point import FixedPoint
from scinfl.privacy.aggregation._homomorphic_sum import HomomorphicServer, HomomorphicSum
from scinfl.privacy.aggregation._keyed_sum import KeyedSum
from scinfl.privacy.aggregation._pairwise_participant import PairwiseParticipant
from scinfl.privacy.aggregation._pairwise_sum import PairwiseServer, PairwiseSum
from scinfl.privacy.keys._agreement import agree_version
from scinfl.privacy.keys._identity import Identity, PublicIdentity
from scinfl.privacy.keys._key import Key
from scinfl.privacy.keys._key_ring import KeyRing
from scinfl.privacy.keys._revocation import Revocation, revoke
from scinfl.privacy.keys._rotation import WrappedKey, rotate
from scinfl.privacy.keys._seal import Seal

if TYPE_CHECKING:
    from scinfl.privacy.dp._sample_dp import SampleDP
    from scinfl.privacy.dp._shuffle import Shuffle
    from scinfl.privacy.dp._update_dp import UpdateDP

__all__ = [
    "Advertisement",
    "Aggregator",
    "FixedPoint",
    "HomomorphicServer",
    "HomomorphicSum",
    "Identity",
    "Key",
    "KeyRing",
    "KeyedSum",
    "PairwiseParticipant",
    "PairwiseServer",
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
    "revoke",
    "rotate",
]


_LATER = {"SampleDP": "_sample_dp", "Shuffle": "_shuffle", "UpdateDP": "_update_dp"}


def __getattr__(name: str) -> Any:
    if name == "attacks":
        return import_module("scinfl.privacy.attacks")
    if name in _LATER:
        return getattr(import_module(f"scinfl.privacy.dp.{_LATER[name]}"), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
