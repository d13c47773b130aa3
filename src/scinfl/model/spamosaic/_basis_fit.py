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

from scinfl import _names, pp
from scinfl._errors import TwoSitesWarning
from scinfl.federation import Payload, Protection
from scinfl.federation.rounds import are_elsewhere
from scinfl.model.base._cells import Matrix
from scinfl.model.spamosaic._batches import SpotTensors, centred, hop_matrix, propagated
from scinfl.model.spamosaic._measured import Measured
from scinfl.model.spamosaic._normalise import normalised
from scinfl.model.spamosaic._spatial_basis import NEAREST, BasisOptions, SpatialBasis
from scinfl.pp.federated import SiteSums
from scinfl.privacy import Key

_SITE, _SECTION, _ALIGNED = "site", "section", "X_aligned"
_WIDTHS = (4, 6, 8, 12, 20, 30)
_TOLERANCE = 0.03
_SPOTS_A_PROTOTYPE = 80
_MOST_STRENGTH = 0.999
_FEWER_FEATURES = 500  # that normalisations are compared on
_MUCH_MORE = 1.2


class DirectionsFit:
    """Principal components of a modality over all sites, and directions among them by how they follow the tissue."""

    def __init__(
        self,
        measured: Measured,
        options: BasisOptions,
        *,
        key: Key | None,
        protections: Sequence[Protection] | None,
        payload: Payload,
        rng: int,
    ) -> None:
        self._measured, self._options, self._payload, self._rng = measured, options, payload, rng
        self._sum: dict[str, Any] = {"site_key": _SITE, "key": key, "protections": protections}
        self._elsewhere = are_elsewhere(protections or ())
        self._graphs: dict[int | None, sparse.csr_matrix] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TwoSitesWarning)  # the model warns once for all sums
            self._fit()

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
        work = self._work(measured.matrix if latent else normalised(measured.matrix, measured.normalise))
        chosen = None
        if n_vars > self._options.n_features:
            scaled = self._work(normalised(measured.matrix, "log1p")) if latent else work
            pp.federated_highly_variable_genes(scaled, self._options.n_features, min_cells=1, **self._sum)
            self._list(scaled)
            chosen = scaled.var["highly_variable"].to_numpy()
        n_features = n_vars if chosen is None else int(chosen.sum())
        n_kept = self._options.sizes(n_vars)[0]
        n_components = min(n_kept, n_features - latent)
        if self._elsewhere and work.n_obs - 1 - latent < n_components:
            msg = (
                f"Expected at least {n_components + 1 + latent} spots at every site of its own machine, as many as "
                f"principal components need, found {work.n_obs}. Lower `n_components`, or leave this site out."
            )
            raise ValueError(msg)
        n_components = min(n_components, work.n_obs - 1 - latent)
        if latent:
            pp.federated_lsi(work, n_components, mask_var=chosen, min_cells=1, **self._sum)
            self._list(work)
            found = np.asarray(work.varm["LSI"], np.float64)[:, 1:]  # the first follows the depth of a spot
            weights = np.asarray(work.uns["lsi"]["weights"])
            mean = self._mean(normalised(measured.matrix, "tfidf", weights))
            return weights, np.ones(n_vars), mean, _widened(found, n_kept)
        pp.federated_scale(work, zero_mean=False, min_cells=1, **self._sum)
        pp.federated_pca(work, n_components, mask_var=chosen, min_cells=1, **self._sum)
        self._list(work)
        deviation = np.asarray(work.var["std"], np.float64)
        mean = np.asarray(work.uns["pca"]["mean"], np.float64)
        found = np.asarray(work.varm["PCs"], np.float64)
        return np.zeros(0), np.where(deviation > 0, deviation, 1), mean, _widened(found, n_kept)

    def _mean(self, matrix: Matrix) -> np.ndarray:
        """Mean of features over all sites."""
        work = self._work(matrix)
        sums = SiteSums(work, "mean", min_cells=1, **self._sum)
        totals = {site: {"sum": np.asarray(matrix[own].sum(0), np.float64).ravel()} for site, own in sums.rows.items()}
        mean = sums.mean("mean of features", totals)[0]["sum"]
        sums.keep()
        self._list(work)
        return mean

    def _directions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """Covariance of the components, directions of unit variance by how well spots follow neighbours, and spots."""
        measured, scores = self._measured, self.scores
        graph = self._graph(NEAREST if self._options.finds_width else None)
        others = graph.maximum(graph.T).astype(np.float64)
        others.setdiag(0)
        others.eliminate_zeros()
        around = sparse.diags(1 / np.maximum(np.asarray(others.sum(1)).ravel(), 1)) @ others @ scores
        around = centred(np.asarray(around, np.float32), measured.section)
        work, products = self._work(scores), {}
        sums = SiteSums(work, "spatial_directions", min_cells=1, **self._sum)
        for site, own in sums.rows.items():
            x, y = scores[own].astype(np.float64), around[own].astype(np.float64)
            cross = x.T @ y
            products[site] = {"products": x.T @ x, "products with neighbours": (cross + cross.T) / 2}
        pooled, n_spots = sums.mean("directions of the tissue", products)
        sums.keep()
        self._list(work)
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

    def _work(self, matrix: Matrix) -> AnnData:
        names = [f"spot_{number}" for number in range(len(self._measured.rows))]
        return AnnData(matrix, pd.DataFrame({_SITE: self._measured.site}, index=names))

    def _list(self, work: AnnData) -> None:
        """Add to the payload what functions of ``pp`` noted of their sums."""
        prefix = "" if self._measured.modality is None else f"{self._measured.modality}: "
        for table in work.uns[_names.UNS]["payload"].values():
            self._payload.extend(table.assign(purpose=prefix + table["purpose"]))


