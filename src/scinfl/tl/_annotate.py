"""Write predicted labels into AnnData."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData

from scinfl import _names
from scinfl._checks import number_between
from scinfl.model import Classifier, ScviModel


def annotate(adata: AnnData, model: Classifier | ScviModel, *, min_confidence: float | None = None) -> None:
    """Label cells with a trained and unlocked classifier, or a SCANVI of :func:`scinfl.model.from_scvi`.

    Sets the following fields:

    ``.obs["infl_label"]``
        Predicted label, categorical in the order of the model's labels.
    ``.obsm["infl_probability"]``
        Probabilities (array, cells × labels; the order is that of ``.uns["infl"]["annotate"]["labels"]``).
    ``.uns["infl_label_colors"]``
        Colours: those of the true labels where they are known, else scanpy's.
    ``.uns["infl"]["annotate"]``
        Settings and the fingerprint of the key.

    Parameters
    ----------
    adata
        Data with the model's features, in any order and among others.
    model
        Trained classifier.
    min_confidence
        Cells whose best probability is lower become ``"unassigned"``.

    Examples
    --------
    >>> import scinfl as si
    >>> adata = si.datasets.pbmc()
    >>> si.model.Classifier.setup_anndata(adata, labels_key="bulk_labels")
    >>> model = si.model.Classifier(adata, key_scheme=None)
    >>> model.train(n_rounds=2, progress=False)
    >>> si.tl.annotate(adata, model)
    >>> adata.obs["infl_label"].dtype.name
    'category'
    """
    if min_confidence is not None:
        number_between("min_confidence", min_confidence, 0, 1)
    if not isinstance(model, Classifier | ScviModel):
        msg = (
            f"Expected a Classifier or a SCANVI as `model`, found a {type(model).__name__}. Load a saved one with "
            "`scinfl.model.Classifier.load`; other models have `scinfl.tl.embed` or their own `predict`."
        )
        raise TypeError(msg)
    probabilities = np.asarray(model.predict(adata, soft=True))
    labels = np.array(model.labels, dtype=object)
    predicted = labels[probabilities.argmax(1)]
    categories = list(model.labels)
    if min_confidence is not None:
        predicted[probabilities.max(1) < min_confidence] = _names.UNASSIGNED
        categories = list(dict.fromkeys([*categories, _names.UNASSIGNED]))  # a label may have this name
    adata.obs[_names.LABEL] = pd.Categorical(predicted, categories=categories)
    adata.obsm[_names.PROBABILITY] = probabilities  # labels may hold '/', which h5ad columns may not
    adata.uns[f"{_names.LABEL}_colors"] = _colours(adata, model.labels_key, categories)
    settings: dict[str, object] = {
        "key_fingerprint": model.key_fingerprint or "none",
        "labels_key": model.labels_key,
        "labels": np.array(model.labels, dtype=object),
    }
    if min_confidence is not None:
        settings["min_confidence"] = min_confidence
    adata.uns.setdefault(_names.UNS, {})["annotate"] = settings


def _colours(adata: AnnData, labels_key: str | None, categories: list[str]) -> list[str]:
    """Colours of the true labels under the same names; scanpy's palette for all where one is not known."""
    colours, true = adata.uns.get(f"{labels_key}_colors"), adata.obs.get(labels_key)
    known = {}
    if colours is not None and true is not None and isinstance(true.dtype, pd.CategoricalDtype):
        known = dict(zip(true.cat.categories.astype(str), colours, strict=False))
    known[_names.UNASSIGNED] = "#bdbdbd"
    if not all(name in known for name in categories):
        palette = sc.pl.palettes.default_20 if len(categories) <= 20 else sc.pl.palettes.default_102
        colour = {name: palette[number % len(palette)] for number, name in enumerate(categories)}
        known = {**colour, _names.UNASSIGNED: known[_names.UNASSIGNED]}
    return [str(known[name]) for name in categories]
