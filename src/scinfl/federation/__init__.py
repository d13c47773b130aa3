"""Who talks to whom: updates, sites, strategies, protections, and the run that joins them."""

from scinfl.federation._adaptive import FedAdam, FedAvgM, FedProx
from scinfl.federation._journal import Journal, write_atomically
from scinfl.federation._owned_parts import OwnedParts
from scinfl.federation._payload import Payload
from scinfl.federation._protection import NeedsExchange, Protection, check_order
from scinfl.federation._rehearse import rehearse
from scinfl.federation._robust import Median, TrimmedMean
from scinfl.federation._simulate import Run, mean_of, simulate
from scinfl.federation._site import Site
from scinfl.federation._strategy import FedAvg, Strategy, weighted_mean
from scinfl.federation._update import State, Update

__all__ = [
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedProx",
    "Journal",
    "Median",
    "NeedsExchange",
    "OwnedParts",
    "Payload",
    "Protection",
    "Run",
    "Site",
    "State",
    "Strategy",
    "TrimmedMean",
    "Update",
    "check_order",
    "mean_of",
    "rehearse",
    "simulate",
    "weighted_mean",
    "write_atomically",
]
