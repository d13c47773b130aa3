"""Secure aggregation: sums that the server cannot read.

Internal beyond what :mod:`scinfl.privacy` exports: the halves of server and site, for engines.
"""

from scinfl.privacy.aggregation._advertisement import Advertisement
from scinfl.privacy.aggregation._aggregator import MASKED, Aggregator
from scinfl.privacy.aggregation._context import BELIEFS, PROTOCOL, Place, RunContext, StepContext, SumContext, digest_of
from scinfl.privacy.aggregation._default_protections import default_protections
from scinfl.privacy.aggregation._fixed_point import FixedPoint
from scinfl.privacy.aggregation._homomorphic_sum import HomomorphicServer, HomomorphicSum
from scinfl.privacy.aggregation._keyed_sum import KeyedSum, UnsentSum
from scinfl.privacy.aggregation._masked_sum import MAX_BOUND, MaskedSum, default_bound, names_of
from scinfl.privacy.aggregation._pairwise_participant import PairwiseParticipant
from scinfl.privacy.aggregation._pairwise_sum import PairwiseServer, PairwiseSum
from scinfl.privacy.aggregation._secure_sum import purpose_of, total_of

__all__ = [
    "BELIEFS",
    "MASKED",
    "MAX_BOUND",
    "PROTOCOL",
    "Advertisement",
    "Aggregator",
    "FixedPoint",
    "HomomorphicServer",
    "HomomorphicSum",
    "KeyedSum",
    "MaskedSum",
    "PairwiseParticipant",
    "PairwiseServer",
    "PairwiseSum",
    "Place",
    "RunContext",
    "StepContext",
    "SumContext",
    "UnsentSum",
    "default_bound",
    "default_protections",
    "digest_of",
    "names_of",
    "purpose_of",
    "total_of",
]
