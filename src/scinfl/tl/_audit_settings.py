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
from scinfl.privacy import Key
from scinfl.tl._audit_target import Target
from scinfl.tl._audit_thief import MOST_FEATURES

HELD_OUT = 0.4  # of the groups, where no rows are held out
_FEWEST = 40  # held out, half of them to attack with and half to judge by


def check_audit(
    adata: AnnData, model: Classifier, held_out: AnnData | None, key: Key | None, attributes: Sequence[str]
) -> None:
    """Refuse a model, a key or data that cannot be audited."""
    if not isinstance(model, Classifier):
        msg = f"Expected a Classifier to audit, found {type(model).__name__}. Use `scinfl.privacy.attacks` directly."
        raise TypeError(msg)
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
    if held_out is not None and (shared := adata.obs_names.intersection(held_out.obs_names)).size:
        msg = f"Expected `held_out` to share no row with the training data, found {shared.size} of the same name."
        raise ValueError(msg)


def parameters_of(
    target: Target, training: Mapping[str, Any], *, is_twin: bool, quick: bool, rng: int
) -> dict[str, Any]:
    """Settings that repeat an audit, as a file can hold them."""
    model = target.model
    return {
        "attacked": "a twin trained on 60% of the groups" if is_twin else "the model itself",
        "key_scheme": model._key_scheme or "none" if target.is_keyed else "none",
        "key_fingerprint": model.key_fingerprint or "none",
        "share": str(model._share),
        "n_train": len(target.train),
        "n_public": len(target.public),
        "n_test": len(target.test),
        "n_sites": len(np.unique(target.train.sites)),
        "balanced_accuracy": target.score(target.network),
        "chance": 1 / len(model.labels),
        "quick": quick,
        "rng": rng,
        **{name: training[name] for name in ("n_rounds", "local_epochs", "batch_size", "lr", "weight_decay")},
    }


def not_tested(target: Target, table: pd.DataFrame, *, quick: bool) -> list[str]:
    """What an audit leaves open."""
    left_out = [
        "Perturbation models (GEARS) and tissue models (SpaMosaic): which perturbations or spots a site has.",
        "Learning the key and the cells jointly by optimisation.",
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
    if target.is_keyed and not target.hides_updates:
        left_out.insert(0, "Crafted weights against a key that acts inside the network.")
    if table["verdict"].eq("not told").any():
        left_out.insert(0, "Rates at false positive rates for which there are too few outsiders.")
    return left_out


def training_of(model: Classifier, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``train``: those given, else as many rounds as the model had, else the defaults."""
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(Classifier.train).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    if unknown := [name for name in given if name not in defaults or name in ("key", "progress", "dry_run", "journal")]:
        msg = f"Expected `train` to hold arguments of `Classifier.train`, found {unknown}."
        raise ValueError(msg)
    history = model.history
    if history is not None:
        defaults["n_rounds"] = len(history)
    return {**defaults, "share": model._share, **given}
