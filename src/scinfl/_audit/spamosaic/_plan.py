"""Plan of the attacks on a model of spatial sections."""

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
from torch.nn import functional as F

from scinfl._audit import _alignment as alignment
from scinfl._audit import _model_stealing as model_stealing
from scinfl._audit._alignment import AlignmentEffort
from scinfl._audit._findings import CURIOUS, STEALING, finding
from scinfl._audit._plan import Job, Plan, Request
from scinfl._audit._ratings import rated_membership
from scinfl._audit._settings import common_limits, run_parameters
from scinfl._audit.spamosaic import _sites as spots
from scinfl._audit.spamosaic._sections import can_spare, chosen_sections, part_of, trained_twin
from scinfl._audit.spamosaic._target import Predictor, SpaMosaicTarget, Spots, fit_of
from scinfl.model.spamosaic import MosaicBatches, SpaMosaicView
from scinfl.privacy.attacks import Score

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
    n_attackers: int
    n_attack_steps: int
    n_sections: int
    alignment: AlignmentEffort


_FULL = _Effort(40, 8, (4, 16), 50, 50, (50, 200), 3, 600, 6, AlignmentEffort(8, 1800, 20, 12_000_000))
_QUICK = _Effort(12, 3, (4,), 10, 10, (50,), 1, 200, 0, AlignmentEffort(2, 600, 4, 1_000_000))


