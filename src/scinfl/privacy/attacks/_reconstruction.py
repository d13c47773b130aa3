"""Cells from the change of a linear layer, without any search among cells."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.decomposition import FastICA
from sklearn.exceptions import ConvergenceWarning

from scinfl._checks import whole_number


def recover_input(weight_change: np.ndarray, bias_change: np.ndarray) -> np.ndarray:
    r"""Read the one input that a linear layer was trained on off the change of its parameters.

    The gradient of the weight is :math:`\delta x^\top` and that of the bias :math:`\delta`, so

    .. math:: x = \Delta W^\top \Delta b \, / \, \lVert \Delta b \rVert^2

    exactly, for one gradient as for several steps of plain gradient descent on the same input, whatever follows the
    layer and whatever key acts after it (Phong et al. 2018). Steps of Adam blur it. With the first layer of a network
    that is the cell; with the first layer of the modulator of :class:`scinfl.nn.PooledLinear`, the pooled key.

    Parameters
    ----------
    weight_change
        Change of the weight (units × inputs), or its gradient.
    bias_change
        Change of the bias (units), or its gradient.

    Returns
    -------
    The input; zeros where the bias did not change.

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> x, delta = np.array([0.0, 2.0, 1.0]), np.array([0.3, -0.1])
    >>> si.privacy.attacks.recover_input(np.outer(delta, x), delta).round(6).tolist()
    [0.0, 2.0, 1.0]
    """
    weight, bias = _changes(weight_change, bias_change)
    size = bias @ bias
    return weight.T @ bias / size if size > 0 else np.zeros(weight.shape[1])


def recover_inputs(
    weight_change: np.ndarray,
    bias_change: np.ndarray,
    n_inputs: int,
    *,
    sparse: bool = False,
    n_restarts: int = 4,
    rng: int = 0,
) -> np.ndarray:
    r"""Unmix the inputs of a batch from the change of a linear layer.

    :math:`\Delta W = \sum_b \delta_b x_b^\top` has rank at most the size of the batch, so its row space is that of the
    inputs. Inputs of real cells are far from normal over the features, sums of several nearer to it, so independent
    component analysis finds the single ones (the cocktail party attack, Kariyappa et al. 2023). Where cells have many
    zeros, each is a sparsest vector of that space (Spielman et al. 2012), found by reweighted least squares, and often
    exactly. The bias gives sign and size: with :math:`\Delta W = A S` and :math:`\Delta b = A u`, input b is
    :math:`S_b / u_b`.

    Parameters
    ----------
    weight_change
        Change of the weight (units × inputs), or its gradient.
    bias_change
        Change of the bias (units), or its gradient.
    n_inputs
        Size of the batch, at most the number of units and of features.
    sparse
        Look for cells with many zeros.
    n_restarts
        Starts of the search, of which the least normal result is kept.
    rng
        Seed of the starts.

    Returns
    -------
    Inputs (n_inputs × features), in no order.

    Raises
    ------
    ValueError
        If the batch is larger than the layer.

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> generator = np.random.default_rng(0)
    >>> x = generator.gamma(0.3, 1, (3, 400))
    >>> delta = generator.normal(size=(3, 20))
    >>> x[x < 0.1] = 0
    >>> found = si.privacy.attacks.recover_inputs(delta.T @ x, delta.sum(0), 3, sparse=True)
    >>> bool(si.privacy.attacks.reconstruction_scores(x, found)["pearson"].min() > 0.99)
    True
    """
    weight, bias = _changes(weight_change, bias_change)
    whole_number("n_inputs", n_inputs, 1)
    if n_inputs > min(weight.shape):
        msg = (
            f"Expected at most {min(weight.shape)} inputs for a layer of shape {weight.shape}, found {n_inputs}. A "
            "larger batch fills the whole space."
        )
        raise ValueError(msg)
    if n_inputs == 1:
        return recover_input(weight, bias)[None]
    left, size, right = np.linalg.svd(weight, full_matrices=False)
    rank = max(1, int((size[:n_inputs] > size[0] * 1e-10).sum()))
    if size[0] == 0:
        return np.zeros((n_inputs, weight.shape[1]))
    unmixed = _sparsest(right[:rank], rng) if sparse else _least_normal(right[:rank], n_restarts, rng)
    mixing = left[:, :rank] * size[:rank] @ np.linalg.pinv(unmixed @ right[:rank].T)
    scale = np.linalg.lstsq(mixing, bias, rcond=None)[0]
    usable = np.abs(scale) > 1e-12 * np.abs(scale).max()
    found = np.where(usable[:, None], unmixed / np.where(usable, scale, 1)[:, None], 0)
    return np.vstack([found, np.zeros((n_inputs - rank, weight.shape[1]))])


def _least_normal(rows: np.ndarray, n_restarts: int, rng: int) -> np.ndarray:
    """Independent components in the row space of orthonormal rows, the best of several starts."""
    if len(rows) == 1:
        return rows
    best, found = -np.inf, rows
    for start in range(n_restarts):
        ica = FastICA(
            whiten="unit-variance", fun=("logcosh", "exp")[start % 2], max_iter=300, tol=1e-5, random_state=rng + start
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # it is rated by what it found
            warnings.simplefilter("ignore", RuntimeWarning)
            try:
                ica.fit(rows.T)
            except (ValueError, np.linalg.LinAlgError):
                continue  # two components fell together on the way, which another start avoids
        components = ica.components_ @ rows
        standardised = components - components.mean(1, keepdims=True)
        standardised /= standardised.std(1, keepdims=True) + 1e-12
        score = np.abs((np.log(np.cosh(standardised))).mean(1) - 0.3746).sum()  # 0.3746 is its mean for a normal
        if score > best:
            best, found = score, components
    return found


def _sparsest(rows: np.ndarray, rng: int) -> np.ndarray:
    """Vectors with the most zeros in the row space of orthonormal rows, as many as there are, all different.

    Every start fixes one random combination at 1 and minimises a concave penalty of all values.
    """
    rank, n_features = rows.shape
    generator = np.random.default_rng(rng)
    n_starts = 40 * rank
    strong = np.argsort(-np.linalg.norm(rows, axis=0))[: max(4 * rank, n_features // 4)]
    fixed = rows[:, generator.choice(strong, (n_starts, 2))].sum(2).T  # starts × rank
    weights = fixed / np.square(fixed).sum(1, keepdims=True)
    for smoothing in np.geomspace(1, 1e-6, 40):
        values = weights @ rows
        scale = np.abs(values).max(1, keepdims=True)
        penalty = 1 / np.power(np.square(values / scale) + smoothing**2, 0.75)
        quadratic = np.einsum("sf,af,bf->sab", penalty, rows, rows, optimize=True)
        quadratic += 1e-12 * np.trace(quadratic, axis1=1, axis2=2)[:, None, None] * np.eye(rank)
        weights = np.linalg.solve(quadratic, fixed[:, :, None])[:, :, 0]
        weights /= (weights * fixed).sum(1, keepdims=True)
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    values = np.abs(weights @ rows)
    order = np.argsort((values > 1e-3 * values.max(1, keepdims=True)).sum(1))
    chosen: list[int] = []
    for start in order:
        left = weights[start] - (_projection(weights[chosen]) @ weights[start] if chosen else 0)
        if np.linalg.norm(left) > 0.2:
            chosen.append(start)
        if len(chosen) == rank:
            return weights[chosen] @ rows
    return np.vstack([weights[chosen], np.linalg.svd(weights[chosen])[2][len(chosen) :]]) @ rows


def _projection(vectors: np.ndarray) -> np.ndarray:
    """Projection onto the space of some vectors."""
    return np.linalg.pinv(vectors) @ vectors


def _changes(weight_change: np.ndarray, bias_change: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    weight, bias = (np.asarray(change, dtype=np.float64) for change in (weight_change, bias_change))
    if weight.ndim != 2 or bias.shape != weight.shape[:1]:
        msg = f"Expected changes of a weight (units × inputs) and its bias (units), found {weight.shape}, {bias.shape}."
        raise ValueError(msg)
    return weight, bias
