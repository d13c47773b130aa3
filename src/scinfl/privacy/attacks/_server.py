"""What a server learns about the key from what it is sent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from scipy.optimize import quadratic_assignment

from scinfl.federation import Protection, Update
from scinfl.privacy.aggregation._aggregator import MASKED
from scinfl.privacy.aggregation._fixed_point import FixedPoint


class Watcher(Protection):
    """A server that keeps everything it is sent. Put it last among the protections: it hides nothing.

    Attributes
    ----------
    seen
        Every upload, as it arrived, by round.
    """

    watches: ClassVar[bool] = True

    def __init__(self) -> None:
        self.seen: dict[int, list[Update]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def begin_round(self, site: str, round: int, state: Mapping[str, np.ndarray]) -> None:
        """Note which parameters travel: names and shapes are no secret, and give the place of each in a masked sum."""
        del site, round
        self._shapes = {name: np.shape(array) for name, array in state.items()}

    def combine(self, encoded: Sequence[Update]) -> None:
        """Keep what arrived; others sum."""
        if encoded[0].purpose == "training":
            self.seen[encoded[0].round] = list(encoded)

    def mean(self, name: str, shape: tuple[int, ...]) -> list[np.ndarray]:
        """Mean of a parameter in each round, as far as the server can compute it.

        Masked uploads hold no parameters by name but all of them in the order of their names. The server adds them up
        and takes the integers at the place of the parameter for numbers: the result is the mean where the masks
        cancel in the sum, else noise.

        Parameters
        ----------
        name
            Name of the parameter.
        shape
            Its shape.

        Raises
        ------
        KeyError
            If no parameter of this name and shape travelled.
        """
        means = []
        for uploads in self.seen.values():
            if name in uploads[0].state:
                sizes = [upload.weight for upload in uploads]
                means.append(np.average([upload.state[name] for upload in uploads], axis=0, weights=sizes))
                continue
            if self._shapes.get(name) != tuple(shape):
                msg = f"Expected a parameter that travels, found '{name}' of shape {shape} among {self._shapes}."
                raise KeyError(msg)
            start = sum(math.prod(size) for other, size in self._shapes.items() if other < name)
            means.append(_added(uploads)[start : start + math.prod(shape)].reshape(shape))
        return means


def _added(uploads: Sequence[Update]) -> np.ndarray:
    """Sum of masked uploads, read as the fixed-point numbers that they would be without masks."""
    total = sum((upload.state[MASKED] for upload in uploads[1:]), start=uploads[0].state[MASKED])
    bound = 2.0 ** int.from_bytes(uploads[0].header["bound"], "big", signed=True)
    return FixedPoint(8 * total.itemsize, bound).decode(total)


def match_features(
    weights: Sequence[np.ndarray], public: np.ndarray, *, n_restarts: int = 25, rng: int = 0
) -> np.ndarray:
    r"""Guess which feature each column of a locked first layer reads, from how the columns move together.

    Columns of a first layer move as the features do that they read: the correlation of columns over all changes
    :math:`W_{r+1} - W_r` (the first quarter of the rounds, which only separates the classes, left out) resembles the
    correlation of the features, up to the permutation and the signs of the key. Both are taken absolute, centred and
    brought to the same distribution, and matched by a quadratic assignment (FAQ, Vogelstein et al. 2015). Starts are
    random around a soft assignment of columns and features whose sorted similarities to all others agree; from
    barycentric or uniformly random starts the search finds next to nothing.

    Parameters
    ----------
    weights
        The layer's weight (units × features) after each round, as the server sees it; a single one is matched as it is.
    public
        Public samples (n × features) of the same kind.
    n_restarts
        Starts; with few, the search misses what is there and would pass a broken lock as safe.
    rng
        Seed of the starts.

    Returns
    -------
    For every column, the index of the feature that it is taken to read.
    """
    stacked = np.stack([np.asarray(weight, dtype=np.float64) for weight in weights])
    changes = np.diff(stacked, axis=0)[len(stacked) // 4 :] if len(stacked) > 1 else stacked
    columns = _similarity(changes.reshape(-1, changes.shape[-1]))
    features = _similarity(np.asarray(public, dtype=np.float64))
    upper = np.triu_indices(len(columns), 1)
    values = np.empty(len(upper[0]))
    values[np.argsort(columns[upper])] = np.sort(features[upper])
    columns = np.zeros_like(columns)
    columns[upper] = values
    columns += columns.T
    profiles = np.sort(columns, axis=1), np.sort(features, axis=1)
    distance = sum(np.square(profiles[0][:, [k]] - profiles[1][:, k]) for k in range(len(columns)))
    generator = np.random.default_rng(rng)
    best, found = -np.inf, np.arange(len(columns))
    for _ in range(n_restarts):
        temperature = np.quantile(distance, 0.05) * generator.uniform(0.3, 1.3)
        start = np.exp(-distance / temperature + 0.5 * generator.normal(size=distance.shape)) + 1e-4
        options = {"maximize": True, "P0": _doubly_stochastic(start), "maxiter": 200, "tol": 1e-6}
        result = quadratic_assignment(columns, features, options=options)
        if result.fun > best:
            best, found = result.fun, result.col_ind
    return found


def _doubly_stochastic(matrix: np.ndarray) -> np.ndarray:
    """Scale rows and columns in turn (Sinkhorn) until all sum to one."""
    for _ in range(5000):
        matrix = matrix / matrix.sum(1, keepdims=True)
        matrix = matrix / matrix.sum(0, keepdims=True)
        if np.abs(matrix.sum(1) - 1).max() < 1e-9:
            return matrix
    return np.full_like(matrix, 1 / len(matrix))


def _similarity(rows: np.ndarray) -> np.ndarray:
    """Absolute correlation of columns without its diagonal, centred over rows and columns."""
    with np.errstate(invalid="ignore", divide="ignore"):
        similarity = np.abs(np.nan_to_num(np.corrcoef(rows, rowvar=False)))
    np.fill_diagonal(similarity, 0)
    return similarity - similarity.mean(0) - similarity.mean(1)[:, None] + similarity.mean()
