"""What masks are bound to: everything that a site believes when it takes part in a sum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from scinfl.privacy.keys._derivation import joined

PROTOCOL = 3
"""Version of the protocol: sites of different versions cannot read each other's sums."""

BELIEFS = "bounds, shapes, step, round, earlier sums, run, job, facts, key version or identities"
"""What two sites of a sum may differ in."""

Place = tuple[str, int]
"""Purpose and round of a sum."""


@dataclass(frozen=True)
class RunContext:
    """What a site believes of a run.

    Parameters
    ----------
    federation, key_version
        Name of the federation and version of its key; empty and 0 without a key.
    run
        Name of the run.
    job_digest
        Hash of the job; empty in one process.
    facts_digest
        Keyed hash of what all sites agreed on before the first sum (labels, perturbations, features, first model);
        empty in one process.
    identities_digest
        Hash of the pinned identities of all sites (:func:`digest_of`); empty where none are pinned.
    protocol
        Version of the protocol.

    Examples
    --------
    >>> one, other = RunContext("lung", 1, "r"), RunContext("lung", 2, "r")
    >>> len(one.digest), one.digest == other.digest
    (32, False)
    """

    federation: str
    key_version: int
    run: str
    job_digest: str = ""
    facts_digest: str = ""
    identities_digest: str = ""
    protocol: int = PROTOCOL

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of all of it."""
        return _digest("run", asdict(self))


@dataclass(frozen=True)
class SumContext:
    """What a site believes of one sum of a step."""

    purpose: str
    round: int
    bound_log2: int
    bits: int
    n_values: int


@dataclass(frozen=True)
class StepContext:
    """What a site believes of a step. All masks, tags and keys between pairs of sites derive from its digest.

    Parameters
    ----------
    run
        Digest of the :class:`RunContext`.
    step, attempt
        Number of the step in the run, and of the attempt at it.
    sums
        Sums of the step, in the order of purpose and round.
    advertisements
        Hash of all advertisements of the step (:func:`digest_of`) under pairwise masks, else empty.
    history
        Hash of the members and tags of all earlier sums, where an engine keeps it.
    """

    run: bytes
    step: int
    attempt: int
    sums: tuple[SumContext, ...]
    advertisements: bytes = b""
    history: bytes = b""

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of all of it."""
        hashes = {name: getattr(self, name).hex() for name in ("run", "advertisements", "history")}
        content = {**asdict(self), **hashes}
        return _digest("step", content)

    @property
    def places(self) -> list[Place]:
        """Purposes and rounds of the sums."""
        return [(own.purpose, own.round) for own in self.sums]


def digest_of(parts: Sequence[str | bytes]) -> bytes:
    """Hash of a list, the same for the same list only; empty for an empty one."""
    return hashlib.sha256(joined(*parts)).digest() if parts else b""


def _digest(kind: str, content: dict[str, Any]) -> bytes:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(joined(f"scinfl {kind} context", text)).digest()
