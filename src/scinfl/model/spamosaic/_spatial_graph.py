"""Which spots of a section lie next to each other, and how features travel between them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.spatial import Delaunay, KDTree, QhullError

from scinfl._checks import number_between, warn, whole_number
from scinfl._spelling import argument

_MOST_NEIGHBOURS = 1000
_PROBES = 1000
_SPOTS_AT_ONCE = 20_000
_TIE = 1e-9  # of a distance, within which two are equal
_FLAT = 1e-9  # difference of unit normals, below which two triangles are one plane

Edges = tuple[np.ndarray, np.ndarray]


def spatial_graph(
    coordinates: np.ndarray,
    section: np.ndarray,
    *,
    n_neighbours: int | None = 30,
    radius: float | None = None,
    delaunay: bool = False,
    directed: bool = False,
) -> sparse.csr_matrix:
    """Join each spot to itself and to spots near it in its section (spots × spots, float32 ones).

    ``n_neighbours`` alone joins the nearest spots, ``radius`` alone (``n_neighbours=None``) all spots within it, both
    together the nearest within it. ``delaunay`` takes the corners of a spot's Delaunay triangles in place of all spots
    of the section; the other two then bound them. Spots without a neighbour keep only themselves, with a warning.

    Spots as far as the last of the nearest are neighbours too, and so are all corners of triangles on one circle: on
    a lattice nothing depends on its axes. Only more than ``2 * n_neighbours + 12`` at no more than one distance, which
    lie at one place, are cut there.
    """
    coordinates = _checked(coordinates, section, n_neighbours, radius, delaunay=delaunay)
    n = len(coordinates)
    rows, columns, alone = [np.arange(n)], [np.arange(n)], {}
    for name, own in rows_by_name(section):
        if len(own) > 1:
            if (coordinates[own] == coordinates[own[0]]).all():
                warn(
                    f"Expected coordinates that differ between the spots of section '{name}', found one place for all. "
                    f"Their neighbours are arbitrary: check {argument('spatial_key')}."
                )
            i, j = _neighbours(coordinates[own], name, n_neighbours, radius, delaunay=delaunay)
            if radius is not None:
                alone[name] = _without_neighbour(coordinates[own], i, j, name, radius)
            rows.append(own[i])
            columns.append(own[j])
    if n_alone := sum(alone.values()):
        names = [f"{count} of section '{name}'" for name, count in alone.items() if count]
        msg = (
            f"{n_alone} of {n} spots have no neighbour within {radius:g} and keep only themselves: {', '.join(names)}."
        )
        warn(msg)
    i, j = np.concatenate(rows), np.concatenate(columns)
    graph = sparse.csr_matrix((np.ones(len(i), np.float32), (i, j)), shape=(n, n))
    graph = graph if directed else graph.maximum(graph.T).tocsr()
    graph.sort_indices()  # sums over neighbours come in one order
    return graph


def rows_by_name(of_row: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Names of sections (or sites) in sorted order, with the rows of each."""
    names, codes, sizes = np.unique(np.asarray(of_row), return_inverse=True, return_counts=True)
    parts = np.split(np.argsort(codes, kind="stable"), np.cumsum(sizes)[:-1])
    yield from zip(map(str, names), parts, strict=True)


def original_propagation(graph: sparse.spmatrix) -> sparse.csr_matrix:
    r"""Weights of one hop in the published SpaMosaic (spots × spots, float32): ``P @ x`` are the features one hop on.

    .. math::
        P = (D^{-1/2} W D^{-1/2})^\top, \quad D_{ii} = \sum_j W_{ij}

    with W the graph, a loop of weight 1 added to every spot that has none. Degrees count what a spot lists, while
    features come from the spots that list it: in a directed graph the transpose of the usual.
    """
    weights = sparse.csr_matrix(graph, dtype=np.float64)
    if weights.nnz and (least := weights.data.min()) < 0:
        msg = (
            f"Expected weights that are not negative in the spatial graph, found {least:g}. Take their absolute values."
        )
        raise ValueError(msg)
    weights = weights + sparse.diags((weights.diagonal() == 0).astype(np.float64))
    scale = sparse.diags(1 / np.sqrt(np.asarray(weights.sum(1)).ravel()))
    return (scale @ weights @ scale).T.tocsr().astype(np.float32)


