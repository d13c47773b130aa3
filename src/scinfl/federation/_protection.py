"""What happens to an update between a site and the mean of all sites."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from scinfl.federation._journal import Journal
from scinfl.federation._strategy import Strategy
from scinfl.federation._update import State, Update


class Protection:
    """Guards updates; a base class that leaves everything as it is.

    A federation may apply any number, in order. Sites call all methods but ``combine``, which the server calls; the
    server holds no secret. Subclasses override what they need.
    """

    sums: ClassVar[bool] = False
    """Whether ``combine`` sums what the server cannot read, after ``agree``. Such a protection comes last."""

    watches: ClassVar[bool] = False
    """Whether it only looks at what arrives, so that it may follow one that sums."""

    shows_sum: bool = False
    """Whether the server reads what a protection that sums has summed."""

    adds_alike: ClassVar[bool] = False
    """Whether it adds the same to all updates of a round, so that they can be compared; dry runs encode with it."""

    travels: ClassVar[bool] = False
    """Whether the other sites are on machines of their own, and ``combine`` fetches the sum of all."""

    min_sites: int = 1
    """Least number of sites in a round."""

    def agree(self, purpose: str, weights: Mapping[str, float]) -> float | None:
        """Learn the total weight of a purpose without showing the weight of a site; ``None`` where none is needed."""
        del purpose, weights
        return None

    def agree_on(self, weights: Mapping[str, Mapping[str, float]]) -> Mapping[str, float | None]:
        """Learn the total weights of several purposes at once."""
        return {purpose: self.agree(purpose, own) for purpose, own in weights.items()}

    def reuse_total(self, purpose: str, agreed: str) -> None:
        """Take the total weight of a purpose from another one, whose weights are the same at all sites."""
        del purpose, agreed

    def begin_round(self, site: str, round: int, state: State) -> None:
        """Take note of the shared state that a site starts a round from."""
        del site, round, state

    def batches(self, site: str, train: Any, batch_size: int, epochs: int) -> Iterator[Any] | None:
        """Draw the batches of a round as ``on_step`` takes them; ``None`` leaves them to the site.

        For protections whose guarantee depends on how batches are drawn. The training loss is not reported then.
        """
        del site, train, batch_size, epochs
        return None

    def on_step(self, network: Any, batch: Any) -> float | None:
        """Compute the gradients of one local step instead of the site (sample-level privacy).

        Returns the loss of the step (NaN where nobody may learn it), or ``None`` to leave the step to the site.
        """
        del network, batch
        return None

    def exchange(self, purpose: str, round: int, sites: Sequence[str]) -> None:
        """Let the sites of a sum exchange messages before they encode, for each attempt at a round."""
        del purpose, round, sites

    def encode(self, update: Update) -> Update:
        """Change an update before anything leaves the site."""
        return update

    def combine(self, encoded: Sequence[Update]) -> Update | None:
        """Sum what the server may see, or return ``None`` to leave the sum to the strategy."""
        del encoded
        return None

    def decode(self, combined: Update, members: Sequence[Update]) -> Update:
        """Read the sum at a site.

        ``members`` are the encoded updates that went into the sum, without their arrays.
        """
        del members
        return combined

    def bytes_of(self, n_values: int) -> int:
        """Bytes that a site sends for so many numbers (float64 by default)."""
        return 8 * n_values


class SpendsPrivacy(Protection, ABC):
    """A protection by noise, with an account of the privacy budget that was spent."""

    @abstractmethod
    def open_account(self, *, n_sites: int, n_rounds: int, journal: Journal | None) -> None:
        """Plan a run: how many sites per round, how many rounds, and the journal that attempts are noted in."""

    @abstractmethod
    def check_site(self, site: str, network: Any, train: Any, n_validation: int, options: Mapping[str, Any]) -> None:
        """Refuse a network, observations or options of the loss that the guarantee would not hold for."""

    @abstractmethod
    def epsilon(self, site: str | None = None) -> float:
        """What a site has spent; the most that any has by default."""


def are_elsewhere(protections: Sequence[Protection]) -> bool:
    """Whether the other sites are on machines of their own."""
    return any(protection.travels for protection in protections)


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
    >>> si.federation.rounds.check_order([si.privacy.KeyedSum(key)])
    >>> si.federation.rounds.check_order([si.privacy.KeyedSum(key), si.privacy.KeyedSum(key)])
    Traceback (most recent call last):
    ValueError: ...
    """
    guards = [protection for protection in protections if not protection.watches]
    names = [type(protection).__name__ for protection in guards]
    summing = [type(protection).__name__ for protection in guards if protection.sums]
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
