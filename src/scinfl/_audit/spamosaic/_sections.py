"""Which sections a model of tissue can do without, and models that did without."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from anndata import AnnData

from scinfl._audit._settings import HELD_OUT, protections_of_twin
from scinfl._checks import first_of
from scinfl.model import SpaMosaic
from scinfl.model.spamosaic._spots import Data, column_of
from scinfl.privacy import Key

_FEWEST = 40  # spots held out, half of them to attack with and half to judge by


def check_spamosaic(data: Data, model: SpaMosaic, held_out: Data | None, attributes: Sequence[str]) -> None:
    """Refuse a model of tissue or data that cannot be audited.

    Raises
    ------
    KeyError
        If attributes are no columns.
    ValueError
        If held-out sections took part in training, are too small, or none can be held out.
    """
    for part in [data] if held_out is None else [data, held_out]:
        model._check_features(part, model.registry_)
        for column in attributes:
            column_of(part, column, "attributes")
    section_key = model._setup_args()["section_key"]
    section = column_of(data, section_key, "section_key")
    model._measured(data, train=True)
    if held_out is None:
        chosen_sections(model, data, 0)
        return
    outside = column_of(held_out, section_key, "section_key")
    if shared := sorted(set(section) & set(outside)):
        msg = (
            f"Expected sections in `held_out` that took no part in training, found {first_of(shared)}. Leave them out, "
            "or rename what only has the same name."
        )
        raise ValueError(msg)
    if len(outside) < _FEWEST:
        msg = f"Expected at least {_FEWEST} spots in `held_out`, found {len(outside)}. Hold out more."
        raise ValueError(msg)


def chosen_sections(model: SpaMosaic, data: Data, rng: int) -> list[str]:
    """Sections to hold out: up to two fifths of them, as long as the others can be trained on.

    Raises
    ------
    ValueError
        If not one can be spared.
    """
    section = column_of(data, model._setup_args()["section_key"], "section_key")
    names = np.random.default_rng(rng).permutation(np.unique(section))
    wanted, aside = max(1, int(HELD_OUT * len(names))), list[str]()
    for name in names:
        if (
            len(aside) < wanted
            and (section == name).sum() >= _FEWEST
            and can_spare(model, data, section, [*aside, name])
        ):
            aside.append(str(name))
    if not aside:
        msg = (
            f"Expected a section that can be held out, found {len(names)} of which none can: the others must be of at "
            "least two sites (or one pooled) and link all modalities. Give sections that took no part in `held_out`."
        )
        raise ValueError(msg)
    return aside


def can_spare(model: SpaMosaic, data: Data, section: np.ndarray, aside: Sequence[str]) -> bool:
    kept = ~np.isin(section, aside)
    if not kept.any():
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model._measured(part_of(data, kept), train=True)
        except (ValueError, KeyError):
            return False
    return True


def part_of(data: Data, chosen: np.ndarray) -> Data:
    """Some of the spots."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return data[chosen].copy()


def twin_of(model: SpaMosaic, data: Data, key: Key | None, training: Mapping[str, Any]) -> SpaMosaic:
    """A model of the same settings and key, trained on other sections; unlocked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the user saw them with the model itself
        set_up = type(model).setup_anndata if isinstance(data, AnnData) else type(model).setup_mudata
        set_up(data, **model._setup_args())
        twin = type(model)(data, **{**model.init_params_["non_kwargs"], "facts": None})
        twin.train(**{**training, "key": key, "protections": protections_of_twin(training, key), "progress": False})
    if key is not None:
        twin.unlock(key)
    return twin
