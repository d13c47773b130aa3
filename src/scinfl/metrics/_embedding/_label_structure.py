"""Whether an embedding keeps cells of a label together, within and across batches."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier

_TRANSFER_NEIGHBOURS = 10


def graph_connectivity(neighbours: np.ndarray, labels: np.ndarray) -> float:
    """Share of a label's cells in the largest piece of its part of the kNN graph, mean over labels.

    Luecken et al. (2022). Links count in both directions. Cells of label −1 have none and are left out.
    """
    n, k = neighbours.shape
    rows, columns = np.repeat(np.arange(n), k), neighbours.ravel()
    within = labels[rows] == labels[columns]
    graph = sparse.csr_array((np.ones(within.sum()), (rows[within], columns[within])), shape=(n, n))
    pieces = connected_components(graph, directed=False)[1]
    # no link leaves a label, so a piece belongs to one label and one pass finds the pieces of all
    sizes = np.bincount(pieces)
    known = np.unique(labels[labels >= 0])
    return float(np.mean([sizes[pieces[labels == label]].max() / (labels == label).sum() for label in known]))


def label_transfer(X: np.ndarray, labels: np.ndarray, batch: np.ndarray) -> float:
    """Macro F1 of labels that the 10 nearest cells of all other batches vote for, mean over batches.

    A label that occurs in one batch only cannot be transferred and counts as missed.
    """
    scores = []
    for b in np.unique(batch):
        own = batch == b
        if not own.all():
            voters = KNeighborsClassifier(n_neighbors=min(_TRANSFER_NEIGHBOURS, int((~own).sum())))
            guess = voters.fit(X[~own], labels[~own]).predict(X[own])
            truth = labels[own]
            scores.append(f1_score(truth, guess, labels=np.unique(truth), average="macro", zero_division=0))
    return float(np.mean(scores)) if scores else np.nan
