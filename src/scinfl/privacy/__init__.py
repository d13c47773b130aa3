"""What protects: the secret key, keyed sums, sealed files. ``attacks`` holds those who try; it loads torch."""

from importlib import import_module
from types import ModuleType

from scinfl._errors import TamperedSumError
from scinfl.privacy._fixed_point import FixedPoint
from scinfl.privacy._key import Key
from scinfl.privacy._keyed_sum import BlindServer, KeyedSum
from scinfl.privacy._seal import Seal

__all__ = ["BlindServer", "FixedPoint", "Key", "KeyedSum", "Seal", "TamperedSumError"]


def __getattr__(name: str) -> ModuleType:
    if name == "attacks":
        return import_module("scinfl.privacy.attacks")
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
