"""Directions of one modality that follow the tissue, and neighbourhoods along them; all from sums over sites."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from scipy.linalg import eigh
from torch import Tensor

from scinfl import _names, pp
from scinfl._checks import number_between, whole_number
from scinfl._errors import TwoSitesWarning
from scinfl.federation import Payload, Protection, State
from scinfl.federation.rounds import are_elsewhere
from scinfl.model.base._cells import Matrix
from scinfl.model.spamosaic._batches import SpotTensors, centred, hop_matrix, propagated
from scinfl.model.spamosaic._measured import Measured
from scinfl.model.spamosaic._mutual_neighbours import section_pairs
from scinfl.model.spamosaic._normalise import normalised
from scinfl.model.spamosaic._spatial_graph import merged_graph, spatial_graph
from scinfl.pp.federated import SiteSums
from scinfl.privacy import Key

_SITE, _SECTION, _ALIGNED = "site", "section", "X_aligned"
_NEAREST = 12  # neighbours that show whether a direction follows the tissue
_WIDTHS = (6, 8, 12, 20, 30)
_TOLERANCE = 0.03
_LEAST_STRENGTH = 0.2
_MOST_STRENGTH = 0.98
_DAMPING = 0.4
_LEAST_INPUTS = 10
_SPOTS_A_PROTOTYPE = 80


_SCALES: dict[str, tuple[int | None, int]] = {"domain": (None, 2), "niche": (6, 1), "cell": (None, 0)}


def width_of(scale: str | int) -> tuple[int | None, int]:
    """Number of neighbours (``None`` is found from the data) and of hops of a scale.

    Raises
    ------
    ValueError
        If it is neither one of the scales nor a number of spots.
    """
    if isinstance(scale, int) and not isinstance(scale, bool):
        whole_number("scale", scale, 1)
        return scale, 2
    if scale not in _SCALES:
        msg = f"Expected `scale` to be one of {list(_SCALES)} or a number of spots, found {scale!r}."
        raise ValueError(msg)
    return _SCALES[scale]


@dataclass(frozen=True)
class BasisOptions:
    """How the directions and neighbourhoods of a modality are found."""

    n_components: int  # principal components that directions are sought among
    n_features: int  # features with the highest dispersion that components are found on, where there are more
    n_target: int  # most directions that are aligned and reconstructed
    n_hops: int  # how often neighbourhoods are averaged over
    n_neighbours: int | None = None  # nearest spots; ``None`` finds their number unless another rule is given
    radius: float | None = None  # largest distance of a neighbour
    delaunay: bool = False  # neighbours by triangulation
    compat: bool = False  # propagate as the published network does
    mutual_weight: float = 0.0  # of pairs of spots in different sections of a site that list each other
    given: str | None = None  # graph that the data bring, in place of these rules

    def __post_init__(self) -> None:
        for name, least in (("n_components", 1), ("n_features", 1), ("n_target", 1), ("n_hops", 0)):
            whole_number(name, getattr(self, name), least)
        if self.n_neighbours is not None:
            whole_number("n_neighbours", self.n_neighbours, 1)
        if self.radius is not None:
            number_between("radius", self.radius, 0, np.inf, open_low=True)
        number_between("mutual_weight", self.mutual_weight, 0, 1e6)
        rules = {"n_neighbours": self.n_neighbours, "radius": self.radius, "delaunay": self.delaunay or None}
        rules["n_hops"] = None if self.n_hops else 0
        if self.given is not None and (others := [name for name, value in rules.items() if value is not None]):
            msg = (
                f"Expected one definition of neighbours, found `graph={self.given!r}` and `{others[0]}`, which a "
                "`scale` other than 'domain' sets too. Leave out either."
            )
            raise ValueError(msg)

    def sizes(self, n_features: int) -> tuple[int, int, int]:
        """Principal components, directions and reconstructed directions of a modality; none of them wait for data."""
        n_components = min(self.n_components, n_features)
        n_target = min(self.n_target if self.n_hops else self.n_components, n_components)
        return n_components, min(max(n_target, _LEAST_INPUTS), n_components), n_target

    @property
    def finds_width(self) -> bool:
        """Whether the number of neighbours is found from the data."""
        rules = (self.n_neighbours, self.radius, self.given, self.delaunay or None)
        return self.n_hops > 0 and all(rule is None for rule in rules)

    def graph(self, measured: Measured, n_neighbours: int | None = None) -> sparse.csr_matrix:
        """Spatial graph of a modality's spots."""
        if measured.graph is not None:
            return measured.graph
        return spatial_graph(
            measured.coordinates,
            measured.section,
            n_neighbours=n_neighbours or self.n_neighbours or (None if self.n_hops else _NEAREST),
            radius=self.radius,
            delaunay=self.delaunay,
            directed=self.compat,
        )

    def hop(self, measured: Measured, graph: sparse.csr_matrix, directions: np.ndarray) -> sparse.csr_matrix:
        """Weights of one hop over the spatial graph, and over mutual neighbours between sections of a site."""
        if self.mutual_weight:
            pairs = section_pairs(directions, measured.section, measured.site)
            graph = merged_graph(graph, pairs, self.mutual_weight)
        return hop_matrix(graph, compat=self.compat)


