"""A trained model of scvi-tools under attack, and who has which cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from scinfl._audit._attack_target import AttackTarget
from scinfl._audit._settings import check_names
from scinfl._checks import obs_column
from scinfl.model.scvi import CountCells, ScviModel, ScviNetwork, ScviTraining, ScviView
from scinfl.privacy import Key

_VOTERS = 10
_FEWEST = 20
_GAIN_OF_NOTHING = -1.0  # no gain is called less


def check_scvi(data: AnnData, model: ScviModel, held_out: AnnData | None, attributes: Sequence[str]) -> None:
    """Refuse data that the attacks cannot use."""
    check_names(data, held_out)
    view = ScviView(model)
    if held_out is not None and (model.adata is None or model.adata.n_obs != data.n_obs):
        msg = "Expected the model with the cells that it was trained on, found others. Load it with them, or train it."
        raise ValueError(msg)
    for cells in (data, held_out):
        if cells is None:
            continue
        view.check_features(cells)
        for name in attributes:
            obs_column(cells, name, "attributes")
    if held_out is not None and held_out.n_obs < 2 * _FEWEST:
        msg = f"Expected at least {2 * _FEWEST} held-out cells, found {held_out.n_obs}. Hold out more."
        raise ValueError(msg)


@dataclass
class ScviTarget(AttackTarget):
    """Model under attack, unlocked, with the cells of all parties."""

    model: ScviModel
    key: Key | None
    train: CountCells  # cells of all sites that were trained on
    aside: CountCells  # cells of all sites that chose the best round
    public: CountCells  # cells of the attacker, whose labels and sites it does not know
    test: CountCells  # cells that attackers are judged by
    columns: Mapping[str, tuple[np.ndarray, np.ndarray]]  # values of columns for train and test
    training: Mapping[str, Any]
    rng: int

    @classmethod
    def of(
        cls,
        model: ScviModel,
        key: Key | None,
        data: AnnData,
        held_out: AnnData,
        training: Mapping[str, Any],
        attributes: Sequence[str],
        rng: int,
    ) -> ScviTarget:
        """Deal the cells out."""
        view = ScviView(model)
        train, aside = view.training_cells(training, key)
        other = view.cells(held_out)
        order = np.random.default_rng(rng).permutation(len(other))
        mine, rest = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
        columns = {
            name: tuple(
                obs_column(cells, name, "attributes").astype(str).to_numpy()[rows]
                for cells, rows in ((data, train.rows), (held_out, rest))
            )
            for name in attributes
        }
        return cls(model, key, train, aside, other.part(mine), other.part(rest), columns, training, rng)

    @cached_property
    def view(self) -> ScviView:
        """What may be seen of the model."""
        return ScviView(self.model)

    def untrained(self, seed: int) -> ScviNetwork:
        """A plain network of the same shape with initial weights."""
        return self.view.untrained(self.rng + seed)

    # ---- scores of a network, with the key that it has or none

    def loss(self, network: nn.Module) -> float:
        """Negative evidence lower bound per test cell."""
        return float(np.mean(self.losses(network, self.test)))

    def losses(self, network: nn.Module, cells: CountCells) -> np.ndarray:
        """Negative evidence lower bound of each cell, with latent samples that are always the same."""
        found = self._computed(network, cells, "losses")
        return np.full(len(cells), np.inf) if found is None else found

    def _computed(self, network: nn.Module, cells: CountCells, what: str) -> np.ndarray | None:
        """What a network computes of cells; a wrong key can leave numbers that are no parameters of a distribution."""
        compute = getattr(self.view.plain(network).eval(), what)
        try:
            with torch.no_grad():
                return torch.cat([compute(batch) for batch in cells.batches(4096)]).double().numpy()
        except (ValueError, RuntimeError):
            return None

    @cached_property
    def scale(self) -> tuple[float, float]:
        """Loss of untrained networks, and of the model with its key."""
        untrained = float(np.mean([self.loss(self.untrained(seed)) for seed in range(5)]))
        return untrained, self.loss(self.network)

    def gain(self, network: nn.Module) -> float:
        """Share of what training gains in the evidence lower bound: 0 of untrained networks, 1 of the model."""
        untrained, right = self.scale
        found = (untrained - self.loss(network)) / max(untrained - right, 1e-9)
        return max(found, _GAIN_OF_NOTHING) if np.isfinite(found) else _GAIN_OF_NOTHING

    def contrasts(self, network: nn.Module) -> float:
        """Correlation, over test cells and features, of expected and observed shares of counts about their means."""
        expected = self._computed(network, self.test, "expected")
        if expected is None:
            return 0.0
        observed = torch.cat([batch[0] for batch in self.test.batches(4096)]).numpy()[:, : expected.shape[1]]
        shares = [np.nan_to_num(_log_shares(values)) for values in (expected, observed)]
        with np.errstate(invalid="ignore", divide="ignore"):  # a network without its key may say the same of all cells
            return float(np.nan_to_num(np.corrcoef(*[(own - own.mean(0)).ravel() for own in shares])[0, 1]))

    def transfer(self, network: nn.Module, column: str) -> float:
        """Balanced accuracy of labels of test cells that their nearest training cells vote for."""
        found = [self._computed(network, cells, "latent") for cells in (self.train, self.test)]
        own, other = (
            np.zeros((len(cells), 1)) if codes is None else np.nan_to_num(codes)
            for codes, cells in zip(found, (self.train, self.test), strict=True)
        )
        known, truth = self.columns[column]
        voters = KNeighborsClassifier(min(_VOTERS, len(own))).fit(own, known)
        return float(balanced_accuracy_score(truth, voters.predict(other)))

    # ---- training of an attacker

    def gain_after(self, network: ScviNetwork, n: int, epochs: int, seed: int) -> float:
        """Gain of a network that an attacker trains further; the least where it cannot be trained."""
        try:
            return self.gain(self._trained_further(network, n, epochs, seed))
        except ValueError:
            return _GAIN_OF_NOTHING

    def _trained_further(self, network: ScviNetwork, n: int, epochs: int, seed: int) -> ScviNetwork:
        """A network after training on unlabelled cells of the attacker, as sites train.

        Raises
        ------
        ValueError
            If its numbers are no parameters of a distribution.
        """
        chosen = np.random.default_rng([self.rng, seed]).permutation(len(self.public))[:n]
        own = self.public.part(np.sort(chosen))
        lr, decay = float(self.training["lr"]), float(self.training["weight_decay"])
        training = ScviTraining(epochs, 32, lr, decay, seed)
        trained = [p for p in network.parameters() if p.requires_grad]
        optimizer, shuffle = training.make_optimizer(trained), torch.Generator().manual_seed(seed)
        network.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for _ in range(epochs):
                for batch in own.batches(32, shuffle):
                    optimizer.zero_grad()
                    network.loss(batch).backward()
                    nn.utils.clip_grad_norm_(trained, 100.0)  # stolen weights start with huge gradients
                    optimizer.step()
        return network


def _log_shares(values: np.ndarray) -> np.ndarray:
    return np.log1p(1e4 * values / np.maximum(values.sum(1, keepdims=True), 1e-9))
