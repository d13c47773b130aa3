"""What an audit needs, what repeats it, and what it leaves open."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scinfl._checks import obs_column, same_features
from scinfl.model import Classifier
from scinfl.model._base import FederatedModel
from scinfl.privacy import Key, KeyedSum
from scinfl.tl._audit_attacked import Attacked
from scinfl.tl._audit_target import Target
from scinfl.tl._audit_thief import MOST_FEATURES

HELD_OUT = 0.4  # of the groups, where no rows are held out
_FEWEST = 40  # held out, half of them to attack with and half to judge by


def check_model(model: FederatedModel, key: Key | None) -> None:
    """Refuse a model that is not trained or not shared, and a key that does not fit.

    Raises
    ------
    RuntimeError
        If the model is untrained.
    ValueError
        If the key is missing or too much, or every site has a model of its own.
    """
    if not model.is_trained_:
        msg = "Expected a trained model, found an untrained one. Call `train` first."
        raise RuntimeError(msg)
    if (key is None) != (model.key_fingerprint is None):
        found = "none" if key is None else "one"
        msg = (
            f"Expected the key of the model if it was trained with one, found {found} (fingerprint of the model's: "
            f"{model.key_fingerprint}). Pass `key=` as in training."
        )
        raise ValueError(msg)
    if model.is_personal:
        msg = (
            f"Expected a model that all sites share, found `share={model._share!r}`, with one for each site. What it "
            "sends can be attacked with `scinfl.privacy.attacks`."
        )
        raise ValueError(msg)


def check_names(data: Any, held_out: Any) -> None:
    """Refuse rows held out that stand among the training data.

    Raises
    ------
    ValueError
        If names occur in both.
    """
    if held_out is not None and (shared := data.obs_names.intersection(held_out.obs_names)).size:
        msg = f"Expected `held_out` to share no row with the training data, found {shared.size} of the same name."
        raise ValueError(msg)


def check_classifier(adata: AnnData, model: Classifier, held_out: AnnData | None, attributes: Sequence[str]) -> None:
    """Refuse a classifier or data that cannot be audited."""
    if model.init_params_["non_kwargs"]["norm"] == "batch":
        msg = "Expected a model without running statistics, found `norm='batch'`. Audit one with `norm='layer'`."
        raise ValueError(msg)
    for data in [adata] if held_out is None else [adata, held_out]:
        same_features(data.var_names, model.var_names)
        obs_column(data, model.labels_key, "labels_key")
        for column in attributes:
            obs_column(data, column, "attributes")
    if held_out is None and adata.n_obs * HELD_OUT < _FEWEST:
        msg = f"Expected at least {_FEWEST / HELD_OUT:.0f} rows to hold some of them out, found {adata.n_obs}."
        raise ValueError(msg)
    if held_out is not None and held_out.n_obs < _FEWEST:
        msg = f"Expected at least {_FEWEST} rows in `held_out`, found {held_out.n_obs}. Hold out more."
        raise ValueError(msg)
    check_names(adata, held_out)


def parameters_of(target: Target, training: Mapping[str, Any], *, is_twin: bool, quick: bool) -> dict[str, Any]:
    """Settings that repeat an audit of a classifier, as a file can hold them."""
    n_train, n_sites = len(target.train), len(np.unique(target.train.sites))
    accuracy, chance = target.score(target.network), 1 / len(target.model.labels)
    return {
        "summary": (
            f"Trained on {n_train} cells at {n_sites} sites. Balanced accuracy on other cells {accuracy:.3f}, by "
            f"chance {chance:.3f}."
        ),
        "attacked": "a twin trained on 60% of the groups" if is_twin else "the model itself",
        "n_train": n_train,
        "n_public": len(target.public),
        "n_test": len(target.test),
        "n_sites": n_sites,
        "balanced_accuracy": accuracy,
        "chance": chance,
        **said_of(target, quick=quick, training=training),
    }


def not_tested(target: Target, table: pd.DataFrame, *, quick: bool) -> list[str]:
    """What an audit leaves open."""
    left_out = [
        "A server that changes the weights a little in every round, and sites that betray.",
        "Uploads under pairwise or homomorphic sums; keyed sums stand for them, but for a site that betrays its key.",
        "An outsider where uploads are in the open: without encrypted connections he reads what the server reads.",
        "Timing, sizes of messages, and the machines themselves.",
        "Attackers with more cells, more time, or other public data than here.",
    ]
    if quick:
        left_out.insert(0, "Membership by shadow networks, and more than a few trials of each attack (`quick=True`).")
    if target.is_keyed and target.train.x.shape[1] > MOST_FEATURES:
        left_out.insert(0, f"Learning or matching the order of more than {MOST_FEATURES} features.")
    if target.sender(fresh=True).first is None:
        left_out.insert(0, "The first layer: the share rule keeps it at the sites.")
    if not target.keeps_order and not target.hides_updates:
        left_out.insert(0, "What whoever has the key reads off the first layer of a trained meta learner.")
        left_out.insert(0, "Crafted weights against a trained meta learner.")
    if table["verdict"].eq("not told").any():
        left_out.insert(0, "Rates at false positive rates for which there are too few outsiders.")
    return left_out


def training_of(model: FederatedModel, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``train``: those given, else as many rounds as the model had, else the defaults."""
    kind = type(model)
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(kind.train).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    if unknown := [name for name in given if name not in defaults or name in ("key", "progress", "dry_run", "journal")]:
        msg = f"Expected `train` to hold arguments of `{kind.__name__}.train`, found {unknown}."
        raise ValueError(msg)
    history = model.history
    if history is not None:
        defaults["n_rounds"] = len(history)
    return {**defaults, "share": model._share, **given}


def said_of(attacked: Attacked, *, quick: bool, training: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that repeat an audit of any model, as a file can hold them."""
    model = attacked.model
    numbers = ("n_rounds", "local_epochs", "batch_size", "lr", "weight_decay")
    return {
        "model": type(model).__name__,
        "key_scheme": model._key_scheme or "none" if attacked.is_keyed else "none",
        "key_fingerprint": model.key_fingerprint or "none",
        "share": str(model._share),
        "quick": quick,
        "rng": attacked.rng,
        **{name: training[name] for name in numbers if training.get(name) is not None},
    }


def protections_to_watch(training: Mapping[str, Any]) -> list[Any]:
    """Protections of a twin that a server watches: noise as in training, and no sums to hide anything."""
    given = training["protections"]
    return [] if given == "default" else [p for p in given if not getattr(p, "sums", False)]


def protections_of_twin(training: Mapping[str, Any], key: Key | None) -> Any:
    """Protections of a twin that nobody watches: noise as in training, and keyed sums for sums of any kind."""
    given = training["protections"]
    if given == "default":
        return given
    kept = protections_to_watch(training)
    return [*kept, KeyedSum(key, min_sites=2)] if key is not None and len(kept) < len(given) else kept
