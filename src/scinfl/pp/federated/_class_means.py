"""Mean profile of each class over the cells of all sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from anndata import AnnData

from scinfl import _names
from scinfl._checks import first_of, missing, obs_column, warn
from scinfl.federation import Protection
from scinfl.pp.federated._site_sums import Matrix, SiteSums, blocks, matrix_of, run
from scinfl.privacy import Key


def federated_class_means(
    adata: AnnData,
    labels_key: str,
    *,
    site_key: str,
    key: Key | None = None,
    protections: Sequence[Protection] | None = None,
    layer: str | None = None,
    min_cells: int = 10,
) -> None:
    """Mean of each feature in each class over all cells, without pooling them.

    Every site sums its cells by class. What it sends of a class with fewer than ``min_cells`` of its cells is zero, so
    that no sum is over few cells, not even after a site took its own cells out of it. :func:`scinfl.tl.explain`
    takes the means as the background that it explains predictions against.

    **Who learns what.** With ``key`` the server adds numbers that it cannot read. All sites learn the mean of each
    class and the number of cells in it; of a class that a single site has enough cells of, that is this site's mean.
    Without ``key`` the server sees the sums of every site.

    Sets the following fields:

    ``.varm["infl_class_means"]``
        Mean of each feature in each class (features × classes).
    ``.uns["infl"]["federated_class_means"]``
        ``labels`` and ``n_cells`` of these classes.
    ``.uns["infl"]["payload"]["federated_class_means"]``
        What left each site.

    Parameters
    ----------
    adata
        Annotated data, not a view: the cells that a model was trained on.
    labels_key
        Column of ``adata.obs`` with the class of each cell; cells without one are left out.
    site_key
        Column of ``adata.obs`` with the site of each cell.
    key
        Secret key of the sites for keyed sums; ``None`` for plain sums.
    protections
        What guards the sums in place of keyed ones, for example a :class:`~scinfl.privacy.PairwiseSum`.
    layer
        Layer to read in place of X.
    min_cells
        Least number of cells of a site, and of a class at a site.

    Raises
    ------
    KeyError
        If a column or layer does not exist.
    ValueError
        If ``adata`` is a view, values are missing, a site is too small, or no site has enough cells of any class.

    Examples
    --------
    >>> import scinfl as si
    >>> adata = si.datasets.pbmc()
    >>> si.pp.split_sites(adata, n_sites=3)
    >>> si.pp.federated_class_means(adata, "bulk_labels", site_key="site", min_cells=3)
    >>> adata.varm["infl_class_means"].shape
    (765, 10)
    """
    labels = obs_column(adata, labels_key, "labels_key")
    classes = labels.astype("category").where(~missing(labels)).cat.remove_unused_categories().cat
    codes, names = classes.codes.to_numpy(), classes.categories.astype(str).to_numpy(dtype=object)
    sites = SiteSums(
        adata, "federated_class_means", site_key=site_key, key=key, min_cells=min_cells, protections=protections
    )
    matrix = matrix_of(adata, layer, sites.rows)
    totals, n = run(sites.mean("class means", _sums(matrix, sites.rows, codes, len(names), min_cells)))
    counts = np.rint(totals["members"] * n).astype(np.int64)
    kept = _kept(counts, names, min_cells)
    means = totals["values"][kept] * n / counts[kept, None]
    adata.varm[_names.CLASS_MEANS] = means.T.astype(np.float32)
    settings = {"labels": names[kept], "n_cells": counts[kept], "labels_key": labels_key}
    adata.uns.setdefault(_names.UNS, {})["federated_class_means"] = settings
    sites.keep()


def _sums(
    matrix: Matrix, rows: Mapping[str, np.ndarray], codes: np.ndarray, n_classes: int, min_cells: int
) -> dict[str, dict[str, np.ndarray]]:
    """Cells and summed values by class of each site, zero where a site has too few of a class."""
    sums = {}
    for site, own in rows.items():
        members = np.bincount(codes[own][codes[own] >= 0], minlength=n_classes)
        enough = members >= min_cells
        values = np.zeros((n_classes, matrix.shape[1]))
        for cells, block in blocks(matrix, own):
            values += (codes[cells] == np.arange(n_classes)[:, None]).astype(np.float64) @ block
        sums[site] = {"members": members * enough.astype(np.float64), "values": values * enough[:, None]}
    return sums


def _kept(counts: np.ndarray, names: np.ndarray, min_cells: int) -> np.ndarray:
    """Classes with cells; those without are reported."""
    kept = np.flatnonzero(counts)
    absent = names[counts == 0]
    if not len(kept):
        msg = (
            f"Expected a class with {min_cells} cells at one site at least, found none among {len(names)} classes. "
            "Lower `min_cells`, or merge classes or sites."
        )
        raise ValueError(msg)
    if len(absent):
        warn(
            f"Left out {len(absent)} of {len(names)} classes, of which no site has {min_cells} cells: "
            f"{first_of(absent)}. Lower `min_cells` to have their means."
        )
    return kept
