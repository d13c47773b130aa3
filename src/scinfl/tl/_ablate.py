"""What is left of a keyed classifier without its key."""

from __future__ import annotations

import copy
from typing import Any

import pandas as pd
from anndata import AnnData

from scinfl import metrics
from scinfl._checks import complete_column, first_of, whole_number
from scinfl.model import Classifier
from scinfl.model.base import ModelView
from scinfl.nn import clear_key, set_key
from scinfl.privacy import Key


def ablate(adata: AnnData, model: Classifier, *, n_keys: int = 20, n_untrained: int = 5, rng: int = 0) -> pd.DataFrame:
    """Score a keyed classifier with its key, with wrong keys, without its keyed modules, and untrained.

    The first is what the sites have. The next two are what an attacker has who found the weights and tries no more than
    that; the last is what anybody has. For model-stealing attackers who try more see :func:`scinfl.tl.audit`. The model
    is left as it is.

    Parameters
    ----------
    adata
        Cells that the model was not trained on, with their labels in the model's label column.
    model
        Trained classifier that has its key.
    n_keys
        Wrong keys, drawn like the right one.
    n_untrained
        Networks of the same shape as they are before training.
    rng
        Seed of the untrained networks.

    Returns
    -------
    Tidy data frame with the columns ``variant`` (``"right key"``, ``"wrong key"``, ``"modules removed"``,
    ``"untrained"``), ``repeat`` (number of the key or network), ``metric``, ``label`` (``"all"`` or a class) and
    ``value``. Metrics are those of :func:`scinfl.metrics.classification`.

    Raises
    ------
    RuntimeError
        If the model is untrained or locked.
    TypeError
        If the model is no classifier.
    ValueError
        If the model was trained without a key, or cells have a label that it does not know.

    Examples
    --------
    >>> import scinfl as si
    >>> adata = si.datasets.pbmc()
    >>> si.pp.split_sites(adata, n_sites=3)
    >>> si.model.Classifier.setup_anndata(adata, labels_key="bulk_labels", site_key="site")
    >>> model = si.model.Classifier(adata)
    >>> model.train(n_rounds=3, key=si.privacy.Key.generate(), progress=False)
    >>> table = si.tl.ablate(adata, model, n_keys=5).query("metric == 'balanced_accuracy' and label == 'all'")
    >>> means = table.groupby("variant", observed=True)["value"].mean()
    >>> bool(means["right key"] > means["wrong key"])
    True
    """
    whole_number("n_keys", n_keys, 1)
    whole_number("n_untrained", n_untrained, 1)
    whole_number("rng", rng, 0)
    _check_model(model)
    true = complete_column(adata, model.labels_key, "model.labels_key", "a label for every row").astype(str)
    if unknown := sorted(set(true) - set(model.labels)):
        msg = (
            f"Expected labels of the model in adata.obs['{model.labels_key}'], found {len(unknown)} others: "
            f"{first_of(unknown)}. Leave these cells out."
        )
        raise ValueError(msg)
    view, stolen = ModelView(model), copy.deepcopy(model.module)  # comes without the key
    tables = [_scored(adata, model, true, "right key", 0)]
    attacked = view.with_network(stolen)
    for number in range(n_keys):
        set_key(stolen, Key.generate().coordinates)
        tables.append(_scored(adata, attacked, true, "wrong key", number))
    clear_key(stolen)
    tables.append(_scored(adata, view.with_network(stolen, is_locked=False), true, "modules removed", 0))
    for number in range(n_untrained):
        network = view.untrained(rng + number).to(model.device).eval()
        untrained = view.with_network(network, is_locked=False, is_personal=False)  # what sites keep is trained, too
        tables.append(_scored(adata, untrained, true, "untrained", number))
    table = pd.concat(tables, ignore_index=True)
    table["variant"] = pd.Categorical(table["variant"], categories=list(dict.fromkeys(table["variant"])))
    return table


def _check_model(model: Any) -> None:
    if not isinstance(model, Classifier):
        msg = f"Expected `model` to be a scinfl.model.Classifier, found {type(model).__name__}. Audit others by hand."
        raise TypeError(msg)
    ModelView(model).check_ready()
    if model.key_fingerprint is None:
        msg = "Expected a model that was trained with a key, found a plain one: there is no key to take away."
        raise ValueError(msg)


def _scored(adata: AnnData, model: Classifier, true: pd.Series, variant: str, repeat: int) -> pd.DataFrame:
    table = metrics.classification(true, model.predict(adata, soft=True), n_bootstrap=0)
    return table[["metric", "label", "value"]].assign(variant=variant, repeat=repeat)[
        ["variant", "repeat", "metric", "label", "value"]
    ]