@dataclass(frozen=True)
class SpatialBasis:
    r"""Directions among the principal components of a modality, by how well spots follow their neighbours.

    With components :math:`x_i` around the mean of their section, their covariance :math:`C` and the covariance
    :math:`C_1` between spots and the mean of their nearest others, directions solve :math:`C_1 v = \lambda C v`
    (Switzer & Green 1984, minimum/maximum autocorrelation factors): :math:`\lambda` is the share of a direction's
    variance that a neighbourhood explains, and what varies from spot to spot without regard to place comes last.
    """

    weights: np.ndarray  # of features in TF-IDF; empty otherwise
    deviation: np.ndarray  # of features
    mean: np.ndarray  # of scaled features
    components: np.ndarray  # features × principal components; 0 for features that were not chosen
    variance: np.ndarray  # of the principal components within sections, in the mean
    rotation: np.ndarray  # principal components × directions
    strength: np.ndarray  # λ of the directions, descending
    scale: np.ndarray  # root mean square of the inputs (hops × directions)
    neighbours: np.ndarray  # their number; 0 where another rule defines them

    def arrays(self, modality: str) -> State:
        """For a file."""
        return {f"{modality}/{field.name}": getattr(self, field.name) for field in fields(self)}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray], modality: str) -> Self:
        """From a file."""
        return cls(**{field.name: arrays[f"{modality}/{field.name}"] for field in fields(cls)})

    @property
    def n_target(self) -> int:
        """Directions that follow the tissue, at least two where there are."""
        return max(min(2, len(self.strength)), int((self.strength >= _LEAST_STRENGTH).sum()))

    def graph(self, measured: Measured, options: BasisOptions) -> sparse.csr_matrix:
        """Spatial graph of a modality's spots, as it was in training."""
        return options.graph(measured, int(self.neighbours[0]) or None)

    def normalised(self, measured: Measured, rows: np.ndarray) -> np.ndarray:
        """Normalised features of some spots (spots × features, dense)."""
        matrix = self._normalised(measured.matrix[rows], measured.normalise)
        dense = matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)
        return dense.astype(np.float32)

    def _normalised(self, matrix: Matrix, how: str) -> Matrix:
        return normalised(matrix, how, self.weights if len(self.weights) else None)

    def scores(self, measured: Measured) -> np.ndarray:
        """Principal components around the mean of their section (spots × components, float32)."""
        matrix = self._normalised(measured.matrix, measured.normalise)
        found = np.asarray(matrix @ (self.components / self.deviation[:, None])) - self.mean @ self.components
        return centred(found.astype(np.float32), measured.section)

    def inputs(self, scores: np.ndarray, section: np.ndarray, hop: sparse.csr_matrix, n_hops: int) -> np.ndarray:
        """Directions after 0, 1, … hops, one behind the other (spots × inputs, float32)."""
        hops = propagated((scores @ self.rotation).astype(np.float32), hop, n_hops)
        return np.hstack([centred(x, section) for x in hops]) / self.scale.astype(np.float32)

    def values(self, scores: np.ndarray) -> np.ndarray:
        """Principal components, divided by one number so that their mean variance is 1."""
        return (scores / np.sqrt(self.variance.mean())).astype(np.float32)

    def features(self, values: np.ndarray) -> np.ndarray:
        """Normalised features that :meth:`values` represent, around the mean of all spots (spots × features)."""
        scores = values * np.sqrt(self.variance.mean())
        return ((scores @ self.components.T + self.mean) * self.deviation).astype(np.float32)


