"""Batch normalisation of rows that represent several cells each."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


class WeightedBatchNorm(nn.BatchNorm1d):
    r"""Batch normalisation over all but the last axis, with one weight per row.

    A row of weight :math:`w` counts like :math:`w` equal rows of plain batch normalisation:

    .. math::
        \mu = \sum_i p_i x_i, \qquad \sigma^2 = \sum_i p_i (x_i - \mu)^2, \qquad p_i = w_i / \sum_j w_j

    Running variances are unbiased, :math:`n / (n - 1)` with :math:`n = \sum_i w_i`, as in torch.

    Examples
    --------
    >>> import torch, scinfl as si
    >>> norm, x = si.nn.WeightedBatchNorm(3), torch.randn(4, 3)
    >>> twice = norm(torch.cat([x, x[:1]]))  # the first row twice, or with weight 2
    >>> torch.allclose(norm(x, torch.tensor([2.0, 1.0, 1.0, 1.0])), twice[:4], atol=1e-6)
    True
    """

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Normalise (…, features); weights broadcast to the leading axes."""
        if not self.training:
            scale, shift = self.folded()
            return x * scale + shift
        rows = x.reshape(-1, x.shape[-1])
        if weight is None:
            n = float(len(rows))
            mean = rows.mean(0)
            variance = (rows - mean).square().mean(0)
        else:
            weights = weight.to(x).expand(x.shape[:-1]).reshape(-1)
            n = float(weights.sum())
            share = weights / n
            mean = share @ rows
            variance = share @ (rows - mean).square()
        scale, shift = self.fold(mean, variance, n)
        return x * scale + shift

    def fold(self, mean: Tensor, variance: Tensor, n: float) -> tuple[Tensor, Tensor]:
        """Scale and shift that normalise by these statistics (biased variance); remembers them as running ones."""
        self.remember(mean, variance, n)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return scale, self.bias - mean * scale

    def folded(self) -> tuple[Tensor, Tensor]:
        """Scale and shift that normalise by the running statistics."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)  # type: ignore[operator,arg-type]
        return scale, self.bias - self.running_mean * scale  # type: ignore[operator]

    @torch.no_grad()
    def remember(self, mean: Tensor, variance: Tensor, n: float) -> None:
        """Move the running statistics towards these."""
        self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        if self.momentum == 1:
            self.reset_running_stats()  # also where they had become infinite
        self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)  # type: ignore[union-attr,arg-type]
        unbiased = variance * (n / max(n - 1, 1.0))
        self.running_var.lerp_(unbiased.to(self.running_var), self.momentum)  # type: ignore[union-attr,arg-type]


class NormMLP(nn.Module):
    r"""Linear maps, each with a batch normalisation behind it, and ReLU between them.

    .. math:: x \mapsto \text{BN}(W_L \cdots \text{ReLU}(\text{BN}(W_1 x + b_1)) \cdots + b_L)

    Parameters
    ----------
    sizes
        Units of input, hidden layers and output.
    last_norm
        Normalise the output too.

    Examples
    --------
    >>> import torch, scinfl as si
    >>> si.nn.NormMLP([8, 16, 4])(torch.randn(10, 8)).shape
    torch.Size([10, 4])
    """

    def __init__(self, sizes: list[int], *, last_norm: bool = True) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(n_in, n_out) for n_in, n_out in pairwise(sizes))
        n_norms = len(sizes) - 1 if last_norm else len(sizes) - 2
        self.norms = nn.ModuleList(WeightedBatchNorm(n_out) for n_out in sizes[1 : n_norms + 1])

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Map (…, n_in) to (…, n_out); weights of the rows as in :class:`WeightedBatchNorm`."""
        for number, linear in enumerate(self.linears):
            x = linear(x)
            if number < len(self.norms):
                x = self.norms[number](x, weight)
            if number < len(self.linears) - 1:
                x = torch.relu(x)
        return x
