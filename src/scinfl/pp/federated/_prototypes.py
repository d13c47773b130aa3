"""Prototypes of the cells of all sites: k-means of directions from sums over members."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import numpy as np

from scinfl.pp.federated._site_sums import Computation, SiteSums

_ROUNDS = 3  # of k-means after each split
_MORE_SPLITS = 2  # doublings beyond the least that would do, where some are dropped
_STEP = 0.5  # how far halves of a prototype are moved apart, in deviations


def find_prototypes(
    sites: SiteSums,
    directions: Mapping[str, np.ndarray],
    n_prototypes: int,
    min_members: int,
    n_rounds: int = _ROUNDS,
    n_dims: int = 1,
) -> Computation[np.ndarray]:
    """Find directions that the cells of all sites gather around (prototypes × dimensions).

    Starts from one and splits those of widest scatter until there are enough (Linde, Buzo & Gray 1980), so that no cell
    of a site ever serves as a start: in two along their widest dimension, or in four along two. A site adds its members
    of a prototype where it has ``min_members`` of them; prototypes that no site adds to are dropped.
    """
    alone = np.zeros((1, next(iter(directions.values())).shape[1]))  # all cells are nearest to the only one
    prototypes, counts, variances = yield from _move(sites, directions, alone, min_members)
    n_parts = 2**n_dims
    for _ in range(int(np.ceil((np.log2(n_prototypes) + _MORE_SPLITS) / n_dims))):
        scatter = np.where(counts >= n_parts * min_members, counts * variances.sum(1), 0)
        n_more = n_prototypes - len(prototypes)
        widest = np.argsort(-scatter, kind="stable")[: int(np.ceil(n_more / (n_parts - 1)))]
        widest = widest[scatter[widest] > 0]
        if not len(widest):
            break
        prototypes = _split(prototypes, variances, widest, n_dims)[:n_prototypes]
        for _ in range(n_rounds):
            prototypes, counts, variances = yield from _move(sites, directions, prototypes, min_members)
    return prototypes


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1 (rows); zeros stay."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)


def _move(
    sites: SiteSums, directions: Mapping[str, np.ndarray], prototypes: np.ndarray, min_members: int
) -> Computation[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """One round of k-means: new prototypes, their members, and the variance of each dimension among members."""
    sums = {}
    for site, own in directions.items():
        member = ((own @ prototypes.T).argmax(1)[:, None] == np.arange(len(prototypes))).astype(np.float64)
        counts = member.sum(0)
        member *= counts >= min_members
        sums[site] = {"members": member.sum(0), "coordinates": member.T @ own, "squares": member.T @ own**2}
    pooled, n = yield from sites.mean("prototypes", sums)
    counts = np.rint(pooled["members"] * n)
    kept = counts > 0
    mean, squares = ((pooled[name] * n)[kept] / counts[kept, None] for name in ("coordinates", "squares"))
    return unit(mean), counts[kept], np.maximum(squares - mean**2, 0)


def _split(prototypes: np.ndarray, variances: np.ndarray, chosen: np.ndarray, n_dims: int) -> np.ndarray:
    """Move copies of the chosen apart along their widest dimensions."""
    rows, others = np.arange(len(chosen)), np.delete(prototypes, chosen, axis=0)
    widest = np.argsort(-variances[chosen], axis=1, kind="stable")[:, :n_dims]
    copies = []
    for signs in product((1, -1), repeat=widest.shape[1]):
        moved = prototypes[chosen].copy()
        for sign, dimension in zip(signs, widest.T, strict=True):
            moved[rows, dimension] += sign * _STEP * np.sqrt(variances[chosen, dimension])
        copies.append(moved)
    return unit(np.concatenate([others, *copies]))
