"""What an audit of any model needs, and what repeats it."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

from scinfl._audit._attack_target import AttackTarget
from scinfl._spelling import spelled
from scinfl.model.base import FederatedModel, ModelView
from scinfl.privacy import Key, KeyedSum

HELD_OUT = 0.4  # of the groups, where no rows are held out
_NOT_OF_A_TRAINING = ("key", "progress", "dry_run", "journal", "remote")


def check_model(model: FederatedModel, key: Key | None) -> None:
    """Refuse a model that is not trained or not shared, and a key that does not fit."""
    if not model.is_trained_:
        msg = "Expected a trained model, found an untrained one. Call `train` first."
        raise RuntimeError(msg)
    if (key is None) != (model.key_fingerprint is None):
        found = "none" if key is None else "one"
        msg = (
            f"Expected the key of the model if it was trained with one, found {found} (fingerprint of the model's: "
            f"{model.key_fingerprint}). {spelled('Pass `key=` as in training')}."
        )
        raise ValueError(msg)
    if model.is_personal:
        msg = (
            f"Expected a model that all sites share, found `share={ModelView(model).share!r}`, with one for each site. "
            "What it sends can be attacked with `scinfl.privacy.attacks`."
        )
        raise ValueError(msg)


def check_names(data: Any, held_out: Any) -> None:
    """Refuse held-out rows that are among the training data."""
    if held_out is not None and (shared := data.obs_names.intersection(held_out.obs_names)).size:
        msg = f"Expected `held_out` to share no row with the training data, found {shared.size} of the same name."
        raise ValueError(msg)


def training_of(model: FederatedModel, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``train``: those given, else as many rounds as the model had, else the defaults."""
    kind = type(model)
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(kind.train).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    if unknown := [name for name in given if name not in defaults or name in _NOT_OF_A_TRAINING]:
        msg = f"Expected `train` to hold arguments of `{kind.__name__}.train`, found {unknown}."
        raise ValueError(msg)
    history = model.history
    if history is not None:
        defaults["n_rounds"] = len(history)
    return {**defaults, "share": ModelView(model).share, **given}


def run_parameters(attacked: AttackTarget, *, quick: bool) -> dict[str, Any]:
    """Settings that repeat an audit of any model, as a file can hold them."""
    model, training = attacked.model, attacked.training
    numbers = ("n_rounds", "local_epochs", "batch_size", "lr", "weight_decay")
    return {
        "model": type(model).__name__,
        "key_scheme": attacked.view.key_scheme or "none" if attacked.is_keyed else "none",
        "key_fingerprint": model.key_fingerprint or "none",
        "share": str(attacked.view.share),
        "quick": quick,
        "rng": attacked.rng,
        **{name: training[name] for name in numbers if training.get(name) is not None},
    }


def common_limits(unit: str) -> list[str]:
    """What an audit of any model leaves open; its attackers hold some of a unit, such as cells."""
    return [
        "Uploads under pairwise or homomorphic sums; keyed sums represent them, except where a site discloses its key.",
        "An outsider where uploads are in the open: without encrypted connections it reads what the server reads.",
        f"Attackers with more {unit}, more time, or other public data than here.",
    ]


def twin_of(
    view: ModelView, data: Any, key: Key | None, training: Mapping[str, Any], protections: Any, **setup: Any
) -> Any:
    """A model of the same settings and key, trained on other data; unlocked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the user saw them with the model itself
        twin = view.remade(data, **setup)
        twin.train(**{**training, "key": key, "protections": protections, "progress": False})
    if key is not None:
        twin.unlock(key)
    return twin


def protections_to_watch(training: Mapping[str, Any]) -> list[Any]:
    """Protections of a twin that a server watches: noise as in training, and no sums to hide anything."""
    given = training["protections"]
    return [] if given == "default" else [p for p in given if not p.sums]


def protections_of_twin(training: Mapping[str, Any], key: Key | None) -> Any:
    """Protections of a twin that nobody watches: noise as in training, and keyed sums for sums of any kind."""
    given = training["protections"]
    if given == "default":
        return given
    kept = protections_to_watch(training)
    return [*kept, KeyedSum(key, min_sites=2)] if key is not None and len(kept) < len(given) else kept
