"""Cells and labels whose training would have changed the parameters as they changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

_MOST_FEATURES = 3000  # whose covariance is inverted
Change = Mapping[str, Tensor]


def infer_label(bias_change: np.ndarray) -> int:
    r"""Label of the one cell of a gradient, from the bias of the last layer (iDLG, Zhao et al. 2020).

    The gradient of the cross-entropy is :math:`p - e_y`: negative for the true label alone. Descent moves the other
    way, so give the negative of a change of parameters.

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> si.privacy.attacks.infer_label(np.array([0.2, -0.7, 0.5]))
    1
    """
    return int(np.argmin(bias_change))


def infer_label_counts(bias_change: np.ndarray, expected: np.ndarray, n_cells: int) -> np.ndarray:
    r"""Labels of a batch from the gradient of the last bias, given what the network predicts on average.

    :math:`\nabla b = \bar p - n / N`, so :math:`n = N (\bar p - \nabla b)`, rounded to whole numbers that add up.

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> si.privacy.attacks.infer_label_counts(np.array([-0.25, 0.25]), np.array([0.5, 0.5]), 4).tolist()
    [3, 1]
    """
    share = np.clip(np.asarray(expected, dtype=np.float64) - bias_change, 0, None)
    exact = share / max(share.sum(), 1e-12) * n_cells
    counts = np.floor(exact).astype(int)
    for label in np.argsort(counts - exact)[: n_cells - counts.sum()]:
        counts[label] += 1
    return counts


@dataclass(frozen=True)
class CellPrior:
    """What an attacker believes of cells before anything was sent, learned from public ones.

    Parameters
    ----------
    mean
        Mean cell (features).
    precision
        Inverse covariance of the features, shrunk to the diagonal so that it exists (features × features); of more than
        3000 features the inverse variances alone (features).
    smallest
        Smallest value of a public cell: 0 where expression is not negative.
    sparse
        Share of the values that are zero.
    total
        Mean sum of a cell, which the library size fixes; ``None`` where values may be negative.
    """

    mean: Tensor
    precision: Tensor
    smallest: float
    sparse: float
    total: float | None

    @classmethod
    def from_cells(cls, public: np.ndarray, *, shrinkage: float = 0.2) -> CellPrior:
        """Learn from public cells.

        Parameters
        ----------
        public
            Public cells (n × features).
        shrinkage
            Share of the diagonal in the covariance.
        """
        public = np.asarray(public, dtype=np.float64)
        variances = public.var(0, ddof=1)
        diagonal = variances + 0.01 * variances.mean() + 1e-9
        precision = 1 / diagonal
        if len(diagonal) <= _MOST_FEATURES:
            shrunk = (1 - shrinkage) * np.cov(public, rowvar=False)
            shrunk[np.diag_indices_from(shrunk)] = diagonal
            precision = np.linalg.inv(shrunk)
        smallest = float(public.min())
        return cls(
            mean=torch.from_numpy(public.mean(0)).float(),
            precision=torch.from_numpy(precision).float(),
            smallest=smallest,
            sparse=float((public == 0).mean()),
            total=float(public.sum(1).mean()) if smallest >= 0 else None,
        )

    def penalty(self, x: Tensor) -> Tensor:
        """Mean squared Mahalanobis distance a feature, with terms for zeros and total where cells have them."""
        away = x - self.mean
        weighted = away @ self.precision if self.precision.ndim == 2 else away * self.precision
        value = (weighted * away).mean()
        if self.sparse > 0.2:
            value = value + self.sparse * x.abs().mean() / (self.mean.abs().mean() + 1e-9)
        if self.total is not None:
            value = value + (x.sum(1) / max(self.total, 1e-9) - 1).square().mean()
        return value


def local_change(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    n_steps: int = 1,
    lr: float = 1e-2,
    optimizer: str = "sgd",
    create_graph: bool = False,
    start: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Change of the parameters in steps on all of some cells, differentiable by the cells where asked.

    Parameters
    ----------
    network
        Network; left as it is.
    x, y
        Cells (n × features) and label codes.
    n_steps
        Steps.
    lr
        Learning rate.
    optimizer
        ``"sgd"``, or ``"adam"`` with its usual constants.
    create_graph
        Keep what is needed to differentiate by the cells.
    start
        Parameters to train, and what to start from, where that is not what the network holds.
    """
    if start is None:
        start = {name: p.detach().requires_grad_() for name, p in network.named_parameters() if p.requires_grad}
    now, change = dict(start), {name: torch.zeros_like(p) for name, p in start.items()}
    first = {name: torch.zeros_like(p) for name, p in start.items()}
    second = {name: torch.zeros_like(p) for name, p in start.items()}
    for step in range(1, n_steps + 1):
        # a module under several names is one: tying would swap it twice and restore it wrongly
        loss = F.cross_entropy(functional_call(network, now, (x,), tie_weights=False), y)
        gradients = torch.autograd.grad(loss, list(now.values()), create_graph=create_graph, allow_unused=True)
        for (name, value), found in zip(now.copy().items(), gradients, strict=True):
            gradient = torch.zeros_like(value) if found is None else found
            if optimizer == "adam":
                first[name] = 0.9 * first[name] + 0.1 * gradient
                second[name] = 0.999 * second[name] + 0.001 * gradient.square()
                root = (second[name] / (1 - 0.999**step) + 1e-16).sqrt()
                gradient = first[name] / (1 - 0.9**step) / (root + 1e-8)
            change[name] = change[name] - lr * gradient  # exact for one step, which a difference of states is not
            now[name] = start[name] + change[name]
        if not create_graph:
            now = {name: value.detach().requires_grad_() for name, value in now.items()}
    return change


