"""What an audit of a classifier needs, what repeats it, and what it leaves open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scinfl._audit._settings import HELD_OUT, check_names, common_limits, run_parameters
from scinfl._audit.classifier._model_stealing import MOST_FEATURES
from scinfl._audit.classifier._sender import sender_of
from scinfl._audit.classifier._target import Target
from scinfl._checks import complete_column, obs_column, same_features
from scinfl.model import Classifier

_FEWEST = 40  # held out, half of them to attack with and half to judge by


def check_classifier(adata: AnnData, model: Classifier, held_out: AnnData | None, attributes: Sequence[str]) -> None:
    """Refuse a classifier or data that cannot be audited."""
    if model.init_params_["non_kwargs"]["norm"] == "batch":
        msg = "Expected a model without running statistics, found `norm='batch'`. Audit one with `norm='layer'`."
        raise ValueError(msg)
    for data in [adata] if held_out is None else [adata, held_out]:
        same_features(data.var_names, model.var_names)
        obs_column(data, model.labels_key, "labels_key")
        for column in attributes:
            complete_column(data, column, "attributes", "a value for every row")
    if held_out is None and adata.n_obs * HELD_OUT < _FEWEST:
        msg = f"Expected at least {_FEWEST / HELD_OUT:.0f} rows to hold some of them out, found {adata.n_obs}."
        raise ValueError(msg)
    if held_out is not None and held_out.n_obs < _FEWEST:
        msg = f"Expected at least {_FEWEST} rows in `held_out`, found {held_out.n_obs}. Hold out more."
        raise ValueError(msg)
    check_names(adata, held_out)


def parameters_of(target: Target, *, is_twin: bool, quick: bool) -> dict[str, Any]:
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
        **run_parameters(target, quick=quick),
    }


def not_tested(target: Target, table: pd.DataFrame, *, quick: bool) -> list[str]:
    """What an audit of a classifier leaves open."""
    left_out = [
        "A server that changes the weights a little in every round, and sites that poison the training.",
        "Timing, sizes of messages, and the machines themselves.",
        *common_limits("cells"),
    ]
    if quick:
        left_out.insert(0, "Membership by shadow networks, and more than a few trials of each attack (`quick=True`).")
    if target.is_keyed and target.train.x.shape[1] > MOST_FEATURES:
        left_out.insert(0, f"Learning or matching the order of more than {MOST_FEATURES} features.")
    if sender_of(target, fresh=True).first is None:
        left_out.insert(0, "The first layer: the share rule keeps it at the sites.")
    if not target.keeps_order and not target.hides_updates:
        left_out.insert(0, "What a holder of the key reads off the first layer of a trained meta learner.")
        left_out.insert(0, "Crafted weights against a trained meta learner.")
    if table["verdict"].eq("insufficient data").any():
        left_out.insert(0, "Rates at false positive rates for which there are too few outsiders.")
    return left_out
