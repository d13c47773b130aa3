"""What a server sends, looked over at the site before it is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from scinfl._checks import first_of, warn

_SIMILAR = 0.999  # correlation of two rows of a weight from which they count as one
_NOTHING = 0.01  # of the size of the largest row
_FEWEST = 8  # rows below which a few may be similar by chance
_MOST = 128  # rows of a weight that are looked at: all pairs of them are compared


def check_received(
    state: Mapping[str, np.ndarray],
    previous: Mapping[str, np.ndarray] | None = None,
    *,
    own: Mapping[str, np.ndarray] | None = None,
    max_growth: float = 10.0,
) -> None:
    r"""Refuse parameters that no honest average looks like.

    A server that wants cells crafts the first layer: rows that repeat one direction, biases far beyond what training
    makes, weights of low rank (Fowl et al. 2022, Boenisch et al. 2023). Honest parameters after one more round look
    much like those before, and like what the site itself made of them. Refused are:

    - other names or shapes than before, and values that are no numbers;
    - a fifth or more of the rows of a weight, and at least 8, that repeat another (up to sign and size), where they did
      not before; a warning from a tenth on;
    - a weight, bias or scale whose largest value grew more than ``max_growth`` times (from at least 1);
    - a weight whose effective rank :math:`(\sum_i s_i)^2 / \sum_i s_i^2` fell below a fifth of what it was, or below
      a tenth of the smaller side where nothing came before; a warning below a third.

    What the site's own training did to a weight as well (rows that decay alike, tables of low rank) is no craft.

    Of a weight with more than 128 rows, 128 are drawn from the operating system's generator, the same of both states:
    an honest run is not changed by it, and the server cannot know which. That takes a few milliseconds for any network.

    It catches what is crude. A server that changes little each round stays below any such rule; keyed sums with their
    tags, under which the sites make the next state themselves, take the choice from it. Sites look over what they
    receive wherever a server makes it: across machines, without a protection that sums.

    Parameters
    ----------
    state
        Parameters by name, as they arrived.
    previous
        Those of the round before, or of the agreed start.
    own
        What this site sent in the round before.
    max_growth
        How much larger than before a largest value may be; infinite where noise on updates makes honest ones large.

    Raises
    ------
    ValueError
        If anything is refused; the message names all reasons.

    Examples
    --------
    >>> import numpy as np
    >>> from scinfl.privacy import check_received
    >>> weight = np.random.default_rng(0).normal(size=(16, 20))
    >>> check_received({"first.weight": weight + 0.01}, {"first.weight": weight})
    >>> check_received({"first.weight": np.tile(weight[0], (16, 1))}, {"first.weight": weight})
    Traceback (most recent call last):
    ...
    ValueError: Expected parameters like those of the round before, found ...
    """
    reasons: list[str] = [] if previous is None else _other_names(state, previous)
    doubts: list[str] = []
    for name, value in state.items():
        array = np.asarray(value)
        known = [np.asarray(states[name]) for states in (previous, own) if states is not None and name in states]
        if not np.isfinite(_largest(array)):
            reasons.append(f"'{name}' holds values that are no numbers")
        elif all(other.shape == array.shape for other in known):
            refused, doubtful = _strange(name, array, known, max_growth)
            reasons, doubts = reasons + refused, doubts + doubtful
    if doubts and not reasons:
        warn(
            f"Received unusual parameters: {first_of(doubts)}. Training may make such; so does a server that wants to "
            "read cells. More of it is refused."
        )
    if reasons:
        msg = (
            f"Expected parameters like those of the round before, found that {first_of(reasons)}. A server that wants "
            "to read cells sends such weights: do not train on them, and ask who runs the server. So does one whose "
            "training diverged: then lower `lr`."
        )
        raise ValueError(msg)


def _other_names(state: Mapping[str, np.ndarray], previous: Mapping[str, np.ndarray]) -> list[str]:
    found = [f"'{name}' is missing" for name in previous if name not in state]
    found += [f"'{name}' is new" for name in state if name not in previous]
    for name in state:
        if name in previous and np.shape(state[name]) != np.shape(previous[name]):
            found.append(f"'{name}' has another shape")
    return found


def _strange(
    name: str, array: np.ndarray, known: Sequence[np.ndarray], max_growth: float
) -> tuple[list[str], list[str]]:
    """Reasons to refuse a parameter and to doubt it, beside others that are known to be honest."""
    reasons: list[str] = []
    doubts: list[str] = []
    largest, usual = _largest(array), max([1.0, *map(_largest, known)])
    if largest > max_growth * usual:
        reasons.append(f"the largest value of '{name}' is {largest:.3g} and was at most {usual:.3g}")
    if array.ndim != 2 or min(array.shape) < _FEWEST:
        return reasons, doubts
    rows = np.arange(len(array))
    if len(rows) > _MOST:
        rows = np.random.default_rng().choice(rows, _MOST, replace=False)
    products, others = _products(array[rows]), [_products(other[rows]) for other in known]
    repeated, honest = _repeated(products), max([0.0, *map(_repeated, others)])
    if repeated >= max(0.1, _FEWEST / len(rows)) and repeated > 2 * honest:
        (reasons if repeated >= 0.2 else doubts).append(f"{repeated:.0%} of the rows of '{name}' repeat another")
    rank, usual = (
        _effective_rank(products),
        min(map(_effective_rank, others), default=0.3 * min(len(rows), array.shape[1])),
    )
    if rank < usual / 3:
        found = f"'{name}' has an effective rank of {rank:.1f}, less than {usual / 3:.1f}"
        (reasons if rank < usual / 5 or not others else doubts).append(found)
    return reasons, doubts


def _largest(array: np.ndarray) -> float:
    """Largest absolute value; no number where one is none."""
    return float(max(array.max(), -array.min())) if array.size else 0.0


def _products(rows: np.ndarray) -> np.ndarray:
    """Inner products of all rows, which show which are similar and, by their eigenvalues, the rank."""
    rows = np.asarray(rows, dtype=np.float64)
    return rows @ rows.T


def _repeated(products: np.ndarray) -> float:
    """Share of the rows that are another one up to sign and size; rows that decayed to nearly nothing read nothing."""
    sizes = np.sqrt(np.diag(products))
    counted = sizes > _NOTHING * sizes.max()
    likeness = np.abs(products[counted][:, counted] / np.outer(sizes[counted], sizes[counted]))
    np.fill_diagonal(likeness, 0)
    return float((likeness.max(1, initial=0) > _SIMILAR).sum() / len(sizes))


def _effective_rank(products: np.ndarray) -> float:
    squares = np.clip(np.linalg.eigvalsh(products), 0, None)
    return float(np.sqrt(squares).sum() ** 2 / squares.sum()) if squares.any() else 0.0