def plan(request: Request, after_each: Callable[[], object]) -> Plan:
    """Attacks on a model of tissue, which is unlocked."""
    effort = _QUICK if request.quick else _FULL
    model, data, held_out = request.model, request.data, request.held_out
    if held_out is None:
        view = SpaMosaicView(model)
        aside = np.isin(view.sections(data), chosen_sections(view, data, request.rng))
        data, held_out = part_of(data, ~aside), part_of(data, aside)
        model = trained_twin(view, data, request.key, request.training)
    target = SpaMosaicTarget.of(model, request.key, data, held_out, request.training, request.attributes, request.rng)
    jobs = _jobs(target, effort, request.attributes)
    names = _left_out(request)[: effort.n_sections] if effort.n_sections else []
    if len(names) > 1:
        jobs["membership of sections"] = partial(sections, request, names, after_each)
    return Plan(
        jobs,
        _parameters(target, request),
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
                jobs[f"model stealing, {n} labelled spots, {column}{named}"] = partial(
                    steal, target, modality, column, n, effort
                )
        jobs[f"Gram alignment{named}"] = partial(align, target, modality, effort)
        jobs[f"membership{named}"] = partial(membership, target, modality)
    return jobs


def use(target: SpaMosaicTarget, modality: str, attributes: Any, effort: _Effort) -> list[dict[str, Any]]:
    """Use the network as it is, against untrained ones: similar neighbours are known from the input alone."""
    scores: dict[str, Score] = {_FIT: partial(target.neighbourhood, modality=modality)}
    for column in attributes:
        scores[f"label transfer of '{column}'"] = partial(target.transfer, modality=modality, column=column)
    rows = []
    for metric, score in scores.items():
        untrained = [score(target.untrained(modality, target.rng + seed)) for seed in range(effort.n_untrained)]
        rows += model_stealing.as_it_is(
            target.predictor(modality),
            score,
            metric,
            {"untrained network": untrained},
            n_keys=effort.n_keys,
            is_keyed=target.is_keyed,
            setting="" if modality == "X" else modality,
        )
    return rows


def steal(target: SpaMosaicTarget, modality: str, column: str, n: int, effort: _Effort) -> list[dict[str, Any]]:
    """Attack with labelled spots: an encoder with a layer behind it that predicts the label."""
    public = target.public[modality]
    levels = np.unique(public.labels[column])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(target.rng)
        head = nn.Linear(target.view.n_latent, len(levels))
    encoder = target.model.module.encoders[modality]
    n = min(n, len(public))

    def draw(seed: int) -> tuple[torch.Tensor, torch.Tensor, Score]:
        own = public.take(np.random.default_rng(seed).permutation(len(public))[:n])
        y = torch.from_numpy(np.searchsorted(levels, own.labels[column]))
        return own.inputs, y, partial(target.accuracy, modality=modality, column=column, levels=levels.tolist())

    return model_stealing.with_samples(
        nn.Sequential(encoder, head),
        draw,
        f"balanced accuracy for '{column}'",
        f"{n} labelled spots" if modality == "X" else f"{n} labelled spots, {modality}",
        n_seeds=effort.n_attackers,
        rng=target.rng,
        n_steps=effort.n_attack_steps,
    )


def align(target: SpaMosaicTarget, modality: str, effort: _Effort) -> list[dict[str, Any]]:
    """Align the layer that reads the components of a modality with networks that predict neighbourhoods of own spots.

    The attacker is given the components, which sites agree on and seal.
    """
    inputs, columns = target.public[modality].inputs, target.view.columns(modality)
    around = target.view.bases[modality].neighbourhoods(inputs.numpy())
    y = torch.from_numpy(around[:, : columns.stop - columns.start].astype(np.float32))

    def loss(predicted: torch.Tensor, neighbourhood: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(predicted[:, columns], neighbourhood)

    return alignment.align(
        target,
        f"encoders.{modality}.0",
        inputs,
        y,
        effort.alignment,
        reader=target.predictor(modality),
        loss=loss,
        words="" if modality == "X" else modality,
    )


def membership(target: SpaMosaicTarget, modality: str) -> list[dict[str, Any]]:
    """Separate spots that were trained on from those set aside in the same sections, by reconstruction error."""
    rows = []
    parts = [_rows_of(target, modality, number) for number in (0, 1)]
    if len(parts[1]) < _FEWEST_ASIDE:
        return []
    own = target.tensors[modality]
    chosen = own.place[torch.from_numpy(np.concatenate(parts))]
    inputs, truth = own.inputs[chosen], own.target[chosen]  # type: ignore[index]
    member = np.arange(len(chosen)) < len(parts[0])
    networks: list[tuple[str, Any, str]] = [(CURIOUS if target.is_keyed else STEALING, target.network, "")]
    if target.is_keyed:
        networks.insert(0, (STEALING, target.stripped, "no key"))
    for adversary, network, words in networks:
        with torch.inference_mode():
            predicted = network.eval().decoders[modality](network.encoders[modality](inputs))
        error = (predicted - truth).square().mean(1).numpy()
        setting = ", ".join(part for part in ("" if modality == "X" else modality, words) if part)
        rows += rated_membership(-error, member, adversary, "error of a spot", target.rng, setting)
    return rows


def _rows_of(target: SpaMosaicTarget, modality: str, number: int) -> np.ndarray:
    """Spots of all sites to train on (0) or set aside (1) that measured a modality."""
    batches: list[MosaicBatches] = [parts[number] for parts in target.parts.values()]
    return np.intersect1d(np.concatenate([part.rows for part in batches]), target.train[modality].rows)


def _left_out(request: Request) -> list[str]:
    """Sections that can be left out one by one."""
    view, data = SpaMosaicView(request.model), request.data
    section = view.sections(data)
    names = np.random.default_rng(request.rng).permutation(np.unique(section))
    return [str(name) for name in names if can_spare(view, data, section, [name])]


def sections(request: Request, names: list[str], after_each: Callable[[], object]) -> list[dict[str, Any]]:
    """Identify the section that each of several models was not trained on: the one that it fits least."""
    view, data, is_keyed = SpaMosaicView(request.model), request.data, request.key is not None
    section = view.sections(data)
    found: dict[str, list[list[float]]] = {"stripped": [], "holder": []}
    for left_out in names:
        twin = trained_twin(view, part_of(data, section != left_out), request.key, request.training)
        own = SpaMosaicView(twin)
        spots_of = {name: Spots.of(own, part_of(data, section == name), ()) for name in names}
        networks = {"holder": twin.module, **({"stripped": twin.stripped().module} if is_keyed else {})}
        for who, network in networks.items():
            found[who].append([_mean_fit(own, network, spots_of[name]) for name in names])
        after_each()
    rows = []
    for who, adversary in (("stripped", STEALING), ("holder", CURIOUS if is_keyed else STEALING)):
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
                "sections identified",
                hits / len(names),
                1 / len(names),
                baseline_name="chance",
                setting="no key" if who == "stripped" else "",
                interval=(interval.low, interval.high),
            )
        )
    return rows


