"""A trained model of tissue under attack, and who has which spots."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from scinfl._audit._attack_target import AttackTarget
from scinfl.model import SpaMosaic
from scinfl.model.spamosaic import Data, Measured, MosaicBatches, SpaMosaicView, SpotTensors, column_of
from scinfl.module import SpaMosaicModule
from scinfl.privacy import Key

_VOTERS = 10


@dataclass(frozen=True)
class Spots:
    """Spots that one modality measured."""

    inputs: Tensor  # what the network reads (spots × inputs)
    features: np.ndarray  # normalised (spots × features)
    section: np.ndarray
    rows: np.ndarray  # in the data
    labels: Mapping[str, np.ndarray]  # values of columns that an attacker might want to infer

    @classmethod
    def of(cls, view: SpaMosaicView, data: Data, attributes: Sequence[str]) -> dict[str, Spots]:
        """Spots of all modalities of some data."""
        columns = {name: column_of(data, name, "attributes") for name in attributes}
        found = {}
        for modality, own in view.measured(data).items():
            tensors = view.tensors(modality, own, data.n_obs)
            features = view.bases[modality].normalised(own, np.arange(len(own.rows)))
            labels = {name: values[own.rows] for name, values in columns.items()}
            found[modality] = cls(tensors.inputs, features, own.section, own.rows, labels)
        return found

    def take(self, chosen: np.ndarray) -> Spots:
        """Some of the spots."""
        labels = {name: values[chosen] for name, values in self.labels.items()}
        inputs = self.inputs[torch.from_numpy(chosen)]
        return Spots(inputs, self.features[chosen], self.section[chosen], self.rows[chosen], labels)

    def __len__(self) -> int:
        return len(self.rows)


class Predictor(nn.Module):
    """Network of tissue that reads one modality, as attackers of any network give it."""

    def __init__(self, network: SpaMosaicModule, modality: str) -> None:
        super().__init__()
        self.network, self.modality = network, modality

    def forward(self, x: Tensor) -> Tensor:
        """Embedding (spots × n_outputs of all modalities)."""
        return self.network.embed({self.modality: x})


@dataclass
class SpaMosaicTarget(AttackTarget):
    """Model under attack, unlocked, with the spots of all parties, by modality."""

    model: SpaMosaic
    key: Key | None
    measured: Mapping[str, Measured]  # what it was trained on
    tensors: Mapping[str, SpotTensors]  # what the network had to reconstruct of it
    parts: Mapping[str, tuple[MosaicBatches, MosaicBatches]]  # spots of each site to train on, and to validate with
    train: Mapping[str, Spots]
    public: Mapping[str, Spots]  # spots of the attacker
    test: Mapping[str, Spots]  # spots that attackers are judged by
    training: Mapping[str, Any]  # arguments of ``train``
    rng: int  # seed of all that is drawn

    @classmethod
    def of(
        cls,
        model: SpaMosaic,
        key: Key | None,
        data: Data,
        held_out: Data,
        training: Mapping[str, Any],
        attributes: Sequence[str],
        rng: int,
    ) -> SpaMosaicTarget:
        """Deal the spots out; what the network had to reconstruct is found again, from sums in the open."""
        view = SpaMosaicView(model)
        measured, tensors, parts = view.training_data(data, training)
        public, test = _dealt(Spots.of(view, held_out, attributes), rng)
        train = Spots.of(view, data, attributes)
        return cls(model, key, measured, tensors, parts, train, public, test, training, rng)

    @cached_property
    def view(self) -> SpaMosaicView:
        """What may be seen of the model."""
        return SpaMosaicView(self.model)

    @property
    def modalities(self) -> list[str]:
        """Modalities that held-out sections measured."""
        return [name for name in self.train if name in self.public]

    def predictor(self, modality: str) -> Predictor:
        """The network with its key, for attackers of any network."""
        return Predictor(self.model.module, modality)

    def untrained(self, modality: str, rng: int) -> Predictor:
        """A plain network of the same shape with random weights, on the same features."""
        return Predictor(self.view.untrained(rng), modality)

    def neighbourhood(self, predictor: nn.Module, modality: str) -> float:
        """Correlation of what a network predicts of unseen spots and their neighbourhood, see :func:`fit_of`."""
        return fit_of(self.view, predictor, modality, self.test[modality])

    def transfer(self, predictor: nn.Module, modality: str, column: str) -> float:
        """Macro F1 of labels of unseen spots that their nearest training spots in the embedding vote for."""
        train, test = self.train[modality], self.test[modality]
        with torch.inference_mode():
            own, other = (predictor.eval()(spots.inputs).numpy() for spots in (train, test))
        voters = KNeighborsClassifier(min(_VOTERS, len(own))).fit(own, train.labels[column])
        truth = test.labels[column]
        guess = voters.predict(other)
        return float(f1_score(truth, guess, labels=np.unique(truth), average="macro", zero_division=0))

    def accuracy(self, network: nn.Module, modality: str, column: str, levels: Sequence[str]) -> float:
        """Balanced accuracy of a network that predicts a column of unseen spots."""
        truth = self.test[modality].labels[column]
        with torch.inference_mode():
            guess = np.asarray(levels)[network.eval()(self.test[modality].inputs).argmax(1).numpy()]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a label that is guessed and not there is wrong
            return float(balanced_accuracy_score(truth, guess))

    def features(self, modality: str, inputs: np.ndarray) -> np.ndarray:
        """Normalised features behind inputs, for an attacker who knows what the sites agreed on."""
        basis = self.view.bases[modality]
        n_directions = len(basis.strength)
        directions = inputs[:, :n_directions] * basis.scale[:n_directions]
        scores = directions @ np.linalg.pinv(basis.rotation)
        return (scores @ basis.components.T + basis.mean) * basis.deviation


def fit_of(view: SpaMosaicView, predictor: nn.Module, modality: str, spots: Spots) -> float:
    """Correlation of what a network predicts of spots and their neighbourhood, over all components."""
    columns = view.columns(modality)
    around = view.bases[modality].neighbourhoods(spots.inputs.numpy())
    with torch.inference_mode():
        predicted = predictor.eval()(spots.inputs)[:, columns].numpy()
    predicted, around = (x - x.mean(0) for x in (predicted, around[:, : predicted.shape[1]]))
    return float((predicted * around).sum() / max(np.linalg.norm(predicted) * np.linalg.norm(around), 1e-12))


def _dealt(spots: Mapping[str, Spots], rng: int) -> tuple[dict[str, Spots], dict[str, Spots]]:
    """Spots of the attacker and others: by section where there are several, else at random."""
    generator = np.random.default_rng(rng)
    sections = np.unique(np.concatenate([own.section for own in spots.values()]))
    own_sections = generator.permutation(sections)[: len(sections) // 2]
    rows = np.unique(np.concatenate([own.rows for own in spots.values()]))
    own_rows = generator.permutation(rows)[: len(rows) // 2]
    parts: tuple[dict[str, Spots], dict[str, Spots]] = ({}, {})
    for modality, own in spots.items():
        mine = np.isin(own.section, own_sections)
        if len(sections) < 2 or mine.all() or not mine.any():
            mine = np.isin(own.rows, own_rows)
        for part, chosen in zip(parts, (mine, ~mine), strict=True):
            part[modality] = own.take(np.flatnonzero(chosen))
    return parts
