"""What happens to an update between a site and the mean of all sites."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from scinfl.federation._strategy import Strategy
from scinfl.federation._update import State, Update


class Protection(Protocol):
    """Guards updates. A federation may apply any number, in order; none leaves updates as they are.

    Sites call ``on_step``, ``encode`` and ``decode``; the server calls ``combine`` and holds no secret. A protection
    whose ``combine`` sums what the server cannot read says so with a class attribute ``sums = True``, and comes last;
    after it there may be those that only look at what arrives, with ``watches = True``.
    """

    def on_step(self, network: Any, batch: Any) -> float | None:
        """Compute the gradients of one local step instead of the site (sample-level privacy).

        Returns the loss of the step (NaN where nobody may learn it), or ``None`` to leave the step to the site.
        """
        ...

    def encode(self, update: Update) -> Update:
        """Change an update before anything leaves the site."""
        ...

    def combine(self, encoded: Sequence[Update]) -> Update | None:
        """Sum what the server may see, or return ``None`` to leave the sum to the strategy."""
        ...

    def decode(self, combined: Update, members: Sequence[Update]) -> Update:
        """Read the sum at a site.

        ``members`` are the encoded updates that went into the sum, without their arrays.
        """
        ...


@runtime_checkable
class NeedsTotals(Protocol):
    """A protection that must know the total weight of all sites before it encodes."""

    def agree(self, purpose: str, weights: Mapping[str, float]) -> float:
        """Learn the total weight of a purpose without showing the weight of a site."""
        ...


@runtime_checkable
class DrawsBatches(Protocol):
    """A protection that draws the batches of a site, because its guarantee depends on how they are drawn."""

    def batches(self, site: str, train: Any, batch_size: int, epochs: int) -> Iterator[Any]:
        """Batches of one round, as ``on_step`` takes them."""
        ...


@runtime_checkable
class StartsRounds(Protocol):
    """A protection that must know the shared state that a site starts from."""

    def begin_round(self, site: str, round: int, state: State) -> None:
        """Hear of a site that starts a round."""
        ...


@runtime_checkable
class SpendsPrivacy(Protocol):
    """A protection by noise, with an account of what it lets through."""

    def open_account(self, *, n_sites: int, n_rounds: int, journal: Any | None) -> None:
        """Hear of a run: how many sites a round, how many rounds, and where attempts are written down."""
        ...

    def check_site(self, site: str, network: Any, train: Any, n_validation: int, options: Mapping[str, Any]) -> None:
        """Refuse a network, observations or options of the loss that the guarantee would not hold for."""
        ...

    def epsilon(self, site: str | None = None) -> float:
        """What a site has spent; the most that any has by default."""
        ...


@runtime_checkable
class NeedsExchange(Protocol):
    """A protection whose sites exchange messages before they encode, anew for each attempt at a round."""

    def exchange(self, purpose: str, round: int, sites: Sequence[str]) -> None:
        """Prepare a sum of these sites."""
        ...


def are_elsewhere(protections: Sequence[Protection]) -> bool:
    """Whether the other sites are on machines of their own: a protection fetches their terms (``travels = True``)."""
    return any(getattr(protection, "travels", False) for protection in protections)


def check_order(protections: Sequence[Protection]) -> None:
    """Refuse protections that do not combine: what follows a sum would read masks as numbers.

    Raises
    ------
    ValueError
        If more than one protection sums, or if one that sums is not the last.

    Examples
    --------
    >>> import scinfl as si
    >>> key = si.privacy.Key.generate()
    >>> si.federation.check_order([si.privacy.KeyedSum(key)])
    >>> si.federation.check_order([si.privacy.KeyedSum(key), si.privacy.KeyedSum(key)])
    Traceback (most recent call last):
    ValueError: ...
    """
    guards = [protection for protection in protections if not getattr(protection, "watches", False)]
    names = [type(protection).__name__ for protection in guards]
    summing = [name for name, protection in zip(names, guards, strict=True) if getattr(protection, "sums", False)]
    if len(summing) > 1:
        msg = (
            f"Expected at most one protection that sums, found {' and '.join(summing)}: the second would read masks as "
            "numbers. Keep one; `PairwiseSum(key)` holds pairwise masks and a keyed sum."
        )
        raise ValueError(msg)
    if summing and names[-1] != summing[0]:
        msg = (
            f"Expected {summing[0]} to be the last protection, found {names[-1]} after it, which would read masks as "
            f"numbers. Put {summing[0]} last."
        )
        raise ValueError(msg)


def exchange(protections: Sequence[Protection], updates: Sequence[Update]) -> None:
    """Let the sites of a sum exchange what their protections need."""
    for protection in protections:
        if isinstance(protection, NeedsExchange):
            protection.exchange(updates[0].purpose, updates[0].round, [update.site for update in updates])


def encode(protections: Sequence[Protection], update: Update) -> Update:
    """Apply protections in order, at the site."""
    for protection in protections:
        update = protection.encode(update)
    return update


def combine(protections: Sequence[Protection], strategy: Strategy, encoded: Sequence[Update]) -> Update:
    """Sum at the server: the last protection that sums does, because its form is the one that travels."""
    for protection in reversed(protections):
        combined = protection.combine(encoded)
        if combined is not None:
            return combined
    return strategy.reduce(encoded)


def decode(protections: Sequence[Protection], combined: Update, members: Sequence[Update]) -> Update:
    """Undo protections in reverse order, at the site."""
    for protection in reversed(protections):
        combined = protection.decode(combined, members)
    return combined
