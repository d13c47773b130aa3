"""Differential privacy of whole sites: updates are clipped and blurred before they leave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from scinfl._checks import first_of, number_between, warn
from scinfl._errors import WeakNoiseWarning
from scinfl.federation import Journal, OwnedParts, State, Update
from scinfl.federation.rounds import SpendsPrivacy
from scinfl.privacy.dp._accounting import UNITS, Account, Charge, subsampled_epsilon
from scinfl.privacy.dp._gaussian_noise import gaussian_noise, on_grid

_MANY = 100  # sites, below which site-level noise drowns what it hides


class UpdateDP(SpendsPrivacy):
    r"""Clips what a site has learnt in a round and adds noise to it, before anything leaves the site.

    .. math::
        \theta_k \leftarrow \theta + (\theta_k - \theta) \min\Big(1, \frac{C}{\lVert \theta_k - \theta \rVert}\Big)
        + \mathcal{N}(0, \sigma^2 C^2)

    with the round's shared state :math:`\theta` and all shared parameters together (McMahan et al. 2018, with the noise
    at the site). Neighbouring data differ in everything that one site has: two clipped updates are at most
    :math:`2C` apart, so a round is a Gaussian mechanism with the multiplier :math:`\sigma / 2`, and all rounds of a
    site together are one (Balle & Wang 2018), without any gain from sampling sites. The column ``epsilon`` of
    ``history`` is the site that spent most so far.

    **With 3 to 10 hospitals this is weak or useless, and a warning is given:** noise that hides one of few sites is as
    large as what they learnt together. Guard rows or patients with :class:`SampleDP` where the model allows it; for
    :class:`~scinfl.model.SpaMosaic` there is nothing else.

    Covered are the updates of training. Not covered: sums before the first round (components, scales and prototypes of
    SpaMosaic, which warns; :class:`~scinfl.model.GEARS` refuses noise on updates for its sums, but with
    ``share="meta"``), numbers of observations, and metrics of validation rows, which are refused unless you allow
    them. The training loss is not sent. Parameters that a site does not train, whatever its rows are, are sent as they
    came, without noise: columns that other sites own, in models of scvi-tools.

    Put it before the protection that masks: ``protections=[UpdateDP(...), KeyedSum(key)]``. A repeated upload carries
    the same noise; a round that is done again is charged again, and noted in the journal. Noise comes from the
    operating system.

    Parameters
    ----------
    max_norm
        :math:`C`.
    noise_multiplier
        :math:`\sigma`; 0 clips only and guards nothing.
    delta
        :math:`\delta`.
    unnoised_validation
        Let the metrics of validation rows leave without noise.

    Examples
    --------
    >>> import numpy as np
    >>> from scinfl.federation import Update
    >>> from scinfl.privacy import UpdateDP
    >>> protection = UpdateDP(max_norm=1.0, noise_multiplier=0.0)
    >>> protection.begin_round("a", 1, {"w": np.zeros(2)})
    >>> protection.encode(Update("a", 1, {"w": np.array([0.0, 4.0])}, n_obs=10)).state["w"].tolist()
    [0.0, 1.0]
    >>> protection.epsilon("a")
    inf
    """

    def __init__(
        self, *, max_norm: float, noise_multiplier: float, delta: float = 1e-5, unnoised_validation: bool = False
    ) -> None:
        number_between("max_norm", max_norm, 0, 1e9, open_low=True)
        number_between("noise_multiplier", noise_multiplier, 0, 1e6)
        number_between("delta", delta, 0, 0.5, open_low=True)
        self.max_norm, self.noise_multiplier, self.delta = max_norm, noise_multiplier, delta
        self.unnoised_validation = unnoised_validation
        self._account = Account(UNITS[-1])
        self._starts: dict[str, tuple[int, State]] = {}
        self._trained: dict[str, frozenset[str]] = {}
        self._sent: dict[str, tuple[Update, Update]] = {}

    # ---- the account

    def open_account(self, *, n_sites: int, n_rounds: int, journal: Journal | None) -> None:
        """Warn of few sites, and continue from what was spent according to the journal of the run."""
        del n_rounds
        if n_sites < _MANY:
            warn(
                f"Noise on the updates of {n_sites} sites is weak or useless: what hides one of few sites drowns what "
                "they learn together, and `epsilon` in `history` shows how little is hidden. It takes hundreds of "
                "sites; `SampleDP` guards rows or patients instead, where the model allows it.",
                WeakNoiseWarning,
            )
        self._account.keep(journal)

    def epsilon(self, site: str | None = None) -> float:
        r""":math:`\varepsilon` that a site has spent over all rounds; the most that any has by default.

        Parameters
        ----------
        site
            Name of the site.
        """
        if site is None:
            return self._account.worst(self.epsilon)
        return subsampled_epsilon(self._account.spent(site), self.delta)

    def check_site(self, site: str, network: Any, train: Any, n_validation: int, options: Mapping[str, Any]) -> None:
        """Refuse validation rows, unless their metrics may leave without noise; note what the site trains.

        Parameters
        ----------
        site
            Name of the site.
        network
            Network as the site trains it.
        train, options
            Whatever they are, the update is clipped.
        n_validation
            Number of rows to validate on.
        """
        del train, options
        self._trained[site] = frozenset(name for name, p in network.named_parameters() if p.requires_grad)
        if n_validation and not self.unnoised_validation:
            name = type(self).__name__
            msg = (
                f"Expected no validation rows, found {n_validation} at site '{site}': their metrics leave the site "
                f"without noise. Train with `validation_size=0`, or allow it with `{name}(unnoised_validation=True)`."
            )
            raise ValueError(msg)

    def begin_round(self, site: str, round: int, state: State) -> None:
        """Charge a round, and remember the shared state that the site starts from.

        Parameters
        ----------
        site
            Name of the site.
        round
            Number of the round.
        state
            Shared state, in the form in which updates are sent.
        """
        self._account.charge(Charge(site, self.noise_multiplier / 2, unit=UNITS[-1]))
        self._starts[site] = (round, state)

    # ---- the protection

    def encode(self, update: Update) -> Update:
        """Clip and blur an update of training; leave others as they are.

        Parameters
        ----------
        update
            What the site would send.
        """
        if update.purpose != "training":
            return update
        if update.site not in self._sent or self._sent[update.site][0] is not update:
            self._sent[update.site] = (update, self._noisy(update))
        return self._sent[update.site][1]  # sent again it carries the same noise: new noise would average out

    def _noisy(self, update: Update) -> Update:
        return replace(update, state=self._blurred(update), metrics=OwnedParts.reported(update.metrics))

    def _blurred(self, update: Update) -> dict[str, np.ndarray]:
        number, start = self._starts.get(update.site, (None, {}))
        if number != update.round:
            msg = (
                f"Expected site '{update.site}' to have started round {update.round}, found that it did not. Call "
                "`begin_round` first."
            )
            raise RuntimeError(msg)
        if unknown := sorted(update.state.keys() - start.keys()):
            msg = (
                f"Expected parameters of the shared state, found {first_of(unknown)}. Put {type(self).__name__} before "
                "the protection that masks updates."
            )
            raise ValueError(msg)
        trained = self._trained.get(update.site, update.state.keys()) & update.state.keys()
        change = {
            name: update.state[name].astype(np.float64) - np.asarray(start[name], np.float64)
            for name in update.state
            if name in trained
        }
        norm = float(np.sqrt(sum(np.square(array).sum() for array in change.values())))
        if not np.isfinite(norm):
            msg = (
                f"Expected finite parameters, found NaN or infinity at site '{update.site}'. Lower the learning rate "
                "`lr`, or look for extreme values in that site's data."
            )
            raise ValueError(msg)
        share, deviation = min(1.0, self.max_norm / max(norm, 1e-300)), self.noise_multiplier * self.max_norm
        blurred = {
            name: (start[name] + on_grid(share * array + gaussian_noise(array.shape, deviation), deviation)).astype(
                update.state[name].dtype
            )
            for name, array in change.items()
        }
        return {name: blurred.get(name, start[name]) for name in update.state}

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(max_norm={self.max_norm:g}, noise_multiplier={self.noise_multiplier:g}, "
            f"delta={self.delta:g})"
        )
