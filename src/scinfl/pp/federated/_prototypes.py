"""Prototypes of the cells of all sites: k-means of directions from sums over members."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from scinfl.pp.federated._site_sums import SiteSums

_ROUNDS = 3  # rounds of k-means after each doubling
_MORE_SPLITS = 2  # doublings beyond the least that would do, where some are dropped
_STEP = 0.5  # how far halves of a prototype are moved apart, in deviations


def find_prototypes(
    sites: SiteSums, directions: Mapping[str, np.ndarray], n_prototypes: int, min_members: int
) -> np.ndarray:
    """Find directions that the cells of all sites gather around (prototypes × dimensions).

    Starts from one and splits those of widest scatter in two until there are enough (Linde, Buzo & Gray 1980), so that
    no cell of a site ever serves as a start. Coordinates are summed only over prototypes with ``min_members`` cells in
    all; others are dropped.
    """
    alone = np.zeros((1, next(iter(directions.values())).shape[1]))  # all cells are nearest to the only one
    prototypes, counts, variances = _move(sites, directions, alone, min_members)
    for _ in range(int(np.ceil(np.log2(n_prototypes))) + _MORE_SPLITS):
        scatter = np.where(counts >= 2 * min_members, counts * variances.sum(1), 0)
        widest = np.argsort(-scatter, kind="stable")[: n_prototypes - len(prototypes)]
        widest = widest[scatter[widest] > 0]
        if not len(widest):
            break
        prototypes = _split(prototypes, variances, widest)
        for _ in range(_ROUNDS):
            prototypes, counts, variances = _move(sites, directions, prototypes, min_members)
    return prototypes


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1 (rows); zeros stay."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)


def _move(
    sites: SiteSums, directions: Mapping[str, np.ndarray], prototypes: np.ndarray, min_members: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One round of k-means: new prototypes, their members, and the variance of each dimension among members."""
    k = len(prototypes)
    nearest = {site: (own @ prototypes.T).argmax(1) for site, own in directions.items()}
    sums = {site: {"members": np.bincount(own, minlength=k).astype(float)} for site, own in nearest.items()}
    pooled, n = sites.mean("prototypes, members", sums)
    counts = np.rint(pooled["members"] * n)
    kept = np.flatnonzero(counts >= min_members)
    sums = {}
    for site, own in directions.items():
        member = (nearest[site][:, None] == kept).astype(np.float64)
        sums[site] = {"coordinates": member.T @ own, "squares": member.T @ own**2}
    pooled, n = sites.mean("prototypes, coordinates", sums)
    counts = counts[kept]
    mean = pooled["coordinates"] * n / counts[:, None]
    variances = np.maximum(pooled["squares"] * n / counts[:, None] - mean**2, 0)
    return unit(mean), counts, variances


def _split(prototypes: np.ndarray, variances: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Move two copies of the chosen apart along their widest dimension."""
    step = np.zeros((len(chosen), prototypes.shape[1]))
    widest = variances[chosen].argmax(1)
    step[np.arange(len(chosen)), widest] = _STEP * np.sqrt(variances[chosen, widest])
    moved = prototypes.copy()
    moved[chosen] = prototypes[chosen] + step
    return unit(np.concatenate([moved, prototypes[chosen] - step]))
