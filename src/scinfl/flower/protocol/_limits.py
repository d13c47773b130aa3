"""Limits of what another party may send: checked before it is used, and before it names a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isfinite
from typing import Any, NoReturn

import numpy as np

from scinfl.flower.setup._job import NAME

MOST_STEPS = 1_000_000
"""Steps of a run, and rounds of a step."""

MOST_ATTEMPTS = 1_000_000_000_000
"""Attempts at a step: a server that starts again goes on a million later."""

MOST_MISSED = 1 << 25
"""Bytes of sums in a message, where it brings more than one."""

MOST_FACTS = 1 << 23
"""Bytes of the sealed facts of a site, which all sites fetch."""

_MOST_TEXT = 1 << 28
_MOST_ENTRIES = 1 << 22  # of all lists and objects: an empty one is two characters, and half a hundred bytes once read
_MOST_DEPTH = 32
_MOST_UPDATES = 100_000
_MOST_HEADER = 1 << 12
_KINDS = {"float32", "float64", "uint32", "uint64"}


def checked_count(what: str, value: object, most: int = MOST_STEPS) -> int:
    """A whole number from 0 to a limit.

    Raises
    ------
    ValueError
        If it is anything else.
    """
    if type(value) is not int or not 0 <= value <= most:
        msg = f"Expected {what} as a whole number from 0 to {most}, found {_short(value)}. Nothing of it was used."
        raise ValueError(msg)
    return value


def checked_name(what: str, value: object) -> str:
    """A name that may become that of a file: letters, digits, `_` and `-`.

    Raises
    ------
    ValueError
        If it is anything else.
    """
    if not isinstance(value, str) or not NAME.fullmatch(value):
        msg = (
            f"Expected {what} of letters, digits, '_' and '-', at most 41, found {_short(value)}. Nothing of it was "
            "used; do not trust who sent it."
        )
        raise ValueError(msg)
    return value


def read_json(text: str) -> Any:
    """Json of finite numbers, not too long and not too deep.

    Raises
    ------
    ValueError
        If it is anything else.
    """
    if len(text) > _MOST_TEXT:
        msg = f"a text of {len(text)} characters"
        raise ValueError(msg)
    if sum(map(text.count, ",[{")) > _MOST_ENTRIES:
        msg = f"a text of more than {_MOST_ENTRIES} entries"
        raise ValueError(msg)
    try:
        content = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        _refuse_depth()
    _check_depth(content)
    return content


def check_updates(heads: object) -> None:
    """Refuse a list of updates that is too long, or whose headers are."""
    if not isinstance(heads, list) or len(heads) > _MOST_UPDATES:
        msg = "no list of updates, or too many"
        raise ValueError(msg)
    if any(len(value) > _MOST_HEADER for head in heads for value in head["header"].values()):
        msg = "too long a header"
        raise ValueError(msg)
    if any(len(set(head["arrays"])) < len(head["arrays"]) for head in heads):
        msg = "an array that is named twice"
        raise ValueError(msg)


def own_array(array: np.ndarray) -> np.ndarray:
    """A copy of an array of a kind that is sent."""
    if str(array.dtype) not in _KINDS:
        msg = f"an array of {array.dtype}"
        raise ValueError(msg)
    return np.array(array)


def _check_depth(content: object) -> None:
    """Refuse what is nested too deeply, level by level, so without recursion."""
    level = [content]
    for _ in range(_MOST_DEPTH):
        below: list[object] = []
        for own in level:
            below += own.values() if isinstance(own, Mapping) else own if isinstance(own, list) else ()
        if not below:
            return
        level = below
    _refuse_depth()


def _refuse_depth() -> None:
    msg = f"lists in lists, more than {_MOST_DEPTH} deep"
    raise ValueError(msg) from None


def _refuse_constant(name: str) -> NoReturn:
    msg = f"{name} in place of a number"
    raise ValueError(msg)


def _finite(text: str) -> float:
    return value if isfinite(value := float(text)) else _refuse_constant(text[:20])


def _short(value: object) -> str:
    return repr(value)[:60] if not isinstance(value, int) or abs(value) < 1 << 64 else "a huge number"
