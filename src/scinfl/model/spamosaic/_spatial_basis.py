"""Directions of one modality that follow the tissue, and neighbourhoods along them: how found, and what they give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from scipy import sparse

from scinfl._checks import number_between, whole_number
from scinfl.federation import State
from scinfl.model.base._cells import Matrix
from scinfl.model.spamosaic._batches import centred, hop_matrix, propagated
from scinfl.model.spamosaic._measured import Measured
from scinfl.model.spamosaic._mutual_neighbours import section_pairs
from scinfl.model.spamosaic._normalise import normalised
from scinfl.model.spamosaic._spatial_graph import merged_graph, spatial_graph

_LEAST_INPUTS = 10
NEAREST = 12  # neighbours that show whether a direction follows the tissue

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
    n_target: int | None  # leading components whose neighbourhoods are aligned and reconstructed; ``None`` takes all
    n_hops: int  # how often neighbourhoods are averaged over
    n_neighbours: int | None = None  # nearest spots; ``None`` finds their number unless another rule is given
    radius: float | None = None  # largest distance of a neighbour
    delaunay: bool = False  # neighbours by triangulation
    compat: bool = False  # propagate as the published network does
    mutual_weight: float = 0.0  # of pairs of spots in different sections of a site that list each other
    given: str | None = None  # graph that the data bring, in place of these rules

    def __post_init__(self) -> None:
        for name, least in (("n_components", 1), ("n_features", 1), ("n_hops", 0)):
            whole_number(name, getattr(self, name), least)
        for name in ("n_target", "n_neighbours"):
            if getattr(self, name) is not None:
                whole_number(name, getattr(self, name), 1)
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
        """Principal components, directions and reconstructed components of a modality; none of them wait for data."""
        n_components = min(self.n_components, n_features)
        n_target = min(self.n_target or n_components, n_components)
        return n_components, min(max(n_target, _LEAST_INPUTS), n_components), n_target

    @property
    def finds_width(self) -> bool:
        """Whether the number of neighbours is found from the data."""
        rules = (self.n_neighbours, self.radius, self.given, self.delaunay or None)
        return self.n_hops > 0 and all(rule is None for rule in rules)

    def graph(self, measured: Measured, n_neighbours: int | None = None) -> sparse.csr_matrix:
        """Spatial graph of a modality's spots."""
        if not len(measured.rows):  # another site measured it
            return sparse.csr_matrix((0, 0), dtype=np.float32)
        if measured.graph is not None:
            return measured.graph
        return spatial_graph(
            measured.coordinates,
            measured.section,
            n_neighbours=n_neighbours or self.n_neighbours or (None if self.n_hops else NEAREST),
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

    def neighbourhoods(self, inputs: np.ndarray) -> np.ndarray:
        """Principal components after the last hop, which the last of the inputs hold as directions."""
        n = len(self.strength)
        return inputs[:, -n:] @ (self.scale[-n:, None] * np.linalg.pinv(self.rotation))

    def values(self, scores: np.ndarray) -> np.ndarray:
        """Principal components, divided by one number so that their mean variance is 1."""
        return (scores / np.sqrt(self.variance.mean())).astype(np.float32)

    def features(self, values: np.ndarray) -> np.ndarray:
        """Normalised features that :meth:`values` represent, around the mean of all spots (spots × features)."""
        scores = values * np.sqrt(self.variance.mean())
        return ((scores @ self.components.T + self.mean) * self.deviation).astype(np.float32)
