"""Properties of a site as a whole, from what it sent, and of a person, from the output of a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from scinfl._checks import whole_number
from scinfl.privacy.attacks._inversion import CellPrior

Send = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""What a site would send that holds these rows of the public cells: changes of parameters by name."""


def simulate_sites(
    codes: np.ndarray, send: Send, *, n_sites: int = 40, n_cells: int = 100, concentration: float = 1.0, rng: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Simulate sites of many mixtures (Dirichlet) with public cells, and keep what each would send.

    Returns
    -------
    Sent changes (sites × numbers), and the share of each code (sites × codes).
    """
    whole_number("n_sites", n_sites, 2)
    generator = np.random.default_rng(rng)
    present = np.unique(codes)
    rows_of = {code: np.flatnonzero(codes == code) for code in present}
    sent, shares = [], np.zeros((n_sites, int(codes.max()) + 1))
    for site in range(n_sites):
        mixture = generator.dirichlet(np.full(len(present), concentration))
        drawn = generator.choice(present, n_cells, p=mixture)
        sent.append(flatten(send(np.array([generator.choice(rows_of[code]) for code in drawn]))))
        shares[site] = np.bincount(drawn, minlength=shares.shape[1]) / n_cells
    return np.stack(sent), shares


def flatten(change: Mapping[str, np.ndarray]) -> np.ndarray:
    """Changes of parameters as one vector for a meta-classifier: biases as they are, weights as means of each row.

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> si.privacy.attacks.flatten({"bias": np.ones(2), "weight": np.array([[1.0, 3.0], [0.0, 0.0]])})
    array([1., 1., 2., 0.])
    """
    parts = [np.asarray(change[name], dtype=np.float64) for name in sorted(change)]
    return np.concatenate([part.reshape(len(part), -1).mean(1) if part.ndim > 1 else part.ravel() for part in parts])


def infer_property(sent: np.ndarray, shares: np.ndarray, update: np.ndarray) -> np.ndarray:
    """Guess the shares of a site from its update, with ridge regression on simulated sites.

    Property inference by a meta-classifier (Ganju et al. 2018, Melis et al. 2019).

    Returns
    -------
    Shares that add up to 1.

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> shares = np.random.default_rng(0).dirichlet([1, 1, 1], 50)
    >>> found = si.privacy.attacks.infer_property(shares @ np.eye(3, 6), shares, np.array([0.7, 0.2, 0.1, 0, 0, 0]))
    >>> found.round(1).tolist()
    [0.7, 0.2, 0.1]
    """
    size = max(np.abs(sent).max(), 1e-300)
    scaler = StandardScaler().fit(sent / size)
    model = RidgeCV(alphas=np.logspace(-3, 4, 15)).fit(scaler.transform(sent / size), shares)
    guess = model.predict(np.clip(scaler.transform(update[None] / size), -10, 10))[0]
    guess = np.clip(guess, 0, None)
    return guess / guess.sum() if guess.sum() > 0 else np.full(shares.shape[1], 1 / shares.shape[1])


def infer_attribute(outputs: np.ndarray, attribute: np.ndarray, *, rng: int = 0) -> float:
    """Balanced accuracy of guessing an attribute of a cell (sex, donor's site) from the network's output for it.

    Logistic regression, cross-validated on five folds. Compare with the same from the true label alone.

    Parameters
    ----------
    outputs
        Outputs of the network or one-hot labels (cells × numbers).
    attribute
        Attribute of each cell; values with fewer than 10 cells are left out.
    rng
        Seed of the folds.

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> sex = np.repeat(["f", "m"], 50)
    >>> si.privacy.attacks.infer_attribute(np.c_[sex == "f", sex == "m"].astype(float), sex)
    1.0
    """
    attribute = np.asarray(attribute).astype(str)
    values, counts = np.unique(attribute, return_counts=True)
    kept = np.isin(attribute, values[counts >= 10])
    if len(np.unique(attribute[kept])) < 2:
        msg = "Expected an attribute with at least two values of 10 cells each, found fewer."
        raise ValueError(msg)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500, class_weight="balanced"))
    folds = StratifiedKFold(5, shuffle=True, random_state=rng)
    guess = cross_val_predict(model, outputs[kept], attribute[kept], cv=folds)
    return float(balanced_accuracy_score(attribute[kept], guess))


def invert_class(
    network: nn.Module,
    label: int,
    prior: CellPrior,
    *,
    strength: float = 0.3,
    n_iterations: int = 200,
    lr: float = 0.05,
    rng: int = 0,
) -> np.ndarray:
    """Search for the cell that the network takes most surely for a label (model inversion, Fredrikson et al. 2015).

    It shows what the class is like on average, which the label's name promises anyway; compare it with single cells of
    the class to see whether it shows more.

    Parameters
    ----------
    network
        Network, with its key where the attacker has it; left as it is.
    label
        Label code.
    prior
        What is known of cells.
    strength
        Weight of the prior.
    n_iterations, lr
        Search, by Adam.
    rng
        Seed of the start.
    """
    generator = torch.Generator().manual_seed(rng)
    x = (prior.mean + 0.1 * torch.randn(len(prior.mean), generator=generator))[None].requires_grad_()
    search = torch.optim.Adam([x], lr)
    was_training = network.training
    network.eval()
    for _ in range(n_iterations):
        search.zero_grad()
        value = -network(x).log_softmax(1)[0, label] + strength * prior.penalty(x)
        (x.grad,) = torch.autograd.grad(value, x)
        search.step()
        if prior.smallest >= 0:
            with torch.no_grad():
                x.clamp_(min=prior.smallest)
    network.train(was_training)
    return x.detach().numpy()[0].astype(np.float64)


def inversion_scores(found: np.ndarray, x: np.ndarray, codes: np.ndarray, label: int) -> dict[str, float]:
    """Correlate an inverted class with what it could show.

    Returns
    -------
    Correlation with the mean of its class (``own_mean``), the best with the mean of another (``other_mean``), and the
    mean (``single_cells``) and the best (``nearest_cell``) with single cells of its class, all less the overall mean.
    """
    centre = x.mean(0)

    def correlation(cells: np.ndarray) -> np.ndarray:
        cells = np.atleast_2d(cells) - centre
        away = found - centre
        cells = cells - cells.mean(1, keepdims=True)
        away = away - away.mean()
        sizes = np.linalg.norm(cells, axis=1) * np.linalg.norm(away)
        return cells @ away / np.maximum(sizes, 1e-300)

    own = correlation(x[codes == label])
    others = [float(correlation(x[codes == other].mean(0))[0]) for other in np.unique(codes) if other != label]
    return {
        "own_mean": float(correlation(x[codes == label].mean(0))[0]),
        "other_mean": max(others, default=float("nan")),
        "single_cells": float(own.mean()),
        "nearest_cell": float(own.max()),
    }


def outputs_of(network: nn.Module, x: Tensor) -> np.ndarray:
    """Probabilities that a network gives (cells × labels).

    Examples
    --------
    >>> import torch, scinfl as si
    >>> si.privacy.attacks.outputs_of(torch.nn.Linear(5, 4), torch.ones(3, 5)).shape
    (3, 4)
    """
    with torch.no_grad():
        return network(x).softmax(1).double().numpy()
