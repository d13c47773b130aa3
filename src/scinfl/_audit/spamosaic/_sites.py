"""What sites send of their spots: the first layer of an encoder, and sums before training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from scinfl._audit._attack_target import CPU, draw_again
from scinfl._audit._findings import finding
from scinfl._audit._ratings import rated
from scinfl._audit._recorder import read_arrays, received_before_training
from scinfl._audit._simulated_site import MASKED, Sent, SimulatedSite, read, readers
from scinfl._audit.spamosaic._target import SpaMosaicTarget
from scinfl.federation import Protection
from scinfl.model.spamosaic import MosaicBatches
from scinfl.privacy import attacks

_FAMILY = "reconstruction"
_SMALLEST_SITE = 10
_MOST_UNMIXED = 16  # independent components beyond which the search only takes time


class Sites:
    """Sites that train a network of tissue on their spots."""

    def __init__(self, target: SpaMosaicTarget, modality: str) -> None:
        self.target, self.modality = target, modality

    @property
    def layer(self) -> str:
        """Name of the layer that reads the modality."""
        return f"encoders.{self.modality}.0"

    def sender(self, *, fresh: bool) -> SimulatedSite:
        """A site that holds the network, trained or as it was before the first round; dropout is off."""
        network = self.target.site_network()
        if fresh:
            draw_again(network, self.target.rng)
        return SimulatedSite(network.eval(), self.target)

    @property
    def options(self) -> dict[str, Any]:
        """Options of the loss."""
        names = ("graph_weight", "contrast_weight", "temperature")
        return {name: self.target.training[name] for name in names}

    def drawn(self, size: int, trial: int) -> np.ndarray:
        """Spots of one section that measured the modality, as rows of it; the same for all attackers."""
        generator = np.random.default_rng([self.target.rng, size, trial])
        section = self.target.train[self.modality].section
        own = np.flatnonzero(section == generator.choice(np.unique(section)))
        return generator.choice(own, min(size, len(own)), replace=False)

    def batches(self, rows: np.ndarray) -> MosaicBatches:
        """Some spots of the modality with all that was measured of them."""
        return MosaicBatches(self.target.tensors, self.target.train[self.modality].rows[rows], CPU)

    def step(self, sender: SimulatedSite, rows: np.ndarray) -> Sent:
        """One step of gradient descent on some spots of a section."""
        batch = next(iter(self.batches(rows).batches(1 << 20)))
        return sender.gradient(lambda network: network.loss(batch, **self.options))

    def round(self, sender: SimulatedSite, rows: np.ndarray) -> Sent:
        """A real local round on some spots."""
        return sender.local_round(
            self.batches(rows),
            loss_options=self.options,
            optimizer="adam",
            decay_rounds=self.target.training["n_rounds"],
        )


def first_layer(
    target: SpaMosaicTarget, modality: str, *, n_spots: int, n_batches: int, batch_sizes: Sequence[int]
) -> list[dict[str, Any]]:
    """Read spots off the layer that reads them: one, batches, a whole section, and a local round."""
    sites, rows = Sites(target, modality), list[dict[str, Any]]()
    largest = int(np.unique(target.train[modality].section, return_counts=True)[1].max())
    for fresh, when in ((True, "first round"), (False, "last round")):
        sender = sites.sender(fresh=fresh)
        if f"{sites.layer}.weight" not in sender.shared:
            return []
        sizes = [("one step on 1 spot", 1, n_spots, sites.step)]
        if fresh:
            sizes += [(f"one step on {size} spots", size, n_batches, sites.step) for size in batch_sizes]
            sizes.append(("one step on a whole section", largest, max(1, n_batches // 4), sites.step))
            sizes.append((f"local round of a site of {_SMALLEST_SITE} spots", _SMALLEST_SITE, n_batches, sites.round))
        for words, size, n_trials, send in sizes:
            sent = []
            for trial in range(n_trials):
                chosen = sites.drawn(size, trial)
                sent.append((chosen, send(sender, chosen)))
            for adversary, uploads, what in readers(target):
                knows = what == "opened" or target.keeps_order
                setting = f"{words}, {when}"
                rows += _read_spots(sites, sent, adversary, uploads, what, setting, knows=knows)
    return rows


def _read_spots(
    sites: Sites,
    sent: Sequence[tuple[np.ndarray, Sent]],
    adversary: str,
    uploads: str,
    what: str,
    setting: str,
    *,
    knows: bool,
) -> list[dict[str, Any]]:
    target, modality = sites.target, sites.modality
    train, public = target.train[modality], target.public[modality]
    attack = "first layer" if modality == "X" else f"first layer of '{modality}'"
    inputs, features = [], []
    for chosen, update in sent:
        change = read(update, what, target)
        weight, bias = change[f"{sites.layer}.weight"], change[f"{sites.layer}.bias"]
        n = min(len(chosen), _MOST_UNMIXED, *weight.shape)
        n_restarts = 4 if n == len(chosen) else 1  # of many spots no single one can be unmixed
        found = attacks.recover_inputs(weight, bias, n, n_restarts=n_restarts, rng=target.rng)
        blank = np.zeros((len(chosen) - n, found.shape[1]))
        inputs.append((train.inputs[torch.from_numpy(chosen)].numpy(), np.vstack([found, blank])))
        if knows and what != "masked":
            blank = np.zeros((len(chosen) - n, train.features.shape[1]))
            features.append((train.features[chosen], np.vstack([target.features(modality, found), blank])))
    judge = partial(rated, _FAMILY, adversary, uploads=uploads, setting=setting, nearest=True, rng=target.rng)
    rows = judge(attack, inputs, public.inputs.numpy(), what="spot")
    if features:
        more = ("pearson", "top_features", "reidentified")
        rows += judge(f"{attack}, then features", features, public.features, what="spot", metrics=more)
    return rows


def prepared(target: SpaMosaicTarget, modality: str) -> list[dict[str, Any]]:
    """Read the sums that sites send before training: the mean spot of a site, beyond that of public spots."""
    own = target.measured[modality]
    names = sorted(set(own.site))
    if len(names) < 2:
        return []

    def prepare(protections: Sequence[Protection]) -> None:
        target.view.fitted(own, key=target.key, protections=protections, rng=target.training["rng"])

    public = target.public[modality].features.mean(0)
    features = target.train[modality].features
    true = {name: features[own.site == name].mean(0) - public for name in names}
    attack = "sums before training" if modality == "X" else f"sums before training, '{modality}'"
    rows = []
    for adversary, uploads, received in received_before_training(prepare, target.key):
        of = "" if own.modality is None else f"{own.modality}: "
        uploads_of = received.get(f"{of}moments of features") or received[f"{of}mean of features"]
        known = np.zeros_like(public) if uploads == MASKED else public  # noise less a mean would look like that mean
        found = {name: read_arrays(state, {"sum": public.shape})["sum"] - known for name, state in uploads_of.items()}
        rows.append(
            finding(
                "mean spot of a site",
                adversary,
                attack,
                "Pearson of what sets the site apart",
                [float(np.corrcoef(found[name], true[name])[0, 1]) for name in names],
                0.0,
                baseline_name="mean public spot",
                uploads=uploads,
                setting=f"{len(names)} sites",
                margin=max(0.05, 2 / np.sqrt(len(public))),  # correlations of noise are that large
            )
        )
    return rows
