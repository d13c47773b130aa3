"""What updates of a perturbation network reveal: which perturbations a site has, and their mean changes."""

from __future__ import annotations

import numpy as np


def moved_rows(before: np.ndarray, change: np.ndarray) -> np.ndarray:
    """Rows of a table of embeddings that were trained, and not only shrunk by weight decay.

    A row whose name no observation has receives no gradient but that of the decay, under which all its values move
    towards zero, except for small ones that cross it. Of a row that was trained about half move away. Signs and scales
    that a key gives to single values change nothing of that, nor does a secret order of rows.

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> before = np.array([[0.5, -0.2], [0.3, 0.1], [0.4, -0.4]])
    >>> change = np.array([[-0.1, 0.1], [0.0, 0.0], [0.1, 0.15]])
    >>> si.privacy.attacks.moved_rows(before, change).tolist()
    [False, False, True]
    """
    before, change = np.asarray(before), np.asarray(change)
    if before.shape != change.shape or before.ndim != 2:
        msg = f"Expected a table and its change, found shapes {before.shape} and {change.shape}."
        raise ValueError(msg)
    large = np.abs(before) > 2 * np.abs(change).max(1, keepdims=True)
    return ((before * change > 0) & large).any(1)


def undo_propagation(change: np.ndarray, graph: np.ndarray) -> np.ndarray:
    r"""How strongly each gene was perturbed, from the gradient of embeddings that a graph spreads.

    The effect of a perturbation is :math:`\hat A V` with a public graph :math:`\hat A`, so the gradient of the
    embeddings is :math:`\hat A^\top D`, where only rows of :math:`D` of perturbed genes are not zero. Least squares
    give :math:`D` back where the graph can be inverted, and the shortest solution elsewhere.

    Returns
    -------
    Length of each row of :math:`D`.

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> graph = np.array([[1.0, 0.5, 0.0], [0.5, 1.0, 0.5], [0.0, 0.5, 1.0]])
    >>> change = graph.T @ np.array([[0.0], [2.0], [0.0]])
    >>> si.privacy.attacks.undo_propagation(change, graph).round(6).tolist()
    [0.0, 2.0, 0.0]
    """
    found = np.linalg.lstsq(np.asarray(graph, np.float64).T, np.asarray(change, np.float64), rcond=1e-6)[0]
    return np.linalg.norm(found, axis=1)


def number_of_perturbed(n_moved: int, graph: np.ndarray, *, n_draws: int = 50, rng: int = 0) -> int:
    """Number of perturbed genes that moves so many rows, as random sets of genes would over a public graph.

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> si.privacy.attacks.number_of_perturbed(3, np.eye(10))
    3
    """
    reach = np.asarray(graph) != 0
    generator = np.random.default_rng(rng)
    reached = np.zeros(len(reach) + 1)
    for _ in range(n_draws):
        order = generator.permutation(len(reach))
        reached[1:] += np.logical_or.accumulate(reach[order], axis=0).sum(1) / n_draws
    return int(np.abs(reached - n_moved).argmin())


def missed_change(gradient: np.ndarray, variance: np.ndarray | None = None) -> np.ndarray:
    r"""What a network missed of the change of one perturbation, from the gradient of the bias that is added last.

    That bias of a gene is added to its predicted change :math:`\delta_g`, so of a loss that is the mean over n genes
    (those whose gradient is not 0) the gradient is :math:`2 d_g / n` with :math:`d_g = \delta_g - \bar r_g` where it is
    squared. Where it is quartic it is :math:`(4 d_g^3 + 12 m_g d_g - 4 s_g) / n`, nearly :math:`12 m_g d_g / n` with
    the variance :math:`m_g` of single cells, which public cells estimate.

    Returns
    -------
    :math:`\bar r - \delta` (genes).

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> si.privacy.attacks.missed_change(np.array([0.5, -1.0])).tolist()
    [-0.5, 1.0]
    """
    missed = -np.count_nonzero(gradient) * np.asarray(gradient, np.float64)
    if variance is None:
        return missed / 2
    variance = np.asarray(variance, np.float64)
    return missed / (12 * np.maximum(variance, 1e-3 * variance.max()))
