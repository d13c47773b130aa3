"""Differential privacy of single rows or patients in local training."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from scinfl._checks import number_between, one_of
from scinfl.federation import Journal
from scinfl.federation.rounds import SpendsPrivacy
from scinfl.privacy.dp._accounting import (
    Account,
    Charge,
    gaussian_noise_multiplier,
    subsampled_epsilon,
    subsampled_noise_multiplier,
)
from scinfl.privacy.dp._gaussian_noise import gaussian_noise, uniform_numbers
from scinfl.privacy.dp._noisy_sums import noisy_sums
from scinfl.privacy.dp._per_unit import PoissonBatch, check_rows, clipped_sum


class SampleDP(SpendsPrivacy):
    r"""Differentially private training: no single row, or patient, changes much of what leaves a site.

    Every local step draws each unit of the site by itself with chance :math:`q` (batch size over number of units),
    clips the gradient of each to norm :math:`C`, adds noise and divides by the expected number of units (DP-SGD, Abadi
    et al. 2016):

    .. math::
        \tilde g = \frac{1}{q n} \Big( \sum_{u \text{ drawn}} g_u \min\Big(1, \frac{C}{\lVert g_u \rVert}\Big)
        + \mathcal{N}(0, \sigma^2 C^2) \Big)

    Whatever is made of the parameters afterwards, averages, releases and attacks included, is covered. The steps of
    *all* rounds are added up for each site by the Rényi accountant of opacus (:meth:`epsilon`; the column ``epsilon``
    of ``history`` is the site that spent most, that of ``site_history`` each site, both so far: the last row counts,
    whichever round the model keeps). One object is one budget: use it for everything that is trained on the same data.
    It forgets when the process ends, but for what the journal of a run holds, which a resumed run goes on from.

    **Unit.** Neighbouring data differ in one row, or with ``unit="group"`` in all rows of one patient, added to or
    removed from one site. A patient with rows at several sites spends at each. ``batch_size`` counts units.

    **What is not covered.** The number of units of a site (it sets weights and steps) counts as known, and so do its
    labels: in a federation over several machines their list leaves each site without noise, sealed for the other sites.
    A label that a single patient has shows that patient (`min_cells_per_label` in `site.toml` refuses it). Metrics of
    validation rows would leave without noise, hidden from the server by keyed sums but not from the other sites, so
    they are refused unless you allow them; then those rows have no guarantee. The training loss is not reported.
    Settings that you tried on the same data cost as much again.

    **Randomness.** Noise, draws and dropout come from the operating system and never from ``rng``. So no run can be
    repeated, and a run resumed from a journal is not the run that was cut off: every attempt at a round is charged
    before it starts, and noted in the journal. Only noise that was kept there is not paid for again: that of sums of
    perturbations, and over several machines that of an update which was not sent yet.

    Works with any network whose rows do not mix, keyed layers of all schemes included. Refused: batch normalisation and
    class weights (through both, rows change each other's gradients) and spots of tissue (a spot's features hold its
    neighbours; :class:`UpdateDP` guards whole sites). Needs opacus (the extra ``dp``).

    **Perturbations.** :class:`~scinfl.model.GEARS` trains on moments of cells, so each site releases them once: every
    cell is clipped to norm :math:`C` over its genes and counted, and sums and numbers of all conditions get noise
    together, an exact Gaussian mechanism (Balle & Wang 2018). Set :math:`C` to the length of a usual cell, as other
    data show it. Whatever follows, validation included, costs nothing more. It takes ``loss="squared"``, whose gradient
    needs means alone, and a gene ontology; no cell enters a co-expression graph. Which perturbations a site has counts
    as known.

    Parameters
    ----------
    noise_multiplier
        :math:`\sigma`, for all sites; 0 clips only and guards nothing.
    target_epsilon
        Instead: the noise of each site is chosen so that the planned rounds spend this much. What would spend more, a
        round done twice or a second training, is refused.
    max_norm
        :math:`C`.
    delta
        :math:`\delta`, below one over the number of units of the smallest site.
    unit
        ``"row"``, or ``"group"`` for the groups that the model's ``group_key`` names; by default groups where there are
        any.
    unnoised_validation
        Let the metrics of validation rows leave without noise.

    Examples
    --------
    >>> import scinfl as si
    >>> adata = si.datasets.pbmc()
    >>> si.pp.split_sites(adata, n_sites=3, by="bulk_labels", rng=0)
    >>> si.model.Classifier.setup_anndata(adata, labels_key="bulk_labels", site_key="site")
    >>> model, key = si.model.Classifier(adata, n_hidden=16), si.privacy.Key.generate()
    >>> private = si.privacy.SampleDP(target_epsilon=8, delta=1e-3)
    >>> sums = si.privacy.KeyedSum(key)
    >>> model.train(2, key=key, protections=[private, sums], validation_size=0, progress=False)
    >>> bool(0 < model.history["epsilon"].iloc[-1] <= 8)
    True
    """

    def __init__(
        self,
        *,
        noise_multiplier: float | None = None,
        target_epsilon: float | None = None,
        max_norm: float = 1.0,
        delta: float = 1e-5,
        unit: Literal["row", "group"] | None = None,
        unnoised_validation: bool = False,
    ) -> None:
        if (noise_multiplier is None) == (target_epsilon is None):
            msg = (
                f"Expected either `noise_multiplier` or `target_epsilon`, found {noise_multiplier} and "
                f"{target_epsilon}. The other follows."
            )
            raise ValueError(msg)
        if noise_multiplier is not None:
            number_between("noise_multiplier", noise_multiplier, 0, 1e6)
        if target_epsilon is not None:
            number_between("target_epsilon", target_epsilon, 0, 1e3, open_low=True)
        number_between("max_norm", max_norm, 0, 1e6, open_low=True)
        number_between("delta", delta, 0, 0.5, open_low=True)
        one_of("unit", unit, ["row", "group", None])
        self.noise_multiplier, self.target_epsilon = noise_multiplier, target_epsilon
        self.max_norm, self.delta, self.unit = max_norm, delta, unit
        self.unnoised_validation = unnoised_validation
        self._account = Account()
        self._n_rounds: int | None = None

    # ---- the account

    def open_account(self, *, n_sites: int, n_rounds: int, journal: Journal | None) -> None:
        """Plan the rounds of a run, and continue from what was spent according to its journal."""
        del n_sites
        self._n_rounds = n_rounds
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

    def _spend(self, charge: Charge) -> None:
        if self.target_epsilon is not None:
            spent = self._account.spent(charge.site)
            kind = (charge.noise_multiplier, charge.sample_rate)
            after = subsampled_epsilon({**spent, kind: spent.get(kind, 0) + charge.n_steps}, self.delta)
            if after > self.target_epsilon:
                msg = (
                    f"Expected a budget of {self.target_epsilon:g} that lasts for another round at site "
                    f"'{charge.site}', found that {self.epsilon(charge.site):.3g} of it is spent, rounds that were cut "
                    "off included. Stop here (`n_rounds=` of the rounds finished), or plan a larger `target_epsilon`."
                )
                raise ValueError(msg)
        self._account.charge(charge)

    # ---- what it guards

    def check_site(self, site: str, network: Any, train: Any, n_validation: int, options: Mapping[str, Any]) -> None:
        """Refuse what the guarantee would not hold for.

        Parameters
        ----------
        site
            Name of the site.
        network
            Network to train.
        train
            Rows to train on.
        n_validation
            Number of rows to validate on.
        options
            Options of the loss.

        Raises
        ------
        ValueError
            If rows mix in the features, the network or the loss, groups are missing, or validation is not covered.
        """
        check_rows(train, network, options)
        if n_validation and not self.unnoised_validation:
            msg = (
                f"Expected no validation rows, found {n_validation} at site '{site}': their metrics leave the site "
                "without noise. Train with `validation_size=0`, or allow it with `SampleDP(unnoised_validation=True)`, "
                "which guards the training rows only."
            )
            raise ValueError(msg)
        n_units = int(self._unit_of_rows(train).max(initial=-1)) + 1
        if self.delta * n_units >= 1:
            msg = (
                f"Expected `delta` below one over the {n_units} units of site '{site}', found {self.delta:g}: it "
                "would allow to show one of them whole. Lower `delta`."
            )
            raise ValueError(msg)

    def _unit_of_rows(self, train: Any) -> np.ndarray:
        """Number of the unit of every row, from 0."""
        if self.unit == "row" or (self.unit is None and train.groups is None):
            return np.arange(len(train))
        if train.groups is None:
            msg = (
                "Expected groups to guard as a whole, found none. Name their column with "
                "`setup_anndata(..., group_key=)`, or guard rows with `SampleDP(unit='row')`."
            )
            raise ValueError(msg)
        return np.unique(train.groups, return_inverse=True)[1]

    def release_sums(
        self, site: str, matrix: Any, rows: Sequence[np.ndarray], *, spend: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Release the noisy sum and number of the cells of disjoint sets; a run that is resumed releases the same.

        Parameters
        ----------
        site
            Name of the site.
        matrix
            Cells × genes.
        rows
            Cells of each set.
        spend
            Charge the account; only what never leaves this process is free.
        """
        noise_multiplier = self.noise_multiplier
        if noise_multiplier is None:
            noise_multiplier = gaussian_noise_multiplier(float(self.target_epsilon or 0), self.delta)
        options = {"max_norm": self.max_norm, "noise_multiplier": noise_multiplier}
        journal = self._account.journal if spend else None
        file = f"noise-{hashlib.sha256(site.encode()).hexdigest()[:16]}"
        if journal is not None and (kept := journal.load(file)) is not None:
            sums, numbers = (kept[0]["noisy"][name] for name in ("sums", "numbers"))
            if kept[1] == options and sums.shape == (len(rows), matrix.shape[1]):
                return sums, numbers
        if spend:
            self._spend(Charge(site, noise_multiplier))
        sums, numbers = noisy_sums(matrix, rows, **options)
        if journal is not None:
            journal.save({"noisy": {"sums": sums, "numbers": numbers}}, options, file)
        return sums, numbers

    # ---- local training

    def batches(self, site: str, train: Any, batch_size: int, epochs: int) -> Iterator[PoissonBatch]:
        """Charge a round and draw its batches: every unit by itself, in every step.

        Parameters
        ----------
        site
            Name of the site.
        train
            Rows to train on.
        batch_size
            Units that a step draws on average.
        epochs
            Times that a unit is drawn on average.
        """
        unit = self._unit_of_rows(train)
        self._account.unit = "row" if self.unit == "row" or train.groups is None else "group"
        n_units = int(unit.max()) + 1
        rate = min(1.0, batch_size / n_units)
        n_steps = epochs * max(1, round(1 / rate))
        noise_multiplier = self._noise_multiplier(rate, n_steps)
        self._spend(Charge(site, noise_multiplier, rate, n_steps, self._account.unit))
        for _ in range(n_steps):
            drawn = uniform_numbers(n_units) < rate
            rows = np.flatnonzero(drawn[unit])
            x, *codes = train.take(torch.from_numpy(rows))
            yield PoissonBatch(x, tuple(codes), unit[rows], rate * n_units, noise_multiplier)

    def _noise_multiplier(self, rate: float, n_steps: int) -> float:
        if self.noise_multiplier is not None:
            return self.noise_multiplier
        if self._n_rounds is None or self.target_epsilon is None:
            msg = "Expected the number of rounds to be planned, found none. Call `open_account` first."
            raise RuntimeError(msg)
        return subsampled_noise_multiplier(self.target_epsilon, self.delta, rate, n_steps * self._n_rounds)

    def on_step(self, network: nn.Module, batch: PoissonBatch) -> float:
        """Put the noisy gradient of one step into the network; the loss is not reported.

        Parameters
        ----------
        network
            Network with ``loss((x, *codes))``.
        batch
            What :meth:`batches` drew; without any unit the step is noise alone.
        """
        with torch.random.fork_rng(devices=[batch.x.device] if batch.x.is_cuda else []):
            torch.manual_seed(int.from_bytes(os.urandom(8), "little", signed=True))  # dropout
            total = clipped_sum(network, (batch.x, *batch.codes), batch.unit, self.max_norm)
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                noise = gaussian_noise(tuple(parameter.shape), batch.noise_multiplier * self.max_norm)
                parameter.grad = (total[name] + torch.from_numpy(noise).to(total[name])) / batch.n_expected
        return math.nan

    def __repr__(self) -> str:
        noise = "noise_multiplier" if self.noise_multiplier is not None else "target_epsilon"
        return (
            f"SampleDP({noise}={getattr(self, noise):g}, max_norm={self.max_norm:g}, delta={self.delta:g}, "
            f"unit={self.unit!r})"
        )
