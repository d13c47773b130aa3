"""What happens to an update between a site and the mean of all sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from scinfl.federation._strategy import Strategy
from scinfl.federation._update import Update


class Protection(Protocol):
    """Guards updates. A federation may apply any number, in order; none leaves updates as they are.

    Sites call ``on_step``, ``encode`` and ``decode``; the server calls ``combine`` and holds no secret.
    """

    def on_step(self, network: Any, batch: Any) -> float | None:
        """Compute the gradients of one local step instead of the site (sample-level privacy).

        Returns the loss of the step, or ``None`` to leave the step to the site.
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
