"""How smooth clusters and embeddings are in space; every score is taken by section and averaged over sections."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.spatial import KDTree

from scinfl.metrics._embedding._mixing import nearest

_SPOTS = 10
_ABNORMAL = 0.6


def spatial_neighbours(coordinates: np.ndarray, section: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows of each section, and for each of them the places among these rows of its 10 nearest spots."""
    by_section = [np.flatnonzero(section == s) for s in np.unique(section)]
    return [(rows, nearest(coordinates[rows], _SPOTS)[1]) for rows in by_section if len(rows) > 1]


def pas(neighbours: list[tuple[np.ndarray, np.ndarray]], clusters: np.ndarray) -> float:
    """Proportion of abnormal spots: unlike at least 6 of their 10 nearest spots (Shang & Zhou 2022).

    In a section of fewer than 11 spots, unlike at least 60 % of all others.
    """
    scores = []
    for rows, around in neighbours:
        own = clusters[rows]
        unlike = (own[around] != own[:, None]).sum(1)
        scores.append(np.mean(unlike >= _ABNORMAL * around.shape[1] - 1e-9))
    return float(np.mean(scores)) if scores else np.nan


def chaos(coordinates: np.ndarray, section: np.ndarray, clusters: np.ndarray) -> float:
    """Mean distance from a spot to the nearest spot of its cluster (Shang & Zhou 2022).

    Each axis of a section is scaled to standard deviation 1. Spots that are alone in their cluster have no such
    distance and are left out.
    """
    scores = []
    for s in np.unique(section):
        rows = np.flatnonzero(section == s)
        spread = coordinates[rows].std(0)
        scaled = coordinates[rows] / np.where(spread > 0, spread, 1)
        distances = [
            KDTree(points).query(points, k=2)[0][:, 1]
            for points in _by_cluster(scaled, clusters[rows])
            if len(points) > 1
        ]
        if distances:
            scores.append(np.concatenate(distances).mean())
    return float(np.mean(scores)) if scores else np.nan


def morans_i(neighbours: list[tuple[np.ndarray, np.ndarray]], values: np.ndarray) -> float:
    """Moran's I of each column with the weights 1/k to the k nearest spots, mean over columns.

    I = Σ_ij w_ij z_i z_j / Σ_i z_i², z the deviation from the section's mean (Moran 1950; rows of w sum to 1). Columns
    that are constant in a section have none.
    """
    scores = []
    for rows, around in neighbours:
        z = values[rows] - values[rows].mean(0)
        lag = sum(z[around[:, j]] for j in range(around.shape[1])) / around.shape[1]
        power = (z**2).sum(0)
        varying = power > 1e-12 * np.maximum((values[rows] ** 2).sum(0), 1e-300)
        if varying.any():
            scores.append(np.mean((z * lag).sum(0)[varying] / power[varying]))
    return float(np.mean(scores)) if scores else np.nan


def _by_cluster(points: np.ndarray, clusters: np.ndarray) -> Iterator[np.ndarray]:
    for cluster in np.unique(clusters):
        yield points[clusters == cluster]
