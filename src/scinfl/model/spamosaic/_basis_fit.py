"""What sites agree on for one modality before training; all from sums over sites."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from scipy.linalg import eigh
from torch import Tensor

from scinfl import _names
from scinfl._errors import TwoSitesWarning
from scinfl.federation import Payload, Protection
from scinfl.federation.rounds import are_elsewhere
from scinfl.model.base._cells import Matrix
from scinfl.model.spamosaic._batches import SpotTensors, centred, hop_matrix, propagated
from scinfl.model.spamosaic._measured import Measured
from scinfl.model.spamosaic._normalise import normalised
from scinfl.model.spamosaic._spatial_basis import NEAREST, BasisOptions, SpatialBasis
from scinfl.pp.federated import (
    Rule,
    SiteSums,
    aligned,
    at_features,
    dispersions,
    latent_semantics,
    moments_of,
    principal_components,
    unlogged,
)
from scinfl.privacy import Key

_WIDTHS = (4, 6, 8, 12, 20, 30)
_TOLERANCE = 0.03
_SPOTS_A_PROTOTYPE = 80
_ALIGNMENT = Rule(diversity=0.0, width=0.05, shrinkage=1.0, min_members=3)
_ROUNDS = 12  # of alignment, an exchange each
_MOST_STRENGTH = 0.999
_FEWER_FEATURES = 500  # that normalisations are compared on
_MUCH_MORE = 1.2


class DirectionsFit:
    """Principal components of a modality over all sites, and directions among them by how they follow the tissue.

    Where the other sites are elsewhere, ``site`` names the one that is here, which may lack the modality.
    """

    def __init__(
        self,
        measured: Measured,
        options: BasisOptions,
        *,
        key: Key | None,
        protections: Sequence[Protection] | None,
        payload: Payload,
        rng: int,
        site: str | None = None,
    ) -> None:
        self._measured, self._options, self._rng = measured, options, rng
        self._elsewhere = are_elsewhere(protections or ())
        self._graphs: dict[int | None, sparse.csr_matrix] = {}
        work = AnnData(obs=pd.DataFrame(index=[f"spot_{number}" for number in range(len(measured.rows))]))
        names = np.unique(measured.site).tolist() if site is None else [site]
        rows = {name: np.flatnonzero(measured.site == name) for name in names}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TwoSitesWarning)  # the model warns once for all sums
            self._sums = SiteSums(work, "spatial_basis", rows=rows, key=key, protections=protections)
            self._fit()
        self._sums.keep()
        prefix = "" if measured.modality is None else f"{measured.modality}: "
        table = work.uns[_names.UNS]["payload"]["spatial_basis"]
        payload.extend(table.assign(purpose=prefix + table["purpose"]))

    def _fit(self) -> None:
        self._parts = self._components()
        empty = np.zeros(0)
        self.scores = SpatialBasis(*self._parts, empty, empty, empty, empty, empty).scores(self._measured)
        self.covariance, rotation, strength, self.n_spots = self._directions()
        kept = self._options.sizes(self._measured.matrix.shape[1])[1]
        self.rotation, self.strength = rotation[:, :kept], strength[:kept]

    @property
    def information(self) -> float:
        r"""What the neighbours of a spot say about it, :math:`-\frac12 \sum \log(1 - \lambda)` nats."""
        return float(-np.log(1 - np.clip(self.strength, 0, _MOST_STRENGTH)).sum() / 2)

    def _components(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Weights, deviation and mean of features, and their principal components, from sums over sites."""
        measured, n_vars = self._measured, self._measured.matrix.shape[1]
        latent = measured.normalise == "tfidf"
        matrix = measured.matrix if latent else normalised(measured.matrix, measured.normalise)
        are_few = n_vars <= self._options.n_features
        logarithms = normalised(matrix, "log1p") if latent and not are_few else matrix
        parts = [*([] if latent else [(matrix, None)]), *([] if are_few else [(logarithms, unlogged())])]
        moments = moments_of(self._sums, parts, "moments of features")[0] if parts else []
        columns = np.arange(n_vars)
        if not are_few:
            chosen = dispersions(*moments[-1], self._options.n_features, "seurat")["highly_variable"]
            columns = np.flatnonzero(chosen)
        n_kept = self._options.sizes(n_vars)[0]
        n_components = self._n_components(min(n_kept, len(columns) - latent), latent=latent)
        if latent:
            weights, _, found, _ = latent_semantics(self._sums, matrix, columns, n_components + 1)
            weights, found = (at_features(columns, own, n_vars) for own in (weights, found))
            mean = self._mean(normalised(matrix, "tfidf", weights))
            return weights, np.ones(n_vars), mean, _widened(found[:, 1:], n_kept)  # the first follows the depth
        mean, variance = moments[0]
        deviation = np.where(variance > 0, np.sqrt(variance), 1)
        scaled = matrix[:, columns]
        scaled = (
            scaled @ sparse.diags(1 / deviation[columns]) if sparse.issparse(scaled) else scaled / deviation[columns]
        )
        centre, every = (mean / deviation)[columns], np.arange(len(columns))
        _, found, _ = principal_components(self._sums, scaled, every, n_components, centre)
        mean, found = (at_features(columns, own, n_vars) for own in (centre, found))
        return np.zeros(0), deviation, mean, _widened(found, n_kept)

    def _n_components(self, n: int, *, latent: bool) -> int:
        """Principal components that there are."""
        n_spots = len(self._measured.rows)
        if not self._elsewhere:
            return min(n, n_spots - 1 - latent)
        if 0 < n_spots < n + 1 + latent:
            msg = (
                f"Expected at least {n + 1 + latent} spots at every site of its own machine, as many as principal "
                f"components need, found {n_spots}. Lower `n_components`, or leave this site out."
            )
            raise ValueError(msg)
        return n

    def _mean(self, matrix: Matrix) -> np.ndarray:
        """Mean of features over all sites."""
        rows = self._sums.rows.items()
        totals = {site: {"sum": np.asarray(matrix[own].sum(0), np.float64).ravel()} for site, own in rows}
        return self._sums.mean("mean of features", totals)[0]["sum"]

    def _directions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """Covariance of the components, directions of unit variance by how well spots follow neighbours, and spots."""
        measured, scores = self._measured, self.scores
        graph = self._graph(NEAREST if self._options.finds_width else None)
        others = graph.maximum(graph.T).astype(np.float64)
        others.setdiag(0)
        others.eliminate_zeros()
        around = sparse.diags(1 / np.maximum(np.asarray(others.sum(1)).ravel(), 1)) @ others @ scores
        around = centred(np.asarray(around, np.float32), measured.section)
        products = {}
        for site, own in self._sums.rows.items():
            x, y = scores[own].astype(np.float64), around[own].astype(np.float64)
            cross = x.T @ y
            products[site] = {"products": x.T @ x, "products with neighbours": (cross + cross.T) / 2}
        pooled, n_spots = self._sums.mean("directions of the tissue", products)
        covariance = pooled["products"]
        if not np.trace(covariance) > 0:
            of = f" of '{measured.modality}'" if measured.modality else ""
            msg = f"Expected values{of} that differ between the spots of a section, found none. Name another layer."
            raise ValueError(msg)
        ridge = 1e-6 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        strength, rotation = eigh(pooled["products with neighbours"], covariance + ridge)
        order = np.argsort(-strength)
        rotation = rotation[:, order]
        rotation *= np.sign(rotation[np.abs(rotation).argmax(0), np.arange(len(order))])
        if not self._options.n_hops:  # spots as they are: no pattern of the tissue is preferred
            rotation, strength, order = np.eye(len(order)), np.ones(len(order)), np.arange(len(order))
        return covariance, rotation, strength[order], n_spots

    def _graph(self, width: int | None) -> sparse.csr_matrix:
        """Spatial graph; several widths are compared, and one of them is kept."""
        if width not in self._graphs:
            self._graphs[width] = self._options.graph(self._measured, width)
        return self._graphs[width]


