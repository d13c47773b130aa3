"""Attacks on a model of tissue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest
from torch import nn

from scinfl._audit import _without_key as without_key
from scinfl._audit._findings import finding
from scinfl._audit._plan import Job, Plan, Request
from scinfl._audit._settings import said_of
from scinfl._audit.classifier._membership import rate_membership
from scinfl._audit.spamosaic import _sites as spots
from scinfl._audit.spamosaic._sections import can_spare, chosen_sections, part_of, twin_of
from scinfl._audit.spamosaic._target import Predictor, SpaMosaicTarget, Spots, fit_of
from scinfl.model import SpaMosaic
from scinfl.model.spamosaic._batches import MosaicBatches
from scinfl.model.spamosaic._spots import column_of
from scinfl.privacy.attacks._without_key import Score

_FIT = "Pearson with the neighbourhood"
_FEWEST_ASIDE = 20


@dataclass(frozen=True)
class _Effort:
    """How much of each attack."""

    n_spots: int
    n_batches: int
    batch_sizes: tuple[int, ...]
    n_keys: int
    n_untrained: int
    samples: tuple[int, ...]
    n_thief_seeds: int
    n_thief_steps: int
    n_sections: int


_FULL = _Effort(40, 8, (4, 16), 50, 50, (50, 200), 3, 600, 6)
_QUICK = _Effort(12, 3, (4,), 10, 10, (50,), 1, 200, 0)


def plan(request: Request, after_each: Callable[[], object]) -> Plan:
    """What attackers of a model of tissue do; the model is unlocked."""
    effort = _QUICK if request.quick else _FULL
    model, data, held_out = request.model, request.data, request.held_out
    if held_out is None:
        section = column_of(data, model._setup_args()["section_key"], "section_key")
        aside = np.isin(section, chosen_sections(model, data, request.rng))
        data, held_out = part_of(data, ~aside), part_of(data, aside)
        model = twin_of(model, data, request.key, request.training)
    target = SpaMosaicTarget.of(model, request.key, data, held_out, request.training, request.attributes, request.rng)
    jobs = _jobs(target, effort, request.attributes)
    names = _left_out(request)[: effort.n_sections] if effort.n_sections else []
    if len(names) > 1:
        jobs["membership of sections"] = partial(sections, request, names, after_each)
    return Plan(
        jobs,
        _said(target, request),
        partial(_left_open, target, request.attributes, quick=request.quick),
        len(names) if len(names) > 1 else 0,
    )


def _jobs(target: SpaMosaicTarget, effort: _Effort, attributes: Any) -> dict[str, Job]:
    jobs: dict[str, Job] = {}
    for modality in target.modalities:
        named = "" if modality == "X" else f" of {modality}"
        jobs[f"sums before training{named}"] = partial(spots.prepared, target, modality)
        jobs[f"first layer{named}"] = partial(
            spots.first_layer,
            target,
            modality,
            n_spots=effort.n_spots,
            n_batches=effort.n_batches,
            batch_sizes=effort.batch_sizes,
        )
        jobs[f"wrong keys{named}"] = partial(use, target, modality, attributes, effort)
        for n in effort.samples if target.is_keyed else ():
            for column in attributes:
                jobs[f"thief, {n}, {column}{named}"] = partial(steal, target, modality, column, n, effort)
        jobs[f"membership{named}"] = partial(membership, target, modality)
    return jobs


def use(target: SpaMosaicTarget, modality: str, attributes: Any, effort: _Effort) -> list[dict[str, Any]]:
    """Use the network as it is, against untrained ones: what neighbours are alike is known from the input alone."""
    scores: dict[str, Score] = {_FIT: partial(target.neighbourhood, modality=modality)}
    for column in attributes:
        scores[f"label transfer of '{column}'"] = partial(target.transfer, modality=modality, column=column)
    rows = []
    for metric, score in scores.items():
        untrained = [score(target.untrained(modality, target.rng + seed)) for seed in range(effort.n_untrained)]
        rows += without_key.without_key(
            target.teller(modality),
            score,
            metric,
            {"untrained network": untrained},
            n_keys=effort.n_keys,
            is_keyed=target.is_keyed,
            setting="" if modality == "X" else modality,
        )
    return rows


def steal(target: SpaMosaicTarget, modality: str, column: str, n: int, effort: _Effort) -> list[dict[str, Any]]:
    """Attack with labelled spots: an encoder with a layer behind it that tells the label."""
    public = target.public[modality]
    levels = np.unique(public.labels[column])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(target.rng)
        head = nn.Linear(target.model._network_options["n_latent"], len(levels))
    encoder = target.model.module.encoders[modality]
    n = min(n, len(public))

    def draw(seed: int) -> tuple[torch.Tensor, torch.Tensor, Score]:
        own = public.take(np.random.default_rng(seed).permutation(len(public))[:n])
        y = torch.from_numpy(np.searchsorted(levels, own.labels[column]))
        return own.inputs, y, partial(target.accuracy, modality=modality, column=column, levels=levels.tolist())

    return without_key.with_samples(
        nn.Sequential(encoder, head),
        draw,
        f"balanced accuracy for '{column}'",
        f"{n} labelled spots" if modality == "X" else f"{n} labelled spots, {modality}",
        n_seeds=effort.n_thief_seeds,
        rng=target.rng,
        n_steps=effort.n_thief_steps,
    )


def membership(target: SpaMosaicTarget, modality: str) -> list[dict[str, Any]]:
    """Tell spots that were trained on from those set aside in the same sections, by the error of what is told."""
    rows = []
    parts = [_rows_of(target, modality, number) for number in (0, 1)]
    if len(parts[1]) < _FEWEST_ASIDE:
        return []
    own = target.tensors[modality]
    chosen = own.place[torch.from_numpy(np.concatenate(parts))]
    inputs, truth = own.inputs[chosen], own.target[chosen]  # type: ignore[index]
    member = np.arange(len(chosen)) < len(parts[0])
    networks: list[tuple[str, Any, str]] = [("fellow site" if target.is_keyed else "thief", target.network, "")]
    if target.is_keyed:
        networks.insert(0, ("thief", target.stripped, "no key"))
    for adversary, network, words in networks:
        with torch.inference_mode():
            told = network.eval().decoders[modality](network.encoders[modality](inputs))
        error = (told - truth).square().mean(1).numpy()
        setting = ", ".join(part for part in ("" if modality == "X" else modality, words) if part)
        rows += rate_membership(-error, member, adversary, "error of a spot", target.rng, setting)
    return rows


def _rows_of(target: SpaMosaicTarget, modality: str, number: int) -> np.ndarray:
    """Spots of all sites to train on (0) or set aside (1) that measured a modality."""
    batches: list[MosaicBatches] = [parts[number] for parts in target.parts.values()]
    return np.intersect1d(np.concatenate([part.rows for part in batches]), target.train[modality].rows)


def _left_out(request: Request) -> list[str]:
    """Sections that can be left out one by one."""
    model, data = request.model, request.data
    section = column_of(data, model._setup_args()["section_key"], "section_key")
    names = np.random.default_rng(request.rng).permutation(np.unique(section))
    return [str(name) for name in names if can_spare(model, data, section, [name])]


def sections(request: Request, names: list[str], after_each: Callable[[], object]) -> list[dict[str, Any]]:
    """Tell which of several models, each without another section, was not trained on a section: that fits it least."""
    data, is_keyed = request.data, request.key is not None
    section = column_of(data, request.model._setup_args()["section_key"], "section_key")
    found: dict[str, list[list[float]]] = {"stripped": [], "holder": []}
    for left_out in names:
        twin = twin_of(request.model, part_of(data, section != left_out), request.key, request.training)
        told = {name: Spots.of(twin, part_of(data, section == name), ()) for name in names}
        networks = {"holder": twin.module, **({"stripped": twin.stripped().module} if is_keyed else {})}
        for who, network in networks.items():
            found[who].append([_mean_fit(twin, network, told[name]) for name in names])
        after_each()
    rows = []
    for who, adversary in (("stripped", "thief"), ("holder", "fellow site" if is_keyed else "thief")):
        if not found[who]:
            continue
        fits = np.array(found[who])  # models × sections
        hits = int((fits.argmin(0) == np.arange(len(names))).sum())
        interval = binomtest(hits, len(names)).proportion_ci(0.95, method="exact")
        rows.append(
            finding(
                "membership",
                adversary,
                "fit of a section",
                "sections told",
                hits / len(names),
                1 / len(names),
                baseline_name="chance",
                setting="no key" if who == "stripped" else "",
                interval=(interval.low, interval.high),
            )
        )
    return rows


def _mean_fit(twin: SpaMosaic, network: Any, told: dict[str, Spots]) -> float:
    return float(np.mean([fit_of(twin, Predictor(network, modality), modality, own) for modality, own in told.items()]))


def _said(target: SpaMosaicTarget, request: Request) -> dict[str, Any]:
    first = target.modalities[0]
    fits = {name: target.neighbourhood(target.teller(name), name) for name in target.modalities}
    transfers = {
        f"label_transfer_{column}": target.transfer(target.teller(first), first, column)
        for column in request.attributes
    }
    n_train, n_sites = sum(len(train) for train, _ in target.parts.values()), len(target.parts)
    told = "".join(f" {name.replace('_', ' ', 2)} {value:.3f}." for name, value in transfers.items())
    words = ", ".join(f"{value:.3f}" if name == "X" else f"{name} {value:.3f}" for name, value in fits.items())
    return {
        "summary": (
            f"Trained on {n_train} spots of {n_sites} sites. Pearson of what is told of unseen sections and their "
            f"neighbourhoods {words}.{told}"
        ),
        "attacked": "a twin trained without some sections" if request.held_out is None else "the model itself",
        "n_train": n_train,
        "n_public": max(len(own) for own in target.public.values()),
        "n_test": max(len(own) for own in target.test.values()),
        "n_sites": n_sites,
        **{f"fit_{name}": value for name, value in fits.items()},
        **transfers,
        **said_of(target, quick=request.quick, training=request.training),
    }


def _left_open(target: SpaMosaicTarget, attributes: Any, table: pd.DataFrame, *, quick: bool) -> list[str]:
    left_out = [
        "The lock guards no clustering: clusters live in the input, and the untrained networks beside it keep them.",
        "Spots set aside count as outside, though components and neighbourhoods have seen them.",
        "Covariances and prototypes, which sites add before training: in the open they tell about spots.",
        "Matching the order of the inputs by watching many rounds, and crafted weights.",
        "What a fellow site unmixes of the sum of the other sites; with two sites it is the other's update.",
        "Other tissue for the attacker: where one section is held out, his spots lie beside those he is judged by.",
        "Uploads under pairwise or homomorphic sums; keyed sums stand for them, but for a site that betrays its key.",
        "An outsider where uploads are in the open: without encrypted connections he reads what the server reads.",
        "Attackers with more spots, more time, or other public data than here.",
    ]
    if quick:
        left_out.insert(0, "Membership of whole sections, and more than a few trials of each attack (`quick=True`).")
    elif not table["attack"].eq("fit of a section").any():
        left_out.insert(0, "Membership of whole sections: none can be left out, or a single one.")
    if not table["attack"].eq("error of a spot").any():
        left_out.insert(0, f"Membership of spots: fewer than {_FEWEST_ASIDE} were set aside (`validation_size`).")
    if not attributes:
        left_out.insert(0, "Thieves with labelled spots, and label transfer: name columns in `attributes`.")
    missing = [name for name in target.train if name not in target.public]
    if missing:
        left_out.insert(0, f"Modalities that no held-out section measured: {', '.join(missing)}.")
    if not target.is_keyed:
        left_out.insert(0, "Thieves: without a key they have the model as it is.")
    if not target.keeps_order and not target.hides_updates:
        left_out.insert(0, "What whoever has the key reads off the first layer of a trained meta learner.")
    if not table["family"].eq("reconstruction").any():
        left_out.insert(0, "The first layer: the share rule keeps it at the sites.")
    return left_out