def merged_graph(spatial: sparse.spmatrix, mutual: np.ndarray, weight: float = 0.8) -> sparse.csr_matrix:
    """Add pairs of spots of different sections, both ways and each once, to the spatial graph."""
    number_between("weight", weight, 0, 1e6)
    spatial = sparse.csr_matrix(spatial, dtype=np.float32)
    i, j = np.asarray(mutual, dtype=np.int64).reshape(-1, 2).T
    n = spatial.shape[0]
    if wrong := int(((i == j) | (np.minimum(i, j) < 0) | (np.maximum(i, j) >= n)).sum()):
        msg = f"Expected mutual neighbours to be different rows from 0 to {n - 1}, found {wrong} others. Drop them."
        raise ValueError(msg)
    if weight == 0 or not len(i):
        return spatial
    pairs = sparse.csr_matrix((np.ones(2 * len(i), np.float32), (np.r_[i, j], np.r_[j, i])), shape=(n, n))
    pairs.data[:] = weight
    return (spatial + pairs).tocsr()


# ---- the neighbours of one section


# scipy rather than squidpy: its kNN takes 1.4 to 1.7 times and its radius 5 to 7 times as long, it breaks ties by the
# order of rows, refuses sections smaller than `n_neighs`, has no kNN within a radius, and its triangulation leaves out
# spots at the place of another
def _neighbours(xy: np.ndarray, name: str, n_neighbours: int | None, radius: float | None, *, delaunay: bool) -> Edges:
    """Which spot lists which, both as places in the section."""
    if delaunay:
        i, j = _triangulation(xy, name)
        distance = np.linalg.norm(xy[i] - xy[j], axis=1)
    elif n_neighbours is None:
        return _within(xy, name, radius)  # type: ignore[arg-type]
    else:
        i, j, distance = _nearest(xy, min(n_neighbours, len(xy) - 1))
    if radius is not None:
        close = distance <= radius
        i, j, distance = i[close], j[close], distance[close]
    if delaunay and n_neighbours is not None:
        order = np.lexsort((distance, i))
        i, j, distance = i[order], j[order], distance[order]
        first = np.searchsorted(i, i)  # of the edges of the same spot
        last = np.minimum(first + n_neighbours, np.searchsorted(i, i, side="right")) - 1
        close = distance <= distance[last] * (1 + _TIE)
        i, j = i[close], j[close]
    return i, j


