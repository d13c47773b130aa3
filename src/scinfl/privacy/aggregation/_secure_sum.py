"""What all sums that the server cannot read have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from scinfl._checks import whole_number
from scinfl._errors import TamperedSumError
from scinfl.federation import Protection, Update

_TOTAL = "total of "
Layout = tuple[tuple[str, tuple[int, ...], np.dtype], ...]


class SecureSum(Protection, ABC):
    r"""Weighted mean of updates by a sum whose terms only their sites can read.

    A site's term holds :math:`w_k \theta_k`, :math:`w_k` itself, and :math:`w_k` times every metric, with
    :math:`w_k = n_k / N` and :math:`N` agreed by a sum of the same kind (:meth:`agree`). The sum is divided by
    :math:`\sum_k w_k` of the sites that are in it.

    Parameters
    ----------
    min_sites
        Least number of sites in a sum.
    """

    sums: ClassVar[bool] = True
    _name: ClassVar[str]
    _cure: ClassVar[str]
    _least_weight: ClassVar[float] = 0.0  # what cannot be distinguished from 0

    def __init__(self, min_sites: int, *, least: int = 2) -> None:
        whole_number("min_sites", min_sites, least)
        self.min_sites = min_sites
        self._totals: dict[str, float] = {}
        self._layouts: dict[str, tuple[Layout, tuple[str, ...]]] = {}

    def agree(self, purpose: str, weights: Mapping[str, float]) -> float:
        """Sum the weights of all sites without showing one, so that each can send its share.

        Parameters
        ----------
        purpose
            What the weights are for: ``"training"`` or ``"evaluation"``.
        weights
            Weight of every site.
        """
        self._check_number(len(weights), ValueError)
        sent = [self.encode_weight(purpose, site, weight) for site, weight in weights.items()]
        return self.decode_weights(purpose, self._add(sent), [replace(upload, state={}) for upload in sent])

    def reuse_total(self, purpose: str, agreed: str) -> None:
        """Take the total weight of a purpose from another one, which saves an exchange.

        Parameters
        ----------
        purpose
            What the weights are for.
        agreed
            Purpose that was agreed on with the same weights.
        """
        if agreed in self._totals:
            self._totals[purpose] = self._totals[agreed]

    def encode_weight(self, purpose: str, site: str, weight: float) -> Update:
        """Hide the weight of one site, at that site.

        Parameters
        ----------
        purpose
            What the weight is for.
        site
            Name of the site.
        weight
            Its weight.
        """
        empty = Update(site, 0, {}, n_obs=0, weight=0.0, purpose=total_of(purpose))
        return self._hide_weight(empty, np.array([weight], np.float64))

    def decode_weights(self, purpose: str, combined: Update, members: Sequence[Update]) -> float:
        """Read the total weight at a site, and remember it for the updates of the purpose.

        Parameters
        ----------
        purpose
            What the weights are for.
        combined
            What the server added.
        members
            What went into the sum, without arrays.
        """
        self._check_members(len(members))
        self._totals[purpose] = float(self._read_weights(combined, members)[0])
        return self._totals[purpose]

    def expect(self, total: float, update: Update) -> None:
        """Learn the layout of a sum without having sent a term of it: at a site that was away, or started again.

        Parameters
        ----------
        total
            Total weight of the purpose, as it was agreed.
        update
            Arrays and metrics like those of the other sites; their values do not matter.
        """
        self._totals[update.purpose] = total
        self.learn(update)

    def learn(self, update: Update) -> None:
        """Learn the layout of the sums of a purpose.

        Parameters
        ----------
        update
            Arrays and metrics like those of the other sites; their values do not matter.
        """
        layout = tuple((name, update.state[name].shape, update.state[name].dtype) for name in sorted(update.state))
        self._layouts[update.purpose] = (layout, tuple(sorted(update.metrics)))

    def combine(self, encoded: Sequence[Update]) -> Update:
        """Add at the server, which needs no secret."""
        return self._add(encoded)

    @abstractmethod
    def _add(self, encoded: Sequence[Update]) -> Update: ...

    @abstractmethod
    def _hide_weight(self, upload: Update, weight: np.ndarray) -> Update: ...

    @abstractmethod
    def _read_weights(self, combined: Update, members: Sequence[Update]) -> np.ndarray: ...

    def _share(self, update: Update) -> float:
        """Weight of an update over the total of its purpose."""
        total = self._totals.get(update.purpose)
        if not total:
            msg = f"Expected the total weight of '{update.purpose}' to be agreed, found none. Call `agree` first."
            raise RuntimeError(msg)
        return update.weight / total

    def _pack(self, update: Update) -> np.ndarray:
        """Parameters, a one and metrics as one vector; the one becomes the sum of the shares."""
        self.learn(update)
        layout, metrics = self._layouts[update.purpose]
        parts = [np.ravel(update.state[name]) for name, _, _ in layout]
        contents = np.concatenate([*parts, [1.0], [update.metrics[name] for name in metrics]], dtype=np.float64)
        if not np.isfinite(contents).all():
            msg = (
                f"Expected finite parameters and metrics, found NaN or infinity at site '{update.site}'. Lower the "
                "learning rate `lr`, or look for extreme values in that site's data."
            )
            raise ValueError(msg)
        return contents

    def _unpack(self, combined: Update, values: np.ndarray) -> Update:
        """Mean update of the summed vectors."""
        layout, metrics = self._layouts[combined.purpose]
        sizes = _sizes(layout)
        weight = values[sum(sizes)]
        if not weight > self._least_weight:
            msg = "Expected a sum with a positive total weight, found 0: every site of the round is empty."
            raise ValueError(msg)
        values /= weight
        state, start = {}, 0
        for (name, shape, dtype), size in zip(layout, sizes, strict=True):
            state[name] = values[start : start + size].reshape(shape).astype(dtype)
            start += size
        measured = dict(zip(metrics, values[start + 1 :].tolist(), strict=True))
        total = float(weight * self._totals[combined.purpose])
        return replace(combined, state=state, weight=total, metrics=measured, header={})

    def _n_values(self, purpose: str) -> int:
        """How many numbers a sum of a purpose holds, parameters, weight and metrics."""
        if purpose not in self._layouts:
            msg = f"Expected to know what a sum of '{purpose}' holds, found nothing. Call `expect` first."
            raise RuntimeError(msg)
        layout, metrics = self._layouts[purpose]
        return sum(_sizes(layout)) + 1 + len(metrics)

    def _check_members(self, n_sites: int) -> None:
        self._check_number(n_sites, TamperedSumError)

    def _check_number(self, n_sites: int, error: type[ValueError]) -> None:
        if n_sites < self.min_sites:
            msg = (
                f"Expected at least {self.min_sites} sites in a {self._name}, found {n_sites}: a sum of few shows them "
                f"to each other. Let more sites take part{self._cure}."
            )
            raise error(msg)


def _sizes(layout: Layout) -> list[int]:
    return [int(np.prod(shape, dtype=np.int64)) for _, shape, _ in layout]


def total_of(purpose: str) -> str:
    """Name of the sum of weights of a purpose."""
    return f"{_TOTAL}{purpose}"


def purpose_of(total: str) -> str | None:
    """Purpose whose weights a sum adds, by its name; ``None`` for any other sum."""
    return total.removeprefix(_TOTAL) if total.startswith(_TOTAL) else None
