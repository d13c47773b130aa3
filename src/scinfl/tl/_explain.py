"""Contributions of features to labels, cell by cell."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from scinfl import _names
from scinfl._checks import one_of, whole_number
from scinfl.model import Classifier
from scinfl.model.base import ModelView
from scinfl.tl._shap_values import Shares, explain_network, require_shap

_N_DRAWS = {"permutation": 5, "gradient": 500}


def explain(
    adata: AnnData,
    model: Classifier,
    *,
    background: np.ndarray | None = None,
    output: Literal["logit", "probability"] = "logit",
    method: Literal["permutation", "gradient"] = "permutation",
    n_draws: int | None = None,
    n_top: int = 20,
    site: str | None = None,
    rng: int = 0,
) -> None:
    r"""Explain a trained and unlocked classifier by SHAP values.

    The difference between a cell's prediction and the mean prediction of the background is shared out among the
    features (Lundberg & Lee 2017). The background is a few profiles and no cells: the mean of each class over all
    training sites, each class with the same weight. So an explanation at one site needs no cell of another.

    ``"permutation"`` takes the features of a cell away in random orders, forth and back; the values add up to the
    prediction exactly, whatever the network. ``"gradient"`` (expected gradients) adds up only roughly, but needs no
    more steps the more features there are: for thousands. DeepLIFT as shap has it is not offered: it does not know
    layer normalisation, and its values do not add up where there is one.

    Softmax leaves a constant open that all logits share, so logits are centred over the labels. Values show what the
    model uses, not what causes a disease: of correlated features it may use any.

    Sets the following fields:

    ``.obsm["infl_shap"]``
        SHAP values (cells × features × labels, float32; the order of the labels is that of
        ``.uns["infl"]["explain"]["labels"]``).
    ``.varm["infl_shap"]``
        Mean of their absolute values over the cells (features × labels).
    ``.uns["infl"]["explain"]``
        ``top``: the ``n_top`` first features of each label, with ``mean_abs_shap`` and ``direction``, the correlation
        of value and SHAP value over the cells (positive: high values indicate the label). ``expected``: mean output of
        the background by label. ``additivity_gap``: root mean square of output − expected − sum of the SHAP values,
        relative to that of output − expected. Settings.

    Parameters
    ----------
    adata
        Cells to explain, with the model's features in the model's order.
    model
        Trained classifier that has its key.
    background
        Profiles (features × profiles) to explain against. By default ``.varm["infl_class_means"]`` of ``adata``, or of
        the model's training data, from :func:`scinfl.pp.federated_class_means`.
    output
        Explain centred logits or probabilities.
    method
        See above.
    n_draws
        Orders (``"permutation"``, 5 by default) or points on paths (``"gradient"``, 500) to average over for each
        cell.
    n_top
        Features of each label in the table.
    site
        Explain what the personal parameters of this site predict, see :meth:`scinfl.model.Classifier.predict`.
    rng
        Seed of orders and points.

    Raises
    ------
    ImportError
        If shap is not installed.
    KeyError
        If there is no background.
    RuntimeError
        If the model is untrained or locked.
    TypeError
        If the model is no classifier.
    ValueError
        If an argument, the background or the features cannot be used.

    Examples
    --------
    >>> import scinfl as si
    >>> adata = si.datasets.pbmc()[:, :20].copy()
    >>> si.pp.split_sites(adata, n_sites=3)
    >>> si.pp.federated_class_means(adata, "bulk_labels", site_key="site", min_cells=3)
    >>> si.model.Classifier.setup_anndata(adata, labels_key="bulk_labels", site_key="site")
    >>> model = si.model.Classifier(adata, key_scheme=None)
    >>> model.train(n_rounds=2, progress=False)
    >>> few = adata[:10].copy()
    >>> si.tl.explain(few, model)
    >>> few.obsm["infl_shap"].shape, few.varm["infl_shap"].shape
    ((10, 20, 10), (20, 10))
    """
    require_shap()
    _check_model(model)
    one_of("output", output, ["logit", "probability"])
    one_of("method", method, list(_N_DRAWS))
    n_draws = _N_DRAWS[method] if n_draws is None else n_draws
    whole_number("n_draws", n_draws, 1)
    whole_number("n_top", n_top, 1)
    whole_number("rng", rng, 0)
    view = ModelView(model)
    view.check_features(adata)
    if adata.n_obs == 0:
        msg = "Expected cells to explain, found none. Pass those whose labels you wonder about."
        raise ValueError(msg)
    profiles = _profiles(adata, model, background)
    explain_rows = partial(
        explain_network,
        model.module,
        profiles=profiles,
        output=output,
        method=method,
        n_draws=n_draws,
        rng=rng,
        device=model.device,
    )
    values, shares = _shares(adata, view, site, explain_rows)
    adata.obsm[_names.SHAP] = shares.values
    adata.varm[_names.SHAP] = np.abs(shares.values).mean(0)
    settings: dict[str, Any] = {
        "labels": np.array(model.labels, dtype=object),
        "features": np.array(adata.var_names, dtype=object),
        "top": _top(adata, values, model.labels, n_top),
        "expected": shares.expected,
        "additivity_gap": float(np.sqrt(shares.gap / shares.size)) if shares.size else 0.0,
        "n_profiles": len(profiles),
        "output": output,
        "method": method,
        "n_draws": n_draws,
        "key_fingerprint": model.key_fingerprint or "none",
    }
    if (layer := view.setup["layer"]) is not None:
        settings["layer"] = layer
    adata.uns.setdefault(_names.UNS, {})["explain"] = settings


def _check_model(model: object) -> None:
    if not isinstance(model, Classifier):
        msg = (
            f"Expected `model` to be a scinfl.model.Classifier, found {type(model).__name__}. Explanations share out "
            "the score of a label, which other models do not give."
        )
        raise TypeError(msg)
    ModelView(model).check_ready()


def _profiles(adata: AnnData, model: Classifier, background: np.ndarray | None) -> np.ndarray:
    """Background as profiles × features, float32."""
    if background is None:
        known = [data for data in (adata, model.adata) if data is not None and _names.CLASS_MEANS in data.varm]
        if not known:
            msg = (
                f"Expected a background in adata.varm['{_names.CLASS_MEANS}'], found none, nor in the model's training "
                "data. Run `scinfl.pp.federated_class_means` on the training data, or pass `background`."
            )
            raise KeyError(msg)
        background = known[0].varm[_names.CLASS_MEANS]
    profiles = np.asarray(background, dtype=np.float32)
    if profiles.ndim != 2 or profiles.shape[0] != adata.n_vars or not profiles.shape[1]:
        msg = (
            f"Expected `background` with one row for each of {adata.n_vars} features and a column for each profile, "
            f"found the shape {profiles.shape}. Transpose it if its rows are profiles."
        )
        raise ValueError(msg)
    if n := int((~np.isfinite(profiles)).sum()):
        msg = f"Expected finite values in `background`, found {n} others. Drop these profiles."
        raise ValueError(msg)
    return np.ascontiguousarray(profiles.T)


def _shares(
    adata: AnnData, view: ModelView, site: str | None, explain_rows: Callable[[np.ndarray], Shares]
) -> tuple[np.ndarray, Shares]:
    """Values that the network reads, and the SHAP values of all cells, each by what its own site keeps."""
    n_labels = len(view.model.labels)
    values = np.empty(adata.shape, np.float32)
    shap = np.empty((*adata.shape, n_labels), np.float32)
    expected, gap, size = np.zeros(n_labels), 0.0, 0.0
    for rows, cells in view.cells_by_site(adata, site):
        values[rows] = np.concatenate([x.cpu().numpy() for x, _ in cells.batches(4096)])
        own = explain_rows(values[rows])
        shap[rows] = own.values
        expected += own.expected * (len(rows) / adata.n_obs)
        gap, size = gap + own.gap, size + own.size
    return values, Shares(shap, expected, gap, size)


def _top(adata: AnnData, values: np.ndarray, labels: list[str], n_top: int) -> pd.DataFrame:
    """First features of each label."""
    shap, size = adata.obsm[_names.SHAP], adata.varm[_names.SHAP]
    tables = []
    for number, label in enumerate(labels):
        first = np.argsort(-size[:, number], kind="stable")[:n_top]
        tables.append(
            pd.DataFrame(
                {
                    "label": label,
                    "rank": np.arange(1, len(first) + 1),
                    "feature": np.asarray(adata.var_names[first], dtype=object),
                    "mean_abs_shap": size[first, number],
                    "direction": _correlations(values[:, first], shap[:, first, number]),
                }
            )
        )
    table = pd.concat(tables, ignore_index=True)
    return table.set_axis(table.index.astype(str))  # as h5ad keeps it


def _correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson correlation of columns; NaN where one is constant."""
    x, y = (part.astype(np.float64) - part.mean(0, dtype=np.float64) for part in (x, y))
    scale = np.sqrt((x**2).sum(0) * (y**2).sum(0))
    return np.divide((x * y).sum(0), scale, out=np.full(x.shape[1], np.nan), where=scale > 0)
