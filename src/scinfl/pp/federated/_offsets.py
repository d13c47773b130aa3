"""Remove what sets sites apart from coordinates, without pooling cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from anndata import AnnData

from scinfl import _names
from scinfl._checks import complete_column, number_between, unmasked, whole_number
from scinfl.federation import Protection
from scinfl.pp.federated._assignment import Rule, SiteCells
from scinfl.pp.federated._prototypes import find_prototypes, unit
from scinfl.pp.federated._site_sums import SiteSums, check_finite
from scinfl.privacy import Key

_N_ASSIGNMENTS = 4
_STILL = 1e-4  # share of the variance that coordinates still move by when the rounds end


def federated_offsets(
    adata: AnnData,
    *,
    site_key: str,
    key: Key | None = None,
    protections: Sequence[Protection] | None = None,
    batch_key: str | None = None,
    use_rep: str = "X_pca",
    key_added: str = "X_pca_aligned",
    n_prototypes: int | None = None,
    diversity: float = 2.0,
    shrinkage: float = 1.0,
    width: float = 0.1,
    max_rounds: int = 10,
    min_cells: int = 10,
    rng: int = 0,
) -> None:
    r"""Subtract from each cell the offset of its site among similar cells, without pooling cells.

    Harmony (Korsunsky et al. 2019) from sums. All sites share prototypes: directions that cells gather around, found by
    k-means of sums over members. Each cell belongs to prototype :math:`k` by the share

    .. math::
        r_{ik} \propto \exp\!\Big( \frac{2 (\cos(z_i, y_k) - 1)}{\sigma} \Big)
        \Big( \frac{E_{bk} + 1}{O_{bk} + 1} \Big)^{\theta}, \quad
        O_{bk} = \sum_{i \in b} r_{ik}, \quad E_{bk} = \frac{n_b}{n} \sum_{b'} O_{b'k},

    so that prototypes are shared by all batches :math:`b`. The ridge regression of coordinates on batches within a
    prototype has a closed form in sums over batches:

    .. math::
        \mu_k = \frac{\sum_b s_{bk} / (O_{bk} + \lambda)}{\sum_b O_{bk} / (O_{bk} + \lambda)}, \quad
        \beta_{bk} = \frac{s_{bk} - O_{bk} \mu_k}{O_{bk} + \lambda}, \quad s_{bk} = \sum_{i \in b} r_{ik} z_i

    and every site subtracts :math:`\sum_k r_{ik} \beta_{bk}` from its own cells. Cells of a site know at once how those
    before them were assigned, and of other sites' since the last round; this and the start are all that differs from
    Harmony on pooled cells.

    **Who learns what.** With ``key`` the server adds numbers that it cannot read. All sites learn, round by round, how
    many cells belong to each prototype and their mean coordinates over all sites; coordinates are summed only where
    ``min_cells`` belong in all. A prototype of one site alone shows the mean of that site's cells there, and the
    difference of two rounds reveals how few cells went from one prototype to another. Assignments and offsets stay at
    their site. Without ``key`` the server sees the sums of every site.

    Sets the following fields:

    ``.obsm[key_added]``
        Corrected coordinates (cells × dimensions, float32).
    ``.uns["infl"]["federated_offsets"]``
        Settings, number of rounds and ``prototypes`` (prototypes × dimensions, of length 1).
    ``.uns["infl"]["payload"]["federated_offsets"]``
        What left each site.

    Parameters
    ----------
    adata
        Annotated data, not a view.
    site_key
        Column of ``adata.obs`` with the site of each cell.
    key
        Secret key of the sites for keyed sums; ``None`` for plain sums.
    protections
        What guards the sums in place of keyed ones, for example a :class:`~scinfl.privacy.PairwiseSum`.
    batch_key
        Column of ``adata.obs`` with batches within sites (sections, for example), each with offsets of its own. By
        default a site is one batch.
    use_rep
        Entry of ``adata.obsm`` with coordinates that all sites share, from :func:`federated_pca` for example.
    key_added
        Entry of ``adata.obsm`` to write.
    n_prototypes
        Number of prototypes :math:`K`; one for every 30 cells and at most 100 by default. Fewer where cells do not
        suffice.
    diversity
        Strength :math:`\theta` of the preference for prototypes that are short of a batch; 0 for none.
    shrinkage
        Ridge penalty :math:`\lambda`, in cells: offsets of batches with few cells in a prototype shrink to 0.
    width
        Width :math:`\sigma` of the assignment; small ones give whole cells to one prototype.
    max_rounds
        Most rounds of assignment and correction.
    min_cells
        Least number of cells of a site, and of a prototype over all sites.
    rng
        Seed of the order in which a site assigns its cells.

    Raises
    ------
    KeyError
        If a column or the coordinates do not exist.
    ValueError
        If ``adata`` is a view, coordinates are missing, or a site is too small.

    Examples
    --------
    >>> import scinfl as si
    >>> adata = si.datasets.pbmc()
    >>> si.pp.split_sites(adata, n_sites=3)
    >>> key = si.privacy.Key.generate()
    >>> si.pp.federated_pca(adata, 20, site_key="site", key=key)
    >>> si.pp.federated_offsets(adata, site_key="site", key=key)
    >>> adata.obsm["X_pca_aligned"].shape
    (700, 20)
    """
    number_between("diversity", diversity, 0, 100)
    number_between("shrinkage", shrinkage, 0, 1e9, open_low=True)
    number_between("width", width, 0, 100, open_low=True)
    whole_number("max_rounds", max_rounds, 1)
    sites = SiteSums(
        adata, "federated_offsets", site_key=site_key, key=key, min_cells=min_cells, protections=protections
    )
    points = _points(adata, use_rep, sites.rows)
    if n_prototypes is None:
        n_prototypes = min(max(round(sites.n_cells / 30), 1), 100)
    whole_number("n_prototypes", n_prototypes, 1)
    cells = _site_cells(adata, points, sites, batch_key, rng)
    rule = Rule(diversity, width, shrinkage, min_cells)
    directions = {site: unit(own.corrected) for site, own in cells.items()}
    prototypes = find_prototypes(sites, directions, n_prototypes, min_cells)
    members: np.ndarray = np.zeros(0)
    n_rounds, moved = 0, np.inf
    while n_rounds < max_rounds and moved > _STILL:
        for _ in range(_N_ASSIGNMENTS):
            prototypes, members = _assign(sites, cells, prototypes, members, rule)
        moved = _correct(sites, cells, members, rule)
        n_rounds += 1
    corrected = np.empty(points.shape, np.float32)
    for site, rows in sites.rows.items():
        corrected[rows] = cells[site].corrected
    adata.obsm[key_added] = corrected
    settings = {"use_rep": use_rep, "site_key": site_key, "diversity": diversity, "shrinkage": shrinkage}
    settings |= {"width": width, "n_rounds": n_rounds, "prototypes": prototypes}
    adata.uns.setdefault(_names.UNS, {})["federated_offsets"] = settings
    sites.keep()


def _points(adata: AnnData, use_rep: str, rows: Mapping[str, np.ndarray]) -> np.ndarray:
    if use_rep not in adata.obsm:
        msg = (
            f"Expected `use_rep` to name an entry of adata.obsm, found {use_rep!r}. Entries are {list(adata.obsm)}. "
            "Run `scinfl.pp.federated_pca` first."
        )
        raise KeyError(msg)
    points = unmasked(adata.obsm[use_rep]).astype(np.float64)
    check_finite(points, [f"dimension {number} of '{use_rep}'" for number in range(points.shape[1])], rows)
    return points


def _site_cells(
    adata: AnnData, points: np.ndarray, sites: SiteSums, batch_key: str | None, rng: int
) -> dict[str, SiteCells]:
    batches = np.zeros(adata.n_obs, np.int64)
    if batch_key is not None:
        column = complete_column(adata, batch_key, "batch_key", "a batch for every row")
        batches = column.astype("category").cat.codes.to_numpy()
    return {
        site: SiteCells(
            points[rows], np.unique(batches[rows], return_inverse=True)[1], np.random.default_rng([rng, number])
        )
        for number, (site, rows) in enumerate(sites.rows.items())
    }


def _assign(
    sites: SiteSums,
    cells: Mapping[str, SiteCells],
    prototypes: np.ndarray,
    members: np.ndarray,
    rule: Rule,
) -> tuple[np.ndarray, np.ndarray]:
    """One round of assignment: where prototypes go, and their members over all sites."""
    for own in cells.values():
        own.assign(prototypes, None if not len(members) else members - own.members.sum(0), sites.n_cells, rule)
    pooled, n = sites.mean("members", {site: {"members": own.members.sum(0)} for site, own in cells.items()})
    members = pooled["members"] * n
    known = members >= rule.min_members
    sums = {site: {"coordinates": own.shares[:, known].T @ unit(own.corrected)} for site, own in cells.items()}
    moved = prototypes.copy()
    moved[known] = unit(sites.mean("coordinates of members", sums)[0]["coordinates"])
    return moved, members


def _correct(sites: SiteSums, cells: Mapping[str, SiteCells], members: np.ndarray, rule: Rule) -> float:
    """Subtract offsets at every site; the share of the variance that coordinates moved by."""
    known = members >= rule.min_members
    sums = {site: own.regression_sums(known, rule.shrinkage) for site, own in cells.items()}
    pooled, _ = sites.mean("regression on batches", sums)
    mean = pooled["coordinates"] / pooled["members"][:, None]
    moved = {site: own.subtract_offsets(mean, known, rule.shrinkage) for site, own in cells.items()}
    change, _ = sites.mean(
        "movement",
        {
            site: {"moved": np.array(moved[site]), "squares": np.array((own.points**2).sum())}
            for site, own in cells.items()
        },
    )
    return float(change["moved"] / max(change["squares"], np.finfo(float).tiny))
