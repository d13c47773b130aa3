"""The secret key and its life: versions, identities, rotation, sealed files.

Internal beyond what :mod:`scinfl.privacy` exports.
"""

from scinfl.privacy.keys._agreement import agree_version
from scinfl.privacy.keys._derivation import joined
from scinfl.privacy.keys._identity import Identity, PublicIdentity
from scinfl.privacy.keys._key import Key
from scinfl.privacy.keys._key_ring import KeyRing
from scinfl.privacy.keys._revocation import Revocation, read_documents, revoke
from scinfl.privacy.keys._rotation import WrappedKey, check_successor, rotate
from scinfl.privacy.keys._seal import Seal

__all__ = [
    "Identity",
    "Key",
    "KeyRing",
    "PublicIdentity",
    "Revocation",
    "Seal",
    "WrappedKey",
    "agree_version",
    "check_successor",
    "joined",
    "read_documents",
    "revoke",
    "rotate",
]
