"""What protects: the secret key and keyed sums. ``attacks`` holds those who try (loads torch on first use)."""

from importlib import import_module
from types import ModuleType

from scinfl._errors import TamperedSumError
from scinfl.privacy._fixed_point import FixedPoint
from scinfl.privacy._key import Key
from scinfl.privacy._keyed_sum import BlindServer, KeyedSum

__all__ = ["BlindServer", "FixedPoint", "Key", "KeyedSum", "TamperedSumError"]


def __getattr__(name: str) -> ModuleType:
    if name == "attacks":
        return import_module("scinfl.privacy.attacks")
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