def invert_update(
    network: nn.Module,
    change: Change,
    y: Tensor,
    *,
    prior: CellPrior | None = None,
    strength: float = 1e-2,
    start: np.ndarray | None = None,
    distance: str = "cosine",
    n_iterations: int = 300,
    lr: float = 0.1,
    local: Mapping[str, float | str] | None = None,
    rng: int = 0,
) -> np.ndarray:
    """Search for cells that would have changed the network as it changed.

    With the squared distance and no prior this is the attack of Zhu et al. (2019), with the cosine that of Geiping et
    al. (2020), and with a prior from public cells what fits omics: values that go together as genes do, none below the
    smallest, many zeros, the library size. Steps on all cells at once, by Adam, from cells around the public mean.

    Parameters
    ----------
    network
        Network as it was before, with its key where the attacker has it; left as it is.
    change
        Change of some or all parameters by name.
    y
        Label codes of the cells to find.
    prior
        What is known of cells; without, they start from normal noise.
    strength
        Weight of the prior.
    start
        Cells to start from, for example of :func:`recover_inputs`.
    distance
        ``"cosine"`` or ``"squared"``.
    n_iterations, lr
        Search.
    local
        How the site trained: ``n_steps``, ``lr`` and ``optimizer`` of :func:`local_change`.
    rng
        Seed of the start.

    Returns
    -------
    Cells (as many as labels × features).
    """
    generator = torch.Generator().manual_seed(rng)
    n_features = next(p for p in network.parameters() if p.ndim == 2).shape[1] if prior is None else len(prior.mean)
    noise = torch.randn(len(y), n_features, generator=generator)
    x = noise if prior is None else prior.mean + 0.1 * noise
    if start is not None:
        x = torch.as_tensor(start, dtype=torch.float32).clone()
    x.requires_grad_()
    search = torch.optim.Adam([x], lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(search, n_iterations)
    best, found = np.inf, x.detach().clone()
    was_training = network.training
    network.eval()
    for _ in range(n_iterations):
        search.zero_grad()
        own = local_change(network, x, y, create_graph=True, **(local or {}))  # type: ignore[arg-type]
        value = distance_of(own, change, distance)
        if prior is not None:
            value = value + strength * prior.penalty(x)
        if value.item() < best:
            best, found = value.item(), x.detach().clone()
        (x.grad,) = torch.autograd.grad(value, x)
        search.step()
        schedule.step()
        if prior is not None and prior.smallest >= 0:
            with torch.no_grad():
                x.clamp_(min=prior.smallest)
    network.train(was_training)
    return found.numpy().astype(np.float64)


def distance_of(own: Change, change: Change, kind: str = "cosine") -> Tensor:
    """Distance of two changes over the parameters that both have."""
    pairs = [(own[name], change[name].to(own[name])) for name in change if name in own]
    if kind == "squared":
        size = sum(sent.square().sum() for _, sent in pairs)
        return sum((mine - sent).square().sum() for mine, sent in pairs) / (size + 1e-20)  # type: ignore[return-value]
    inner = sum((mine * sent).sum() for mine, sent in pairs)
    sizes = [sum(values.square().sum() for values in side) for side in zip(*pairs, strict=True)]
    return 1 - inner / ((sizes[0] * sizes[1]).sqrt() + 1e-20)
