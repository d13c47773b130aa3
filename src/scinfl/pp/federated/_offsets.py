"""Remove what sets sites apart from coordinates, without pooling cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from anndata import AnnData

from scinfl import _names
from scinfl._checks import complete_column, number_between, unmasked, whole_number
from scinfl.federation import Protection, State
from scinfl.pp.federated._assignment import Rule, SiteCells
from scinfl.pp.federated._prototypes import find_prototypes, unit
from scinfl.pp.federated._site_sums import Computation, SiteSums, check_finite, run
from scinfl.privacy import Key

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
    n_assignments: int = 4,
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
    many cells belong to each prototype and their mean coordinates over all sites; a site adds coordinates only where
    ``min_cells`` of its own cells belong. A prototype of one site alone shows the mean of that site's cells there, and
    the difference of two rounds reveals how few cells went from one prototype to another. Assignments and offsets stay
    at their site. Without ``key`` the server sees the sums of every site.

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
    n_assignments
        Assignments a round, each of which takes one exchange with the other sites; also how often prototypes move after
        each split, at most 3.
    min_cells
        Least number of cells of a site, and of its cells that belong to a prototype whose coordinates it adds to.
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
    whole_number("n_assignments", n_assignments, 1)
    sites = SiteSums(
        adata, "federated_offsets", site_key=site_key, key=key, min_cells=min_cells, protections=protections
    )
    points = _points(adata, use_rep, sites.rows)
    if n_prototypes is None:
        n_prototypes = min(max(round(sites.n_cells / 30), 1), 100)
    whole_number("n_prototypes", n_prototypes, 1)
    rule = Rule(diversity, width, shrinkage, min_cells)
    batches = np.zeros(adata.n_obs, np.int64)
    if batch_key is not None:
        column = complete_column(adata, batch_key, "batch_key", "a batch for every row")
        batches = column.astype("category").cat.codes.to_numpy()
    options = {"max_rounds": max_rounds, "n_assignments": n_assignments, "rng": rng}
    corrected, prototypes, n_rounds = run(aligned(sites, points, batches, n_prototypes, rule, **options))
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


def aligned(
    sites: SiteSums,
    points: np.ndarray,
    batches: np.ndarray,
    n_prototypes: int,
    rule: Rule,
    *,
    max_rounds: int,
    n_assignments: int,
    n_dims: int = 1,
    rng: int,
) -> Computation[tuple[np.ndarray, np.ndarray, int]]:
    """Coordinates without the offsets of their batches (cells × dimensions, float32), prototypes, and rounds."""
    cells = {
        site: SiteCells(
            points[rows], np.unique(batches[rows], return_inverse=True)[1], np.random.default_rng([rng, number])
        )
        for number, (site, rows) in enumerate(sites.rows.items())
    }
    directions = {site: unit(own.corrected) for site, own in cells.items()}
    n_moves = min(n_assignments, 3)
    prototypes = yield from find_prototypes(sites, directions, n_prototypes, rule.min_members, n_moves, n_dims)
    prototypes, n_rounds = yield from _align(sites, cells, prototypes, rule, max_rounds, n_assignments)
    corrected = np.empty(points.shape, np.float32)
    for site, rows in sites.rows.items():
        corrected[rows] = cells[site].corrected
    return corrected, prototypes, n_rounds


def _align(
    sites: SiteSums,
    cells: Mapping[str, SiteCells],
    prototypes: np.ndarray,
    rule: Rule,
    max_rounds: int,
    n_assignments: int,
) -> Computation[tuple[np.ndarray, int]]:
    """Assign cells to prototypes, which move to them, and correct cells; returns prototypes and number of rounds.

    One exchange an assignment: it also brings how far cells moved before, and what the correction after the last one
    takes.
    """
    members: np.ndarray = np.zeros(0)
    moved: dict[str, State] = {}
    for number in range(max_rounds):
        for turn in range(n_assignments):
            for own in cells.values():
                own.assign(prototypes, None if not len(members) else members - own.members.sum(0), sites.n_cells, rule)
            first = turn == 0 and number > 0
            sums = {site: own.sums(rule) | (moved[site] if first else {}) for site, own in cells.items()}
            pooled, n = yield from sites.mean("members of prototypes", sums)
            if first and pooled["moved"] <= _STILL * pooled["size"]:
                return prototypes, number
            members, known = pooled["members"] * n, pooled["regressed members"] > 0
            prototypes = np.where(known[:, None], unit(pooled["coordinates"]), prototypes)
        weights = np.where(known, pooled["regressed members"], 1)
        mean = pooled["regressed"] / weights[:, None]
        for site, own in cells.items():
            change = own.subtract_offsets(mean, known, rule.shrinkage)
            moved[site] = {"moved": np.array(change), "size": np.array((own.points**2).sum())}
    return prototypes, max_rounds