class BasisFit(DirectionsFit):
    """What sites agree on for one modality before training, and what their spots are on it."""

    def _fit(self) -> None:
        super()._fit()
        measured, options, scores, sums = self._measured, self._options, self.scores, self._sums
        finds = options.finds_width
        width = self._width(scores @ self.rotation[:, 0]) if finds else options.n_neighbours or 0
        self.graph = self._graph(width or None)
        self._graphs.clear()
        self.hop = options.hop(measured, self.graph, scores @ self.rotation)
        scale = np.ones(len(self.strength) * (options.n_hops + 1))
        parts = (*self._parts, np.diag(self.covariance).copy(), self.rotation, self.strength)
        unscaled = SpatialBasis(*parts, scale, np.array([width]))
        inputs = unscaled.inputs(scores, measured.section, self.hop, options.n_hops)
        n_target = options.sizes(measured.matrix.shape[1])[2]
        around = centred(propagated(scores[:, :n_target], self.hop, options.n_hops)[-1], measured.section)
        squares = {
            site: {name: np.square(x[own], dtype=np.float64).sum(0) for name, x in (("hops", inputs), ("last", around))}
            for site, own in sums.rows.items()
        }
        pooled = sums.mean("scale of neighbourhoods", squares)[0]
        scale = np.sqrt(np.maximum(pooled["hops"], 1e-12))
        self.basis = SpatialBasis(*parts, scale, np.array([width]))
        self.inputs = (inputs / scale).astype(np.float32)
        self.values = self.basis.values(scores)
        self.target = self._aligned(around / np.sqrt(max(pooled["last"].mean(), 1e-12)))

    def tensors(self, place: Tensor, *, values: bool, graph: bool) -> SpotTensors:
        """What the network reads and predicts of spots that are at these places."""
        inputs, target = torch.from_numpy(self.inputs), torch.from_numpy(self.target)
        known = torch.from_numpy(self.values) if values else None
        return SpotTensors(place, inputs, target, known, self.graph if graph else None)

    def _width(self, direction: np.ndarray) -> int:
        """Most neighbours whose means, two hops far, still predict the strongest direction of a spot they leave out."""
        missed: dict[str, list[float]] = {site: [] for site in self._sums.rows}
        for width in _WIDTHS:
            hop = hop_matrix(self._graph(width))
            own = np.asarray(hop.multiply(hop.T).sum(1)).ravel()
            predicted = (hop @ (hop @ direction) - own * direction) / np.maximum(1 - own, 1e-9)
            for site, rows in self._sums.rows.items():
                missed[site].append(float(((direction - predicted)[rows] ** 2).sum()))
        arrays = {site: {"missed": np.array([*values, 0.0])} for site, values in missed.items()}
        for site, rows in self._sums.rows.items():
            arrays[site]["missed"][-1] = float((direction[rows] ** 2).sum())
        *left, total = self._sums.mean("width of neighbourhoods", arrays)[0]["missed"]
        explained = 1 - np.array(left) / max(total, 1e-12)
        good = np.flatnonzero(explained >= (1 - _TOLERANCE) * explained.max())
        return _WIDTHS[int(good.max()) if explained.max() > 0 else -1]

    def _aligned(self, target: np.ndarray) -> np.ndarray:
        """Components of neighbourhoods, aligned over sections (spots × n_target, float32)."""
        if len(np.unique(self._measured.section)) == 1 and not self._elsewhere:
            return target.astype(np.float32)
        found, _, _ = aligned(
            self._sums,
            target,
            np.unique(self._measured.section, return_inverse=True)[1],
            int(np.clip(self.n_spots // _SPOTS_A_PROTOTYPE, 4, 40)),
            _ALIGNMENT,
            max_rounds=_ROUNDS,
            n_assignments=1,
            n_dims=2,
            rng=self._rng,
        )
        return found


def normalisation_of_counts(measured: Measured, options: BasisOptions, **sums: Any) -> str:
    """``"clr"`` where neighbours say clearly more about spots in centred log ratios, else ``"lognorm"``.

    Where depth is part of the tissue, dividing by it removes what the sections are divided by. That shows without
    labels: what neighbours say about a spot falls by much. Most of the time it does not, and depth is noise.
    """
    options = replace(options, n_features=min(options.n_features, _FEWER_FEATURES))
    logs, ratios = (
        DirectionsFit(replace(measured, normalise=how), options, **sums).information for how in ("lognorm", "clr")
    )
    return "clr" if ratios > _MUCH_MORE * logs else "lognorm"


def _widened(x: np.ndarray, n_columns: int) -> np.ndarray:
    """Columns of 0 behind those that there are."""
    return np.hstack([x, np.zeros((len(x), n_columns - x.shape[1]))])