def _mean_fit(view: SpaMosaicView, network: Any, by_modality: dict[str, Spots]) -> float:
    fits = [fit_of(view, Predictor(network, modality), modality, own) for modality, own in by_modality.items()]
    return float(np.mean(fits))


def _parameters(target: SpaMosaicTarget, request: Request) -> dict[str, Any]:
    first = target.modalities[0]
    fits = {name: target.neighbourhood(target.predictor(name), name) for name in target.modalities}
    transfers = {
        f"label_transfer_{column}": target.transfer(target.predictor(first), first, column)
        for column in request.attributes
    }
    n_train, n_sites = sum(len(train) for train, _ in target.parts.values()), len(target.parts)
    transferred = "".join(f" {name.replace('_', ' ', 2)} {value:.3f}." for name, value in transfers.items())
    words = ", ".join(f"{value:.3f}" if name == "X" else f"{name} {value:.3f}" for name, value in fits.items())
    return {
        "summary": (
            f"Trained on {n_train} spots of {n_sites} sites. Pearson of predictions for unseen sections and their "
            f"neighbourhoods {words}.{transferred}"
        ),
        "attacked": "a twin trained without some sections" if request.held_out is None else "the model itself",
        "n_train": n_train,
        "n_public": max(len(own) for own in target.public.values()),
        "n_test": max(len(own) for own in target.test.values()),
        "n_sites": n_sites,
        **{f"fit_{name}": value for name, value in fits.items()},
        **transfers,
        **run_parameters(target, quick=request.quick),
    }


def _left_open(target: SpaMosaicTarget, attributes: Any, table: pd.DataFrame, *, quick: bool) -> list[str]:
    left_out = [
        "The lock protects no clustering: clusters are in the input, and untrained networks keep them.",
        "Spots set aside count as outside, though components and neighbourhoods have seen them.",
        "Covariances and prototypes, which sites add before training: in the open they show properties of spots.",
        "Matching the order of the inputs by watching many rounds, and crafted weights.",
        "What a site unmixes of the sum of the other sites; with two sites it is the other's update.",
        "Other tissue for the attacker, whose spots lie beside those of the test where one section is held out.",
        *common_limits("spots"),
    ]
    if quick:
        left_out.insert(0, "Membership of whole sections, and more than a few trials of each attack (`quick=True`).")
    elif not table["attack"].eq("fit of a section").any():
        left_out.insert(0, "Membership of whole sections: none can be left out, or a single one.")
    if not table["attack"].eq("error of a spot").any():
        left_out.insert(0, f"Membership of spots: fewer than {_FEWEST_ASIDE} were set aside (`validation_size`).")
    if not attributes:
        left_out.insert(0, "Model stealing with labelled spots, and label transfer: name columns in `attributes`.")
    missing = [name for name in target.train if name not in target.public]
    if missing:
        left_out.insert(0, f"Modalities that no held-out section measured: {', '.join(missing)}.")
    if not target.is_keyed:
        left_out.insert(0, "Model stealing: without a key anyone with the weights has the model as it is.")
    if not target.keeps_order and not target.hides_updates:
        left_out.insert(0, "What a holder of the key reads off the first layer of a trained meta learner.")
    if not table["family"].eq("reconstruction").any():
        left_out.insert(0, "The first layer: the share rule keeps it at the sites.")
    return left_out
