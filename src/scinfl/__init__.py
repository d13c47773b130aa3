"""Implicit neural federated learning for AnnData and MuData.

The submodules load on first use, so that ``import scinfl`` stays quick:

========================  =====================================================
:mod:`scinfl.pp`          prepare: split cells over simulated sites
:mod:`scinfl.model`       train one model over sites that do not pool cells
:mod:`scinfl.tl`          write predictions and embeddings back into AnnData
:mod:`scinfl.pl`          draw what happened
:mod:`scinfl.privacy`     the secret key, secure aggregation, noise, attacks
:mod:`scinfl.federation`  updates of sites, strategies, rounds, journal
:mod:`scinfl.flower`      the same across machines, over Flower
:mod:`scinfl.nn`          keyed modules for any torch network
:mod:`scinfl.module`      the local learners
:mod:`scinfl.metrics`     scores: arrays in, pandas out
:mod:`scinfl.datasets`    bundled, published and generated data
========================  =====================================================
"""

from importlib import import_module
from importlib.metadata import version
from types import ModuleType

__version__ = version("scinfl")

__all__ = [
    "__version__",
    "datasets",
    "federation",
    "flower",
    "metrics",
    "model",
    "module",
    "nn",
    "pl",
    "pp",
    "privacy",
    "tl",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted(__all__)
