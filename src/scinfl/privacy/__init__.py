"""What protects: the secret key. ``attacks`` holds those who try what it holds (loads torch on first use)."""

from importlib import import_module
from types import ModuleType

from scinfl.privacy._key import Key

__all__ = ["Key"]


def __getattr__(name: str) -> ModuleType:
    if name == "attacks":
        return import_module("scinfl.privacy.attacks")
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
