"""Request for an audit, and what an audit of one kind of model consists of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from scinfl.privacy import Key

Job = Callable[[], list[dict[str, Any]]]


@dataclass(frozen=True)
class Request:
    """Arguments of an audit; those of ``train`` are filled in before its plan is made."""

    data: Any
    model: Any
    held_out: Any
    key: Key | None
    training: Mapping[str, Any]
    attributes: Sequence[str]
    quick: bool
    rng: int


@dataclass(frozen=True)
class Plan:
    """Attacks on one model."""

    jobs: Mapping[str, Job]  # attacks by name; each gives rows of findings
    parameters: Mapping[str, Any]  # settings that repeat the audit, for a file, with a ``summary`` in words
    left_open: Callable[[pd.DataFrame], list[str]]  # what the audit leaves open, given what it found
    n_further: int = 0  # steps that the jobs count by themselves
