"""Centred log ratios of protein counts."""

from __future__ import annotations

from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse

from scinfl._checks import first_of, owns_data, values_of


def clr(adata: AnnData, *, layer: str | None = None, key_added: str | None = None) -> None:
    r"""Centred log ratio of the protein counts of each cell, in the form of Seurat.

    For a cell with counts :math:`x` of :math:`p` proteins,

    .. math::
        \operatorname{clr}(x)_j = \log\Big(1 + \frac{x_j}{g}\Big), \qquad
        g = \exp\Big(\frac{1}{p} \sum_{i:\, x_i > 0} \log(1 + x_i)\Big).

    All :math:`p` proteins count in the mean, those without counts as 0. Zeros stay 0, so sparse values stay sparse.
    This is ``NormalizeData(normalization.method = "CLR", margin = 2)`` of Seurat (Hao et al. 2021, Cell 184:3573). It
    differs from the centred log ratio of Stoeckius et al. 2017 (Nature Methods 14:865), :math:`\log(1 + x_j)` minus its
    mean over proteins, which is negative for zeros and for all that is below the mean.

    Every cell is transformed by its own counts alone: nothing is fitted over cells and nothing leaves a site. Sites
    must share their panel of proteins, though, since :math:`g` depends on it.

    Sets the following fields:

    ``.X``, ``.layers[layer]`` or ``.layers[key_added]``
        Centred log ratios (float32; float64 where the counts are).

    Parameters
    ----------
    adata
        Annotated data with raw counts (cells × proteins), not a view.
    layer
        Layer of counts to use in place of X.
    key_added
        Layer to write to. By default the counts are replaced.

    Raises
    ------
    KeyError
        If the layer does not exist.
    ValueError
        If ``adata`` is a view or a file, or values are missing, negative or not whole, as logarithms are.

    Examples
    --------
    >>> import anndata as ad, numpy as np, scinfl as si
    >>> adata = ad.AnnData(np.array([[0.0, 7.0, 7.0], [0.0, 0.0, 3.0]]))
    >>> si.pp.clr(adata, key_added="clr")
    >>> adata.layers["clr"].round(2)
    array([[0.  , 1.01, 1.01],
           [0.  , 0.  , 1.06]])
    """
    owns_data(adata, in_memory=True)
    counts = _counts(adata, layer)
    ratios = centred_log_ratios(counts)
    if key_added is not None:
        adata.layers[key_added] = ratios
    elif layer is not None:
        adata.layers[layer] = ratios
    else:
        adata.X = ratios


def centred_log_ratios(counts: Any) -> Any:
    """Centred log ratios of counts (cells × proteins), dense or compressed sparse rows."""
    return _sparse_ratios(counts) if sparse.issparse(counts) else _dense_ratios(counts)


def _counts(adata: AnnData, layer: str | None) -> Any:
    matrix = values_of(adata, layer)
    for what, test in (
        ("missing (NaN) or infinite values", lambda values: ~np.isfinite(values)),
        ("negative values", lambda values: values < 0),
        ("values that are not whole, as logarithms are,", lambda values: values % 1 != 0),
    ):
        if odd := _features_where(matrix, test):
            names = first_of([str(adata.var_names[feature]) for feature in odd])
            msg = (
                f"Expected raw counts, found {what} in {len(odd)} of {adata.n_vars} features: {names}. "
                "Name the layer of raw counts with `layer`, or drop these features."
            )
            raise ValueError(msg)
    return matrix


def _features_where(matrix: Any, test: Any) -> list[int]:
    if not sparse.issparse(matrix):
        return np.flatnonzero(test(matrix).any(0)).tolist()
    return np.unique(matrix.indices[test(matrix.data)]).tolist()


def _sparse_ratios(counts: Any) -> Any:
    ratios = counts.astype(_precision(counts))
    totals = np.asarray(counts.log1p().sum(1, dtype=np.float64)).ravel()
    scale = np.exp(totals / counts.shape[1]).astype(ratios.dtype)
    ratios.data = np.log1p(ratios.data / np.repeat(scale, np.diff(ratios.indptr)))
    return ratios


def _dense_ratios(counts: np.ndarray) -> np.ndarray:
    scale = np.exp(np.log1p(counts).mean(1, keepdims=True, dtype=np.float64))
    return np.log1p(counts / scale).astype(_precision(counts))


def _precision(counts: Any) -> type:
    return np.float64 if counts.dtype == np.float64 else np.float32
