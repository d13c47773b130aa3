"""Sections that can be held out of the training of a model of tissue."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scinfl._audit._settings import HELD_OUT, protections_of_twin, twin_of
from scinfl._checks import first_of
from scinfl.model import SpaMosaic
from scinfl.model.spamosaic import Data, SpaMosaicView, column_of
from scinfl.privacy import Key

_FEWEST = 40  # spots held out, half of them to attack with and half to judge by


def check_spamosaic(data: Data, model: SpaMosaic, held_out: Data | None, attributes: Sequence[str]) -> None:
    """Refuse a model of tissue or data that cannot be audited."""
    view = SpaMosaicView(model)
    for part in [data] if held_out is None else [data, held_out]:
        view.check_features(part)
        for column in attributes:
            column_of(part, column, "attributes")
    section = view.sections(data)
    view.measured(data, train=True)
    if held_out is None:
        chosen_sections(view, data, 0)
        return
    outside = view.sections(held_out)
    if shared := sorted(set(section) & set(outside)):
        msg = (
            f"Expected sections in `held_out` that took no part in training, found {first_of(shared)}. Leave them out, "
            "or rename what only has the same name."
        )
        raise ValueError(msg)
    if len(outside) < _FEWEST:
        msg = f"Expected at least {_FEWEST} spots in `held_out`, found {len(outside)}. Hold out more."
        raise ValueError(msg)


def chosen_sections(view: SpaMosaicView, data: Data, rng: int) -> list[str]:
    """Sections to hold out: up to two fifths of them, as long as the others can be trained on."""
    section = view.sections(data)
    names = np.random.default_rng(rng).permutation(np.unique(section))
    wanted, aside = max(1, int(HELD_OUT * len(names))), list[str]()
    for name in names:
        if (
            len(aside) < wanted
            and (section == name).sum() >= _FEWEST
            and can_spare(view, data, section, [*aside, name])
        ):
            aside.append(str(name))
    if not aside:
        msg = (
            f"Expected a section that can be held out, found {len(names)} of which none can: the others must be of at "
            "least two sites (or one pooled) and link all modalities. Give sections that took no part in `held_out`."
        )
        raise ValueError(msg)
    return aside


def can_spare(view: SpaMosaicView, data: Data, section: np.ndarray, aside: Sequence[str]) -> bool:
    """Whether the other sections can be trained on."""
    kept = ~np.isin(section, aside)
    if not kept.any():
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            view.measured(part_of(data, kept), train=True)
        except (ValueError, KeyError):
            return False
    return True


def part_of(data: Data, chosen: np.ndarray) -> Data:
    """Some of the spots."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return data[chosen].copy()


def trained_twin(view: SpaMosaicView, data: Data, key: Key | None, training: Mapping[str, Any]) -> SpaMosaic:
    """A model of the same settings and key, trained on other sections; unlocked."""
    return twin_of(view, data, key, training, protections_of_twin(training, key))
