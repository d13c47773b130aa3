"""Which sites exchange what: updates, sites, strategies, protections, and the run that joins them.

:mod:`scinfl.federation.rounds` holds the rules of a round for engines in other packages of scinfl.
"""

from typing import Any

from scinfl._checks import warn
from scinfl.federation import rounds
from scinfl.federation._adaptive import FedAdam, FedAvgM, FedProx
from scinfl.federation._journal import Journal
from scinfl.federation._owned_parts import OwnedParts
from scinfl.federation._payload import Payload
from scinfl.federation._protection import Protection
from scinfl.federation._robust import Median, TrimmedMean
from scinfl.federation._simulate import mean_of, means_of, simulate
from scinfl.federation._site import Site
from scinfl.federation._strategy import FedAvg, Strategy
from scinfl.federation._update import State, Update
from scinfl.federation.rounds import Run

__all__ = [
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedProx",
    "Journal",
    "Median",
    "OwnedParts",
    "Payload",
    "Protection",
    "Run",
    "Site",
    "State",
    "Strategy",
    "TrimmedMean",
    "Update",
    "mean_of",
    "means_of",
    "simulate",
]

_MOVED = {name: f"rounds.{name}" for name in ("check_order", "rehearse", "weighted_mean", "write_atomically")}
_MOVED["NeedsExchange"] = "Protection"


def __getattr__(name: str) -> Any:
    if name not in _MOVED:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    msg = f"`scinfl.federation.{name}` is not public any more. Use `scinfl.federation.{_MOVED[name]}`."
    warn(msg, DeprecationWarning)
    return getattr(rounds, _MOVED[name].removeprefix("rounds."))
