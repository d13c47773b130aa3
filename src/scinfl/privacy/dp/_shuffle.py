"""Updates without their senders."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from scinfl.federation import Journal, Update
from scinfl.privacy.dp._accounting import shuffled_epsilon
from scinfl.privacy.dp._update_dp import UpdateDP


class Shuffle(UpdateDP):
    r"""Noisy updates that a shuffler strips of their senders before the server adds them.

    The baseline that PPML-Omics (Zhou et al. 2024) describes, with what its published code lacks: that code clips
    before there is any gradient, so clips nothing, adds noise once to the sum at the server, which has then read every
    update, multiplies :math:`\varepsilon` by the number of sites for the shuffling, and never adds up rounds. Here each
    site clips and blurs its own update (:class:`UpdateDP`), a shuffler between the sites and the server drops name,
    weight and order, and the server takes the plain mean: weights would give senders away.

    **Shuffling itself adds no privacy here.** The closed form of Feldman, McMillan & Talwar (2021) gains something from
    hundreds of sites with much noise on; with 3 to 10 hospitals it gains nothing, and :meth:`epsilon` is that of the
    noise alone. Where it does gain, the rounds are added up one by one, and the smaller of both counts. The shuffler
    must not collude with the server.

    Parameters
    ----------
    max_norm, noise_multiplier, delta, unnoised_validation
        See :class:`UpdateDP`.

    Examples
    --------
    >>> import numpy as np
    >>> from scinfl.federation import Update
    >>> from scinfl.privacy import Shuffle
    >>> protection = Shuffle(max_norm=1.0, noise_multiplier=2.0)
    >>> updates = [Update(site, 1, {"w": np.ones(2)}, n_obs=10) for site in ("a", "b", "c")]
    >>> {update.site for update in protection.shuffle(updates)}
    {''}
    """

    min_sites = 2

    def __init__(
        self, *, max_norm: float, noise_multiplier: float, delta: float = 1e-5, unnoised_validation: bool = False
    ) -> None:
        super().__init__(
            max_norm=max_norm,
            noise_multiplier=noise_multiplier,
            delta=delta,
            unnoised_validation=unnoised_validation,
        )
        self._n_sites: int | None = None

    def open_account(self, *, n_sites: int, n_rounds: int, journal: Journal | None) -> None:
        """As :meth:`UpdateDP.open_account`; the smallest number of sites counts."""
        super().open_account(n_sites=n_sites, n_rounds=n_rounds, journal=journal)
        self._n_sites = n_sites if self._n_sites is None else min(n_sites, self._n_sites)

    def epsilon(self, site: str | None = None) -> float:
        r""":math:`\varepsilon` that a site has spent over all rounds; the most that any has by default.

        Parameters
        ----------
        site
            Name of the site.
        """
        if site is None:
            return self._account.worst(self.epsilon)
        alone, spent = super().epsilon(site), self._account.spent(site)
        n_rounds = sum(spent.values())
        if self._n_sites is None or not n_rounds:
            return alone
        shuffled = sum(
            n * shuffled_epsilon(noise_multiplier, self._n_sites, self.delta / n_rounds)
            for (noise_multiplier, _), n in spent.items()
        )
        return min(alone, shuffled)

    def shuffle(self, encoded: Sequence[Update]) -> list[Update]:
        """What the shuffler hands on: updates in random order, without names, weights and numbers of observations.

        Parameters
        ----------
        encoded
            Updates as the sites sent them.
        """
        nameless = [replace(update, site="", n_obs=0, weight=1.0, metrics={}, header={}) for update in encoded]
        secrets.SystemRandom().shuffle(nameless)
        return nameless

    def combine(self, encoded: Sequence[Update]) -> Update | None:
        """Shuffle, and take the plain mean at the server; validation metrics are left to others.

        Parameters
        ----------
        encoded
            Updates as the sites sent them.

        Raises
        ------
        ValueError
            If it is neither training nor validation: there is no noise on such sums, and they come from named sites.
        """
        purpose = encoded[0].purpose
        if purpose == "evaluation":
            return None
        if purpose != "training":
            msg = (
                f"Expected updates of training to shuffle, found '{purpose}': sums before training leave named and "
                "without noise. Guard them with a `KeyedSum`, which hides them from the server."
            )
            raise ValueError(msg)
        nameless = self.shuffle(encoded)
        state = {
            name: np.mean([update.state[name] for update in nameless], axis=0, dtype=np.float64).astype(array.dtype)
            for name, array in nameless[0].state.items()
        }
        return replace(nameless[0], state=state, weight=float(len(nameless)), header={"shuffled": b"1"})

    def decode(self, combined: Update, members: Sequence[Update]) -> Update:
        """Refuse a sum of training that was not shuffled.

        Parameters
        ----------
        combined
            The mean.
        members
            Who takes part.
        """
        del members
        if combined.purpose == "training" and "shuffled" not in combined.header:
            msg = (
                "Expected updates that went through the shuffler, found a sum that another protection made of named "
                "ones. Use `Shuffle` without a protection that masks, or `UpdateDP` with it."
            )
            raise ValueError(msg)
        return combined