class BasisFit(DirectionsFit):
    """What sites agree on for one modality before training, and what their spots are on it."""

    def _fit(self) -> None:
        super()._fit()
        measured, options, scores = self._measured, self._options, self.scores
        work = self._work(scores)
        sums = SiteSums(work, "neighbourhoods", min_cells=1, **self._sum)
        finds = options.finds_width
        width = self._width(sums, scores @ self.rotation[:, 0]) if finds else options.n_neighbours or 0
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
        sums.keep()
        self._list(work)
        self.basis = SpatialBasis(*parts, scale, np.array([width]))
        self.inputs = (inputs / scale).astype(np.float32)
        self.values = self.basis.values(scores)
        self.target = self._aligned(around / np.sqrt(max(pooled["last"].mean(), 1e-12)))

    def tensors(self, place: Tensor, *, values: bool, graph: bool) -> SpotTensors:
        """What the network reads and predicts of spots that are at these places."""
        inputs, target = torch.from_numpy(self.inputs), torch.from_numpy(self.target)
        known = torch.from_numpy(self.values) if values else None
        return SpotTensors(place, inputs, target, known, self.graph if graph else None)

    def _width(self, sums: SiteSums, direction: np.ndarray) -> int:
        """Most neighbours whose means, two hops far, still predict the strongest direction of a spot they leave out."""
        missed: dict[str, list[float]] = {site: [] for site in sums.rows}
        for width in _WIDTHS:
            hop = hop_matrix(self._graph(width))
            own = np.asarray(hop.multiply(hop.T).sum(1)).ravel()
            predicted = (hop @ (hop @ direction) - own * direction) / np.maximum(1 - own, 1e-9)
            for site, rows in sums.rows.items():
                missed[site].append(float(((direction - predicted)[rows] ** 2).sum()))
        arrays = {site: {"missed": np.array([*values, 0.0])} for site, values in missed.items()}
        for site, rows in sums.rows.items():
            arrays[site]["missed"][-1] = float((direction[rows] ** 2).sum())
        *left, total = sums.mean("width of neighbourhoods", arrays)[0]["missed"]
        explained = 1 - np.array(left) / max(total, 1e-12)
        good = np.flatnonzero(explained >= (1 - _TOLERANCE) * explained.max())
        return _WIDTHS[int(good.max()) if explained.max() > 0 else -1]

    def _aligned(self, target: np.ndarray) -> np.ndarray:
        """Components of neighbourhoods, aligned over sections (spots × n_target, float32)."""
        if len(np.unique(self._measured.section)) == 1 and not self._elsewhere:
            return target.astype(np.float32)
        work = self._work(np.zeros((len(target), 0), np.float32))
        work.obs[_SECTION] = self._measured.section
        work.obsm["X_target"] = target.astype(np.float32)
        pp.federated_offsets(
            work,
            **self._sum,
            batch_key=_SECTION,
            use_rep="X_target",
            n_prototypes=int(np.clip(self.n_spots // _SPOTS_A_PROTOTYPE, 4, 40)),
            diversity=0.0,
            width=0.05,
            key_added=_ALIGNED,
            rng=self._rng,
        )
        self._list(work)
        return np.asarray(work.obsm[_ALIGNED], np.float32)


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