class BasisFit:
    """What sites agree on for one modality before training, and what their spots are on it."""

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
        measured, options = self._measured, self._options
        weights, deviation, mean, components = self._components()
        empty = np.zeros(0)
        basis = SpatialBasis(weights, deviation, mean, components, empty, empty, empty, empty, empty)
        scores = basis.scores(measured)
        work = self._work(scores)
        sums = SiteSums(work, "spatial_directions", min_cells=1, **self._sum)
        covariance, rotation, strength, n_spots = self._directions(sums, scores)
        _, kept, _ = options.sizes(measured.matrix.shape[1])
        rotation, strength = rotation[:, :kept], strength[:kept]
        width = self._width(sums, scores @ rotation[:, 0]) if options.finds_width else options.n_neighbours or 0
        graph = self._graph(width or None)
        self._graphs.clear()
        self.hop = options.hop(measured, graph, scores @ rotation)
        scale = np.ones(kept * (options.n_hops + 1))
        parts = (weights, deviation, mean, components, np.diag(covariance).copy(), rotation, strength)
        unscaled = SpatialBasis(*parts, scale, np.array([width]))
        inputs = unscaled.inputs(scores, measured.section, self.hop, options.n_hops)
        squares = {site: {"square": np.square(inputs[own], dtype=np.float64).sum(0)} for site, own in sums.rows.items()}
        scale = np.sqrt(np.maximum(sums.mean("scale of neighbourhoods", squares)[0]["square"], 1e-12))
        sums.keep()
        self._list(work)
        self.basis = SpatialBasis(*parts, scale, np.array([width]))
        self.graph = graph
        self.inputs = (inputs / scale).astype(np.float32)
        self.values = self.basis.values(scores)
        self.target = self._target(inputs, scale, n_spots)

    def tensors(self, place: Tensor, *, values: bool, graph: bool) -> SpotTensors:
        """What the network reads and predicts of spots that are at these places."""
        inputs, target = torch.from_numpy(self.inputs), torch.from_numpy(self.target)
        known = torch.from_numpy(self.values) if values else None
        return SpotTensors(place, inputs, target, known, self.graph if graph else None)

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

    def _directions(self, sums: SiteSums, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """Covariance of the components, directions of unit variance by how well spots follow neighbours, and spots."""
        measured = self._measured
        graph = self._graph(_NEAREST if self._options.finds_width else None)
        others = graph.maximum(graph.T).astype(np.float64)
        others.setdiag(0)
        others.eliminate_zeros()
        around = sparse.diags(1 / np.maximum(np.asarray(others.sum(1)).ravel(), 1)) @ others @ scores
        around = centred(np.asarray(around, np.float32), measured.section)
        products = {}
        for site, own in sums.rows.items():
            x, y = scores[own].astype(np.float64), around[own].astype(np.float64)
            cross = x.T @ y
            products[site] = {"products": x.T @ x, "products with neighbours": (cross + cross.T) / 2}
        pooled, n_spots = sums.mean("directions of the tissue", products)
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

    def _graph(self, width: int | None) -> sparse.csr_matrix:
        """Spatial graph; several widths are compared, and one of them is kept."""
        if width not in self._graphs:
            self._graphs[width] = self._options.graph(self._measured, width)
        return self._graphs[width]

    def _target(self, inputs: np.ndarray, scale: np.ndarray, n_spots: int) -> np.ndarray:
        r"""Directions of the last hop that follow the tissue, aligned over sections (spots × n_target, float32).

        With the deviation :math:`s` of a direction after the last hop, :math:`r = s / \sqrt{1 - \lambda}` is how far it
        exceeds what varies from spot to spot. Each is scaled to deviation :math:`r^{0.4}`, nearer to one
        variance for all than to the noise, so that weak patterns count beside strong ones. Directions that do not
        follow the tissue are 0.
        """
        basis = self.basis
        n_outputs = self._options.sizes(self._measured.matrix.shape[1])[2]
        n_target = min(basis.n_target, n_outputs)
        last = inputs.shape[1] - len(basis.strength)
        deviation = scale[last : last + n_target]
        noise = np.sqrt(1 - np.clip(basis.strength[:n_target], 0, _MOST_STRENGTH))
        size = (deviation / noise) ** _DAMPING if self._options.n_hops else deviation
        size *= np.sqrt(n_outputs / np.square(size).sum())
        target = inputs[:, last : last + n_target] * (size / deviation)
        if len(np.unique(self._measured.section)) == 1 and not self._elsewhere:
            return _widened(target, n_outputs).astype(np.float32)
        work = self._work(np.zeros((len(target), 0), np.float32))
        work.obs[_SECTION] = self._measured.section
        work.obsm["X_target"] = target.astype(np.float32)
        pp.federated_offsets(
            work,
            **self._sum,
            batch_key=_SECTION,
            use_rep="X_target",
            n_prototypes=int(np.clip(n_spots // _SPOTS_A_PROTOTYPE, 4, 40)),
            diversity=0.0,
            width=0.05,
            key_added=_ALIGNED,
            rng=self._rng,
        )
        self._list(work)
        return _widened(np.asarray(work.obsm[_ALIGNED]), n_outputs).astype(np.float32)

    def _work(self, matrix: Matrix) -> AnnData:
        names = [f"spot_{number}" for number in range(len(self._measured.rows))]
        return AnnData(matrix, pd.DataFrame({_SITE: self._measured.site}, index=names))

    def _list(self, work: AnnData) -> None:
        """Add to the payload what functions of ``pp`` noted of their sums."""
        prefix = "" if self._measured.modality is None else f"{self._measured.modality}: "
        for table in work.uns[_names.UNS]["payload"].values():
            self._payload.extend(table.assign(purpose=prefix + table["purpose"]))


def _widened(x: np.ndarray, n_columns: int) -> np.ndarray:
    """Columns of 0 behind those that there are."""
    return np.hstack([x, np.zeros((len(x), n_columns - x.shape[1]))])
