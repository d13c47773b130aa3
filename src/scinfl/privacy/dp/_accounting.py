"""How much privacy was spent, by formulas that others have checked."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_ndtr

from scinfl._extras import install_line
from scinfl.federation import Journal

_ORDERS = (*(1 + step / 10 for step in range(1, 100)), *range(12, 65), 80, 96, 128, 192, 256, 384, 512)
_EVENT = "privacy"


def gaussian_delta(epsilon: float, noise_multiplier: float) -> float:
    r"""Exact :math:`\delta` of a Gaussian mechanism at :math:`\varepsilon` (Balle & Wang 2018, theorem 8).

    .. math::
        \delta = \Phi\Big(\frac{1}{2\sigma} - \varepsilon\sigma\Big)
        - e^\varepsilon\, \Phi\Big(-\frac{1}{2\sigma} - \varepsilon\sigma\Big)
    """
    above, below = (log_ndtr(sign / (2 * noise_multiplier) - epsilon * noise_multiplier) for sign in (1, -1))
    return float(np.exp(above) - np.exp(epsilon + below))


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    r""":math:`\varepsilon` of a Gaussian mechanism at :math:`\delta`: inverse of :func:`gaussian_delta`.

    So many steps with multipliers :math:`\sigma_t` are one with :math:`\sigma^{-2} = \sum_t \sigma_t^{-2}`.
    """
    if noise_multiplier == 0:
        return math.inf
    if gaussian_delta(0.0, noise_multiplier) <= delta:
        return 0.0
    mu = 1 / noise_multiplier
    enough = mu**2 / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    return float(brentq(lambda epsilon: gaussian_delta(epsilon, noise_multiplier) - delta, 0, enough, xtol=1e-10))


def gaussian_noise_multiplier(epsilon: float, delta: float) -> float:
    """Least noise multiplier of a Gaussian mechanism that keeps to an epsilon at a delta."""

    def excess(log_multiplier: float) -> float:
        return gaussian_delta(epsilon, math.exp(log_multiplier)) - delta

    return math.exp(brentq(excess, -12, 25, xtol=1e-12)) * (1 + 1e-6)


def subsampled_epsilon(spent: Mapping[tuple[float, float], int], delta: float) -> float:
    r""":math:`\varepsilon` of Gaussian steps on Poisson samples, by the Rényi accountant of opacus.

    Mironov, Talwar & Zhang (2019), turned into :math:`(\varepsilon, \delta)` by Balle et al. (2020). Neighbours differ
    in one unit that is added or removed. Where every unit takes part in every step the exact :func:`gaussian_epsilon`
    is used instead.
    """
    if not spent:
        return 0.0
    if any(noise_multiplier == 0 for noise_multiplier, _ in spent):
        return math.inf
    if all(sample_rate == 1 for _, sample_rate in spent):
        return gaussian_epsilon(sum(n / noise**2 for (noise, _), n in spent.items()) ** -0.5, delta)
    total = sum(n_steps * _rdp_of_a_step(*kind) for kind, n_steps in spent.items())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the best order at the end of the list is still a bound
        epsilon, _ = _opacus_rdp().get_privacy_spent(orders=_ORDERS, rdp=total, delta=delta)
    return max(float(epsilon), 0.0)


@lru_cache(maxsize=1024)
def subsampled_noise_multiplier(epsilon: float, delta: float, sample_rate: float, n_steps: int) -> float:
    """Noise multiplier with which so many steps on Poisson samples keep to an epsilon, to within a hundredth of it."""
    if sample_rate == 1:
        return gaussian_noise_multiplier(epsilon, delta) * math.sqrt(n_steps)
    _opacus_rdp()
    from opacus.accountants.utils import get_noise_multiplier

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return float(
            get_noise_multiplier(
                target_epsilon=epsilon,
                target_delta=delta,
                sample_rate=sample_rate,
                steps=n_steps,
                accountant="rdp",
                epsilon_tolerance=epsilon / 100,
                alphas=_ORDERS,
            )
        )


@lru_cache(maxsize=1024)
def _rdp_of_a_step(noise_multiplier: float, sample_rate: float) -> np.ndarray:
    return _opacus_rdp().compute_rdp(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=_ORDERS)


def _opacus_rdp() -> ModuleType:
    try:
        from opacus.accountants.analysis import rdp
    except ImportError as error:
        msg = (
            "Expected opacus, which accounts for differential privacy, found none. Install it with "
            f"`{install_line('dp')}`."
        )
        raise ImportError(msg) from error
    return rdp


def shuffled_epsilon(noise_multiplier: float, n_sites: int, delta: float) -> float:
    r""":math:`\varepsilon` of one round of Gaussian updates that a shuffler strips of their senders.

    Of :math:`n` messages, each :math:`\varepsilon_0`-private by itself, the shuffled list keeps (Feldman, McMillan &
    Talwar 2021, theorem 3.1, in the form of their own code)

    .. math::
        \varepsilon = \log\Big(1 + \frac{1 - e^{-\varepsilon_0}}{1 + e^{-\varepsilon_0} / (1 + a)}\, a\Big), \qquad
        a = 8 \sqrt{\frac{e^{\varepsilon_0} \log(4 / \delta)}{n}} + \frac{8 e^{\varepsilon_0}}{n}, \qquad
        e^{\varepsilon_0} \le \frac{n}{16 \log(4 / \delta)}

    A Gaussian update is private only up to a :math:`\delta_0`, which adds
    :math:`(e^\varepsilon + 1)(1 + e^{-\varepsilon_0} / 2)\, n\, \delta_0` to :math:`\delta` (theorem 3.8); half of
    :math:`\delta` is set aside for that. Where the condition fails, as it does for fewer than some 200 sites whatever
    the noise, nothing is gained and the result is that of the update by itself.
    """
    alone = gaussian_epsilon(noise_multiplier, delta)
    most = n_sites / (16 * math.log(8 / delta))  # half of delta each for the theorem and for what it leaves out
    if most <= 1 or noise_multiplier == 0:
        return alone
    local = gaussian_epsilon(noise_multiplier, delta / 2 / ((most + 1) * 1.5 * n_sites))
    if math.exp(local) > most:
        return alone
    a = 8 * math.sqrt(math.exp(local) * math.log(8 / delta) / n_sites) + 8 * math.exp(local) / n_sites
    return min(alone, math.log1p((1 - math.exp(-local)) / (1 + math.exp(-local) / (1 + a)) * a))


UNITS = ("row", "group", "site")
"""What a guarantee covers, from the weakest to the strongest: each covers those before it."""


@dataclass(frozen=True)
class Charge:
    """What one attempt at a round costs a site."""

    site: str
    noise_multiplier: float
    sample_rate: float = 1.0
    n_steps: int = 1
    unit: str = UNITS[0]


class AccountBook(Protocol):
    """Keeps charges beyond one run."""

    def charges(self) -> Mapping[str, Mapping[str, Any]]:
        """All charges so far, by number."""
        ...

    def note(self, number: str, charge: Mapping[str, Any]) -> None:
        """Keep a charge, before anything is spent."""
        ...


_BOOK: ContextVar[AccountBook | None] = ContextVar("book", default=None)


@contextmanager
def accounted_in(book: AccountBook | None) -> Iterator[None]:
    """Let accounts that are opened inside of the context continue from a book, and write every charge to it first.

    Parameters
    ----------
    book
        The book; ``None`` for none.
    """
    token = _BOOK.set(book)
    try:
        yield
    finally:
        _BOOK.reset(token)


class Account:
    """What the sites have spent of the privacy of a unit (row, group or site).

    Every attempt at a round is charged before it starts, and written to the journal where there is one, so that a round
    that is cut off or done again counts as often as it was tried.
    """

    def __init__(self, unit: str = UNITS[0]) -> None:
        self.unit = unit
        self._charges: dict[str, Charge] = {}
        self.journal: Journal | None = None
        self._book: AccountBook | None = None

    def keep(self, journal: Journal | None) -> None:
        """Read the charges of a journal and of the present book, each once, and write all later ones to them."""
        self.journal, self._book = journal, _BOOK.get()
        events = () if journal is None else journal.events()
        found = {event["number"]: event["charge"] for event in events if event["event"] == _EVENT}
        found |= {} if self._book is None else self._book.charges()
        self._charges |= {number: Charge(**charge) for number, charge in found.items()}

    def charge(self, charge: Charge) -> None:
        """Note an attempt, before it starts."""
        number = os.urandom(8).hex()
        if self._book is not None:
            self._book.note(number, asdict(charge))
        if self.journal is not None:
            self.journal.log(_EVENT, number=number, charge=asdict(charge))
        self._charges[number] = charge

    @property
    def sites(self) -> list[str]:
        """Sites that were charged."""
        return sorted({charge.site for charge in self._charges.values()})

    def spent(self, site: str) -> dict[tuple[float, float], int]:
        """Steps of a site by noise multiplier and sampling rate; what did not cover the unit has no noise."""
        steps: dict[tuple[float, float], int] = {}
        for charge in self._charges.values():
            if charge.site == site:
                covered = UNITS.index(charge.unit) >= UNITS.index(self.unit)
                kind = (charge.noise_multiplier, charge.sample_rate) if covered else (0.0, 1.0)
                steps[kind] = steps.get(kind, 0) + charge.n_steps
        return steps

    def worst(self, epsilon: Callable[[str], float]) -> float:
        """Largest of the sites' epsilons; 0 before the first charge."""
        return max([0.0, *map(epsilon, self.sites)])