def _nearest(xy: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The k nearest of each spot and those as far as the last of them, with distances."""
    tree, n = KDTree(xy), len(xy)
    most = min(2 * k + 12, n - 1)
    found: list[tuple[np.ndarray, ...]] = []
    for chunk in np.array_split(np.arange(n), -(-n // _SPOTS_AT_ONCE)):
        rows = chunk
        for candidates in (min(k + 1, most), most):
            distance, at = tree.query(xy[rows], k=candidates + 1)  # and the spot itself
            reach = distance[:, [k]] * (1 + _TIE)
            cut = (distance[:, -1] <= reach[:, 0]) & (candidates < most)
            kept = (distance <= reach) & (at != rows[:, None]) & ~cut[:, None]
            found.append((np.broadcast_to(rows[:, None], at.shape)[kept], at[kept], distance[kept]))
            rows = rows[cut]
            if not len(rows):
                break
    i, j, distance = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return i, j, distance


def _within(xy: np.ndarray, name: str, radius: float) -> Edges:
    """All spots within the radius."""
    tree = KDTree(xy)
    probes = xy[:: max(1, len(xy) // _PROBES)]
    around = tree.query_ball_point(probes, radius, return_length=True).mean() - 1
    if around > _MOST_NEIGHBOURS:
        msg = (
            f"Expected at most {_MOST_NEIGHBOURS} neighbours per spot, found {around:.0f} on average within {radius:g} "
            f"in section '{name}'. Lower `radius`, which is in the unit of the coordinates, or set `n_neighbours` too."
        )
        raise ValueError(msg)
    i, j = tree.query_pairs(radius, output_type="ndarray").T
    return np.r_[i, j], np.r_[j, i]


def _triangulation(xy: np.ndarray, name: str) -> Edges:
    """Corners of the Delaunay triangles; a spot at the place of another is joined to that one."""
    n, n_axes = xy.shape
    if n <= n_axes + 1:
        return np.nonzero(~np.eye(n, dtype=bool))  # type: ignore[return-value]
    try:
        triangles = Delaunay(xy - xy.mean(0))
    except QhullError as error:
        msg = (
            f"Expected spots of section '{name}' that span {n_axes} dimensions, found {n} on a line or plane. Use "
            "`n_neighbours` or `radius` without `delaunay`."
        )
        raise ValueError(msg) from error
    one, side = np.nonzero(triangles.neighbors >= 0)
    other = triangles.neighbors[one, side]
    # triangles of points on one circle, which could be cut in other ways, are one plane when lifted to a paraboloid
    flat = np.abs(triangles.equations[one] - triangles.equations[other]).max(1) < _FLAT
    n_triangles = len(triangles.simplices)
    alike = sparse.coo_matrix((flat[flat], (one[flat], other[flat])), shape=(n_triangles, n_triangles))
    group = np.repeat(connected_components(alike, directed=False)[1], n_axes + 1)
    corners = sparse.csr_matrix((np.ones(len(group), np.int32), (group, triangles.simplices.ravel())))
    corners.resize(corners.shape[0], n)
    joined = (corners.T @ corners).tocoo()
    i, j = joined.row[joined.row != joined.col], joined.col[joined.row != joined.col]
    left_out, twin = triangles.coplanar[:, 0], triangles.coplanar[:, 2]
    return np.r_[i, left_out, twin], np.r_[j, twin, left_out]


def _without_neighbour(xy: np.ndarray, i: np.ndarray, j: np.ndarray, name: str, radius: float) -> int:
    """How many spots have no neighbour; an error if most."""
    n_alone = len(xy) - len(np.unique(np.r_[i, j]))
    if n_alone > len(xy) / 2:
        nearest = np.median(KDTree(xy).query(xy, k=2)[0][:, 1])
        msg = (
            f"Expected a neighbour within {radius:g} for most spots of section '{name}', found none for {n_alone} of "
            f"{len(xy)}. The nearest spot is at {nearest:g} in the median: raise `radius`, which is in the unit of the "
            "coordinates."
        )
        raise ValueError(msg)
    return n_alone


def _checked(
    coordinates: np.ndarray, section: np.ndarray, n_neighbours: int | None, radius: float | None, *, delaunay: bool
) -> np.ndarray:
    if n_neighbours is not None:
        whole_number("n_neighbours", n_neighbours, 1)
    if radius is not None:
        number_between("radius", radius, 0, np.inf, open_low=True)
    if n_neighbours is None and radius is None and not delaunay:
        msg = "Expected `n_neighbours`, `radius` or `delaunay` to define which spots are neighbours, found none."
        raise ValueError(msg)
    coordinates = np.asarray(coordinates, dtype=np.float64)
    if coordinates.ndim != 2 or coordinates.shape[1] not in {2, 3} or len(coordinates) != len(section):
        msg = (
            f"Expected coordinates of {len(section)} spots × 2 or 3, found an array of shape {coordinates.shape}. Pass "
            "one row for each spot, and columns in a unit of length only."
        )
        raise ValueError(msg)
    if odd := int((~np.isfinite(coordinates)).any(1).sum()):
        msg = f"Expected finite coordinates, found {odd} of {len(coordinates)} spots without. Drop these spots."
        raise ValueError(msg)
    return coordinates
