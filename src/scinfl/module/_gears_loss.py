"""What a change of expression is trained towards: moments of cells in place of cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

SUMS = ("agreement", "power", "missed")
"""What :func:`scores` returns for each condition, for the shrinkage of a network."""


@dataclass(frozen=True)
class Targets:
    """Moments of :math:`r = y - x` for cells :math:`y` of a condition and controls :math:`x`, in float64."""

    mean: Tensor  # of r (conditions × genes)
    variance: Tensor  # and further central moments of r
    third: Tensor
    fourth: Tensor
    retained: Tensor  # genes that count: those with a non-zero mean in the condition; all of them for controls
    prior: Tensor  # change that a baseline predicts; the network is trained towards what it misses
    top: Tensor  # indices of the most differential genes (conditions × 20), −1 where there are fewer
    weight: Tensor  # share of its cells that are here, so that over all sites each condition weighs 1
    number: Tensor  # of each condition among those of all sites

    def __len__(self) -> int:
        return len(self.mean)

    def __getitem__(self, rows: Tensor) -> Targets:
        return Targets(**{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})


def change_loss(
    change: Tensor,
    targets: Targets,
    *,
    loss: Literal["quartic", "squared"] = "quartic",
    direction_weight: float = 0.0,
    direction_scale: float = 0.1,
    spread: Tensor | None = None,
    uncertainty: Literal["gaussian", "published"] | None = None,
    uncertainty_weight: float = 1.0,
) -> Tensor:
    r"""Loss over all cells of each condition, from their moments.

    A cell's error is :math:`\delta - r`, so with :math:`d = \delta - \bar r` its mean powers over the cells are

    .. math::
        \overline{(\delta - r)^2} = d^2 + m_2, \qquad
        \overline{(\delta - r)^4} = d^4 + 6 m_2 d^2 - 4 m_3 d + m_4,

    exactly. They are averaged over the retained genes of a condition, then over conditions (by weight), as published.

    Parameters
    ----------
    change
        :math:`\delta` (conditions × genes).
    targets
        Moments.
    loss
        ``"quartic"`` as published, or ``"squared"``.
    direction_weight, direction_scale
        Weight :math:`\lambda` and width :math:`\tau` of a term for the direction of the mean change,
        :math:`\lambda (\text{sign}\, \bar r - \tanh(\delta / \tau))^2`. The published term has no gradient.
    spread
        Log variance :math:`s` (conditions × genes).
    uncertainty
        ``"gaussian"``: :math:`\tfrac12 (s + e^{-s} (d^2 + m_2))` in place of the loss; ``"published"``: the quartic
        term :math:`q` becomes :math:`q + \rho\, e^{-s} q`.
    uncertainty_weight
        :math:`\rho`.

    Examples
    --------
    >>> import torch, scinfl as si
    >>> r = torch.tensor([[1.0], [3.0]], dtype=torch.float64)  # two cells, one gene
    >>> centred = r - r.mean(0)
    >>> moments = [centred.pow(power).mean(0, keepdim=True) for power in (2, 3, 4)]
    >>> none, ones = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
    >>> rest = (ones, none, none.long(), torch.ones(1), none[0].long())
    >>> targets = si.module.Targets(r.mean(0, keepdim=True), *moments, *rest)
    >>> change = torch.tensor([[0.5]])
    >>> loss = si.module.change_loss(change, targets)
    >>> torch.isclose(loss, (change - r).pow(4).mean())  # from moments as from cells
    tensor(True)
    """
    d = change.double() + targets.prior - targets.mean
    squared = d.square() + targets.variance
    if loss == "squared" or (uncertainty == "gaussian" and spread is not None):
        error = squared
    else:
        error = d.square().square() + 6 * targets.variance * d.square() - 4 * targets.third * d + targets.fourth
    if spread is not None and uncertainty == "gaussian":
        error = 0.5 * (spread + torch.exp(-spread) * error)
    elif spread is not None:
        error = error * (1 + uncertainty_weight * torch.exp(-spread))
    if direction_weight:
        direction = torch.sign(targets.mean) - torch.tanh((change + targets.prior) / direction_scale)
        error = error + direction_weight * direction.square()
    retained = targets.retained.to(error)
    by_condition = (error * retained).sum(1) / retained.sum(1).clamp_min(1)
    return (by_condition * targets.weight).sum() / targets.weight.sum()


def scores(change: Tensor, targets: Targets) -> dict[str, float]:
    """Weighted sums over conditions: errors of the mean change, its correlation, and what shrinkage follows from.

    For each condition, by its number, and over its most differential genes: the mean product of the network's change
    with what the prior misses (``agreement``), its mean square (``power``), and the mean square of what the prior
    misses (``missed``). Sites have shares of a condition's cells, so sums over sites are those of the whole condition.
    """
    missed = targets.mean - targets.prior
    change = change.double()
    predicted = change + targets.prior
    squared = (predicted - targets.mean).square()
    result = {
        "mse": float(squared.mean(1) @ targets.weight),
        "mse_de": float(_over_top(squared, targets.top) @ targets.weight),
        "pearson_delta": float(_correlation(predicted, targets.mean) @ targets.weight),
    }
    for what, values in zip(SUMS, (change * missed, change.square(), missed.square()), strict=True):
        weighted = _over_top(values, targets.top) * targets.weight
        for number, value in zip(targets.number.tolist(), weighted.tolist(), strict=True):
            result[f"{what}_{number}"] = value
    return result


def _over_top(values: Tensor, top: Tensor) -> Tensor:
    """Mean over the most differential genes of each condition; over all genes where there are none."""
    known = (top >= 0).to(values)
    chosen = (values.gather(1, top.clamp_min(0)) * known).sum(1) / known.sum(1).clamp_min(1)
    return torch.where(known.sum(1) > 0, chosen, values.mean(1))


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    norm = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    return (a * b).sum(1) / norm.clamp_min(1e-12)
