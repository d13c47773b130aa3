"""Directions of one modality that follow the tissue, from sums over sites."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from scipy.linalg import eigh

from scinfl.model.base._cells import Matrix
from scinfl.model.spamosaic._batches import centred, hop_matrix, propagated
from scinfl.model.spamosaic._measured import Measured
from scinfl.model.spamosaic._normalise import normalised
from scinfl.model.spamosaic._spatial_basis import NEAREST, BasisOptions, SpatialBasis
from scinfl.pp.federated import (
    Computation,
    SiteSums,
    at_features,
    dispersions,
    in_step,
    inverse_means,
    latent_semantics,
    moments_of,
    principal_components,
    unlogged,
)

WIDTHS = (4, 6, 8, 12, 20, 30)
"""Numbers of neighbours that are compared."""

_MOST_STRENGTH = 0.999


class _Parts(NamedTuple):
    """How components are found of features."""

    weights: np.ndarray  # of features in TF-IDF; empty otherwise
    deviation: np.ndarray
    mean: np.ndarray  # of scaled features
    components: np.ndarray  # features × principal components


class DirectionsFit:
    """Principal components of a modality over all sites, and directions among them by how they follow the tissue.

    Exchanges are few because each brings all that the next steps are computed from: second moments of components after
    each hop over each graph give the variance of any direction there.

    Parameters
    ----------
    measured
        Spots that are here; none where the modality was measured elsewhere alone.
    options
        How directions are found.
    sums
        What the sites of the modality add up.
    least
        Fewest features that components will be found on.
    elsewhere
        Whether other sites are on machines of their own.
    """

    def __init__(
        self, measured: Measured, options: BasisOptions, sums: SiteSums, *, least: int, elsewhere: bool
    ) -> None:
        self.measured, self._options, self._sums = measured, options, sums
        self._elsewhere = elsewhere
        self._n_vars = measured.matrix.shape[1]
        self._selects = self._n_vars > least
        self._latent = measured.normalise == "tfidf"
        self._matrix = measured.matrix if self._latent else normalised(measured.matrix, measured.normalise)
        self._moments: list[tuple[np.ndarray, np.ndarray]] = []
        self._weights: np.ndarray = np.zeros(0)
        self._n_features = 0  # that components were found on
        self._graphs: dict[int | None, sparse.csr_matrix] = {}

    def moments(self) -> Computation[None]:
        """Let the sites agree on means and variances of features, and on their weights in TF-IDF."""
        logarithms = normalised(self._matrix, "log1p") if self._latent and self._selects else self._matrix
        parts = [
            *([] if self._latent else [(self._matrix, None)]),
            *([(logarithms, unlogged())] if self._selects else []),
        ]
        steps: list[Computation[Any]] = [moments_of(self._sums, parts, "moments of features")] if parts else []
        if self._latent:
            steps.append(inverse_means(self._sums, self._matrix, np.arange(self._n_vars)))
        found = yield from in_step(*steps)
        if self._latent:
            self._weights = found.pop()
        self._moments = found[0][0] if parts else []

    def directions(self, n_features: int, *, last: bool = True) -> Computation[None]:
        """Let the sites agree on components of so many features, and on directions among them.

        Parameters
        ----------
        n_features
            Features with the highest dispersion.
        last
            Whether neighbourhoods along the directions will be asked for.
        """
        if self._n_features == min(n_features, self._n_vars):
            return
        self._n_features = min(n_features, self._n_vars)
        self._parts = yield from self._components()
        empty = np.zeros(0)
        self.scores = SpatialBasis(*self._parts, empty, empty, empty, empty, empty).scores(self.measured)
        self.second, self.n_spots = yield from self._sums.mean("directions of the tissue", self._products(last=last))
        self._rotate()

    @property
    def information(self) -> float:
        r"""What the neighbours of a spot say about it, :math:`-\frac12 \sum \log(1 - \lambda)` nats."""
        return float(-np.log(1 - np.clip(self.strength, 0, _MOST_STRENGTH)).sum() / 2)

    # ---- components

    def _components(self) -> Computation[_Parts]:
        """Weights, deviation and mean of features, and their principal components."""
        n_vars, latent = self._n_vars, self._latent
        columns = np.arange(n_vars)
        if n_vars > self._n_features:
            chosen = dispersions(*self._moments[-1], self._n_features, "seurat")["highly_variable"]
            columns = np.flatnonzero(chosen)
        n_kept = self._options.sizes(n_vars)[0]
        n_components = self._n_components(min(n_kept, len(columns) - latent))
        if latent:
            weights = at_features(columns, self._weights[columns], n_vars)
            logarithms = normalised(self._matrix, "tfidf", weights)
            products = latent_semantics(self._sums, self._matrix, columns, n_components + 1, self._weights[columns])
            (_, found, _), mean = yield from in_step(products, self._mean(logarithms))
            found = at_features(columns, found, n_vars)[:, 1:]  # the first follows the depth
            return _Parts(weights, np.ones(n_vars), mean, _widened(found, n_kept))
        mean, variance = self._moments[0]
        deviation = np.where(variance > 0, np.sqrt(variance), 1)
        scaled = self._matrix[:, columns]
        scaled = (
            scaled @ sparse.diags(1 / deviation[columns]) if sparse.issparse(scaled) else scaled / deviation[columns]
        )
        centre, every = (mean / deviation)[columns], np.arange(len(columns))
        _, found, _ = yield from principal_components(self._sums, scaled, every, n_components, centre)
        mean, found = (at_features(columns, own, n_vars) for own in (centre, found))
        return _Parts(np.zeros(0), deviation, mean, _widened(found, n_kept))

    def _n_components(self, n: int) -> int:
        """Principal components that there are."""
        n_spots = len(self.measured.rows)
        if not self._elsewhere:
            return min(n, n_spots - 1 - self._latent)
        if 0 < n_spots < n + 1 + self._latent:
            msg = (
                f"Expected at least {n + 1 + self._latent} spots at every site of its own machine, as many as "
                f"principal components need, found {n_spots}. Lower `n_components`, or leave this site out."
            )
            raise ValueError(msg)
        return n

    def _mean(self, matrix: Matrix) -> Computation[np.ndarray]:
        """Mean of features over all sites."""
        rows = self._sums.rows.items()
        totals = {site: {"sum": np.asarray(matrix[own].sum(0), np.float64).ravel()} for site, own in rows}
        pooled, _ = yield from self._sums.mean("mean of features", totals)
        return pooled["sum"]

    # ---- directions

    def _products(self, *, last: bool) -> dict[str, dict[str, np.ndarray]]:
        """Second moments of the components of each site: alone, with neighbours, and over neighbourhoods."""
        measured, scores = self.measured, self.scores
        graph = self._graph(NEAREST if self._options.finds_width else None)
        others = graph.maximum(graph.T).astype(np.float64)
        others.setdiag(0)
        others.eliminate_zeros()
        around = sparse.diags(1 / np.maximum(np.asarray(others.sum(1)).ravel(), 1)) @ others @ scores
        around = centred(np.asarray(around, np.float32), measured.section)
        products = self._second_moments(self._neighbourhoods() if last else iter(()))
        for site, own in self._sums.rows.items():
            x, y = scores[own].astype(np.float64), around[own].astype(np.float64)
            cross = x.T @ y
            products[site] |= {"products": x.T @ x, "products with neighbours": (cross + cross.T) / 2}
        return products

    def _second_moments(self, arrays: Iterator[tuple[str, np.ndarray]]) -> dict[str, dict[str, np.ndarray]]:
        """Sums of products of columns at each site."""
        found: dict[str, dict[str, np.ndarray]] = {site: {} for site in self._sums.rows}
        for name, array in arrays:
            for site, own in self._sums.rows.items():
                x = array[own].astype(np.float64)
                found[site][name] = x.T @ x
        return found

    def _neighbourhoods(self) -> Iterator[tuple[str, np.ndarray]]:
        """Components over the neighbourhoods that come into question, and what these miss of a spot left out."""
        finds = self._options.finds_width
        for width in WIDTHS if finds else (self._options.n_neighbours or 0,):
            graph = self._graph(width or None)
            if finds:
                yield missed_with(width), _missed(self.scores, hop_matrix(graph))
            if not self._options.mutual_weight:  # else they depend on the directions
                yield from self._hops(width, self._options.hop(self.measured, graph, self.scores))

    def _hops(self, width: int, hop: sparse.csr_matrix) -> Iterator[tuple[str, np.ndarray]]:
        """Components after each hop, around the mean of their section."""
        for number, x in enumerate(propagated(self.scores, hop, self._options.n_hops)[1:], 1):
            yield hop_of(width, number), centred(x, self.measured.section)

    def _rotate(self) -> None:
        """Directions of unit variance by how well spots follow their neighbours."""
        covariance = self.second["products"]
        if not np.trace(covariance) > 0:
            of = f" of '{self.measured.modality}'" if self.measured.modality else ""
            msg = f"Expected values{of} that differ between the spots of a section, found none. Name another layer."
            raise ValueError(msg)
        ridge = 1e-6 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        strength, rotation = eigh(self.second["products with neighbours"], covariance + ridge)
        order = np.argsort(-strength)
        rotation, strength = rotation[:, order], strength[order]
        rotation *= np.sign(rotation[np.abs(rotation).argmax(0), np.arange(len(order))])
        if not self._options.n_hops:  # spots as they are: no pattern of the tissue is preferred
            rotation, strength = np.eye(len(order)), np.ones(len(order))
        kept = self._options.sizes(self._n_vars)[1]
        self.rotation, self.strength = rotation[:, :kept], strength[:kept]

    def _graph(self, width: int | None) -> sparse.csr_matrix:
        """Spatial graph; several widths are compared, and one of them is kept."""
        if width not in self._graphs:
            self._graphs[width] = self._options.graph(self.measured, width)
        return self._graphs[width]


def missed_with(width: int) -> str:
    """Name of the second moments of what so many neighbours miss."""
    return f"missed with {width} neighbours"


def hop_of(width: int, number: int) -> str:
    """Name of the second moments after a hop over so many neighbours."""
    return f"hop {number} over {width} neighbours"


def variances(products: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Mean squares along directions, of second moments."""
    return np.einsum("ij,ik,kj->j", rotation, products, rotation)


def _missed(scores: np.ndarray, hop: sparse.csr_matrix) -> np.ndarray:
    """What the means of neighbours, two hops far, miss of a spot that they leave out."""
    own = np.asarray(hop.multiply(hop.T).sum(1)).reshape(-1, 1)
    predicted = (hop @ (hop @ scores) - own * scores) / np.maximum(1 - own, 1e-9)
    return scores - predicted


def _widened(x: np.ndarray, n_columns: int) -> np.ndarray:
    """Columns of 0 behind those that there are."""
    return np.hstack([x, np.zeros((len(x), n_columns - x.shape[1]))])
