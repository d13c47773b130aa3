"""Simulate sites by splitting the rows of one AnnData."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from anndata import AnnData

from scinfl import _names
from scinfl._checks import an_anndata, complete_column, number_between, whole_number

_MAX_DRAWS = 1000


def split_sites(
    adata: AnnData,
    n_sites: int = 5,
    *,
    by: str | None = None,
    alpha: float | None = None,
    everywhere: Sequence[str] = (),
    min_cells: int = 10,
    rng: int = 0,
    site_key: str = _names.SITE,
) -> None:
    """Give every row one of ``n_sites`` simulated sites.

    Without ``by`` the rows are dealt out evenly at random (iid). With ``by`` and ``alpha`` each value of the column is
    spread over the sites by a Dirichlet draw: the smaller ``alpha``, the more the sites differ (Hsu et al. 2019). With
    ``by`` alone all rows of one value (a donor, a plate) stay together, and the values are dealt out so that sites get
    similar numbers of rows.

    Sets the following fields:

    ``.obs[site_key]``
        Categorical ``site_1``, ``site_2``, …

    Parameters
    ----------
    adata
        Annotated data.
    n_sites
        Number of sites.
    by
        Column of ``adata.obs``.
    alpha
        Concentration of the Dirichlet distribution; 0.5 is clearly uneven, 100 nearly even.
    everywhere
        Values of ``by`` that are dealt out evenly to all sites nevertheless: the control cells of a perturbation
        screen, which every site needs.
    min_cells
        Least number of rows of a site.
    rng
        Seed.
    site_key
        Column to write.

    Raises
    ------
    KeyError
        If there is no such column.
    ValueError
        If the rows cannot be split so.

    Examples
    --------
    >>> import scinfl as si
    >>> adata = si.datasets.pbmc()
    >>> si.pp.split_sites(adata, n_sites=3, by="bulk_labels", alpha=0.5)
    >>> adata.obs["site"].cat.categories.to_list()
    ['site_1', 'site_2', 'site_3']
    """
    an_anndata(adata)
    whole_number("n_sites", n_sites, 2)
    whole_number("min_cells", min_cells, 1)
    if n_sites * min_cells > adata.n_obs:
        msg = (
            f"Expected at least n_sites × min_cells = {n_sites * min_cells} rows, found {adata.n_obs}. "
            "Lower `n_sites` or `min_cells`."
        )
        raise ValueError(msg)
    generator = np.random.default_rng(rng)
    if by is None:
        if alpha is not None:
            msg = f"Expected `by` to name the column that `alpha` spreads, found alpha={alpha} alone. Name a column."
            raise ValueError(msg)
        if everywhere:
            msg = f"Expected `by` to name the column of {list(everywhere)}, found none. Name a column."
            raise ValueError(msg)
        sites = generator.permutation(np.arange(adata.n_obs) % n_sites)
    else:
        column = complete_column(adata, by, "by", "a value for every row")
        values = np.unique(column.astype(str).to_numpy(), return_inverse=True)[1]
        if alpha is None:
            sites = _whole_values(values, n_sites, min_cells, by)
        else:
            number_between("alpha", alpha, 0, 1e6, open_low=True)
            sites = _dirichlet(values, n_sites, alpha, min_cells, generator)
        for value in everywhere:
            rows = np.flatnonzero(column.astype(str) == str(value))
            if not len(rows):
                msg = (
                    f"Expected `everywhere` to name values of adata.obs['{by}'], found {value!r}, which does not occur."
                )
                raise ValueError(msg)
            sites[rows] = generator.permutation(np.arange(len(rows)) % n_sites)
    names = [f"site_{number + 1}" for number in range(n_sites)]
    adata.obs[site_key] = np.array(names, dtype=object)[sites]
    adata.obs[site_key] = adata.obs[site_key].astype("category").cat.reorder_categories(names)


def _dirichlet(
    values: np.ndarray, n_sites: int, alpha: float, min_cells: int, generator: np.random.Generator
) -> np.ndarray:
    for _ in range(_MAX_DRAWS):
        sites = np.empty(len(values), np.int64)
        for value in range(values.max() + 1):
            rows = generator.permutation(np.flatnonzero(values == value))
            shares = generator.dirichlet(np.full(n_sites, alpha))
            cuts = np.round(np.cumsum(shares)[:-1] * len(rows)).astype(int)
            for site, part in enumerate(np.split(rows, cuts)):
                sites[part] = site
        if np.bincount(sites, minlength=n_sites).min() >= min_cells:
            return sites
    msg = (
        f"Expected a split in which each of {n_sites} sites has at least {min_cells} rows, found none in {_MAX_DRAWS} "
        f"draws with alpha={alpha}. Raise `alpha`, or lower `n_sites` or `min_cells`."
    )
    raise ValueError(msg)


def _whole_values(values: np.ndarray, n_sites: int, min_cells: int, by: str) -> np.ndarray:
    """Largest value first, each to the site that has fewest rows."""
    sizes = np.bincount(values)
    totals = np.zeros(n_sites, np.int64)
    site_of = np.empty(len(sizes), np.int64)
    for value in np.argsort(-sizes, kind="stable"):
        site_of[value] = totals.argmin()
        totals[site_of[value]] += sizes[value]
    if totals.min() < min_cells:
        msg = (
            f"Expected adata.obs['{by}'] to fill {n_sites} sites with at least {min_cells} rows each, found "
            f"{len(sizes)} values that do not. Lower `n_sites` or `min_cells`, or pass `alpha` to spread values."
        )
        raise ValueError(msg)
    return site_of[values]
