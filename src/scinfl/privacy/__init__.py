"""What protects: the secret key and its life, sums that nobody reads, noise, sealed files.

``attacks`` holds those who try. What loads torch is loaded on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from scinfl._errors import TamperedSumError
from scinfl.privacy._advertisement import Advertisement
from scinfl.privacy._agreement import agree_version
from scinfl.privacy._blind_server import BlindServer
from scinfl.privacy._fixed_point import FixedPoint
from scinfl.privacy._homomorphic_sum import HomomorphicServer, HomomorphicSum
from scinfl.privacy._identity import Identity, PublicIdentity
from scinfl.privacy._key import Key
from scinfl.privacy._key_ring import KeyRing
from scinfl.privacy._keyed_sum import KeyedSum
from scinfl.privacy._linter import PayloadLinter
from scinfl.privacy._pairwise_site import PairwiseSite
from scinfl.privacy._pairwise_sum import PairwiseServer, PairwiseSum
from scinfl.privacy._received import check_received
from scinfl.privacy._revocation import Revocation, revoke
from scinfl.privacy._rotation import WrappedKey, rotate
from scinfl.privacy._seal import Seal

if TYPE_CHECKING:
    from scinfl.privacy._sample_dp import SampleDP
    from scinfl.privacy._shuffle import Shuffle
    from scinfl.privacy._update_dp import UpdateDP

__all__ = [
    "Advertisement",
    "BlindServer",
    "FixedPoint",
    "HomomorphicServer",
    "HomomorphicSum",
    "Identity",
    "Key",
    "KeyRing",
    "KeyedSum",
    "PairwiseServer",
    "PairwiseSite",
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
        return getattr(import_module(f"scinfl.privacy.{_LATER[name]}"), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
