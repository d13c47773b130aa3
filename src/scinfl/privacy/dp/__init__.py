"""Differential privacy: of rows, of sites, of sums before training.

Internal beyond what :mod:`scinfl.privacy` exports. Modules are loaded on first use, because some need torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scinfl.privacy.dp._accounting import accounted_in, gaussian_epsilon, gaussian_noise_multiplier
    from scinfl.privacy.dp._noisy_sums import Released, noisy_sums
    from scinfl.privacy.dp._per_unit import ROWS_MIX
    from scinfl.privacy.dp._sample_dp import SampleDP
    from scinfl.privacy.dp._shuffle import Shuffle
    from scinfl.privacy.dp._update_dp import UpdateDP

__all__ = [
    "ROWS_MIX",
    "Released",
    "SampleDP",
    "Shuffle",
    "UpdateDP",
    "accounted_in",
    "gaussian_epsilon",
    "gaussian_noise_multiplier",
    "noisy_sums",
]

_MODULES = {
    "ROWS_MIX": "_per_unit",
    "Released": "_noisy_sums",
    "SampleDP": "_sample_dp",
    "Shuffle": "_shuffle",
    "UpdateDP": "_update_dp",
    "accounted_in": "_accounting",
    "gaussian_epsilon": "_accounting",
    "gaussian_noise_multiplier": "_accounting",
    "noisy_sums": "_noisy_sums",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
