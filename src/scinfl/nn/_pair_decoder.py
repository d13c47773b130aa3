"""Read-out of every (condition, gene) pair through one small network, without holding the pairs' hidden units twice."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

_ROWS = 2048  # pairs at a time: their hidden units stay in the processor's cache


class Statistics(NamedTuple):
    """Mean and biased variance of the two hidden normalisations, for the running ones."""

    mean1: Tensor
    variance1: Tensor
    mean2: Tensor
    variance2: Tensor


def decode_pairs(
    z: Tensor,
    u: Tensor,
    share: Tensor,
    hidden: tuple[Tensor, Tensor, Tensor, float],
    output: tuple[Tensor, Tensor, Tensor, float],
    readout: Tensor,
) -> tuple[Tensor, Statistics]:
    r"""Decode pairs of conditions and genes in training.

    .. math::
        h_{cg} = \text{ReLU}(z_g + u_c), \qquad
        r_{cg} = \text{BN}_2(W_2\, \text{ReLU}(\text{BN}_1(W_1 h_{cg}))), \qquad
        o_{cg} = \langle r_{cg}, w_g \rangle

    with batch normalisation over all pairs, those of condition :math:`c` weighted by ``share``. The statistics of the
    first normalisation follow from the second moments of :math:`h`, since :math:`\text{Var}(W h) = W \text{Cov}(h)
    W^\top`; both normalisations are folded into the maps beside them. Values and gradients are those of the plain
    formula; biases in front of a normalisation cancel and are left out.

    Returns
    -------
    Conditions × genes, and the statistics (without gradient).
    """
    keep = torch.is_grad_enabled()
    result, *statistics = _PairDecoder.apply(keep, z, u, share, *hidden, *output, readout)
    return result, Statistics(*statistics)


class _PairDecoder(torch.autograd.Function):
    """Forward and backward by chunks of conditions."""

    @staticmethod
    def forward(
        ctx: Any,
        keep: bool,  # noqa: FBT001
        z: Tensor,
        u: Tensor,
        share: Tensor,
        weight1: Tensor,
        scale1: Tensor,
        shift1: Tensor,
        eps1: float,
        weight2: Tensor,
        scale2: Tensor,
        shift2: Tensor,
        eps2: float,
        readout: Tensor,
    ) -> tuple[Tensor, ...]:
        n_genes, d = z.shape
        pairs = share / n_genes
        chunks = _chunks(len(u), n_genes)
        mean_h, square_h = z.new_zeros(d), z.new_zeros(d, d)
        for chunk in chunks:
            h = _hidden(z, u[chunk])
            weighted = _weighted(h, pairs[chunk], n_genes)
            mean_h += weighted.sum(0)
            square_h += weighted.T @ h
        covariance = square_h - torch.outer(mean_h, mean_h)
        variance1 = ((weight1 @ covariance) * weight1).sum(1).clamp_min(0)
        root1 = torch.rsqrt(variance1 + eps1)
        folded1 = (scale1 * root1)[:, None] * weight1
        offset1 = shift1 - folded1 @ mean_h
        n_units = len(weight2)
        mean2, square2 = z.new_zeros(n_units), z.new_zeros(n_units)
        kept = [z.new_empty(len(u) * n_genes, n) for n in (len(weight1), n_units)] if keep else []
        for chunk in chunks:
            rows = slice(chunk.start * n_genes, chunk.stop * n_genes)
            a, y = (block[rows] for block in kept) if keep else (None, None)
            a = torch.addmm(offset1, _hidden(z, u[chunk]), folded1.T, out=a).relu_()
            y = torch.mm(a, weight2.T, out=y)
            weighted = _weighted(y, pairs[chunk], n_genes)
            mean2 += weighted.sum(0)
            square2 += (weighted * y).sum(0)
        variance2 = (square2 - mean2.square()).clamp_min(0)
        root2 = torch.rsqrt(variance2 + eps2)
        folded2 = scale2 * root2
        offset2 = shift2 - folded2 * mean2
        result = z.new_empty(len(u), n_genes)
        constant, scaled = readout @ offset2, readout * folded2
        for chunk in chunks:
            if keep:
                y = kept[1][chunk.start * n_genes : chunk.stop * n_genes]
            else:
                y = torch.addmm(offset1, _hidden(z, u[chunk]), folded1.T).relu_() @ weight2.T
            result[chunk] = (y.view(-1, n_genes, n_units) * scaled).sum(-1) + constant
        if keep:
            ctx.save_for_backward(
                z, u, pairs, weight1, scale1, weight2, scale2, readout, mean_h, covariance, root1, folded1,
                mean2, root2, folded2, offset2, *kept,
            )  # fmt: skip
        seen = weight1 @ mean_h, variance1, mean2, variance2
        ctx.mark_non_differentiable(*seen)  # running statistics have no gradient
        return result, *seen

    @staticmethod
    def backward(ctx: Any, error: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        (
            z, u, pairs, weight1, scale1, weight2, scale2, readout, mean_h, covariance, root1, folded1,
            mean2, root2, folded2, offset2, a_all, y_all,
        ) = ctx.saved_tensors  # fmt: skip
        n_genes, d = z.shape
        n_units = len(weight2)
        chunks = _chunks(len(u), n_genes)
        # second normalisation and read-out
        by_gene = torch.zeros_like(readout)
        for chunk in chunks:
            y = y_all[chunk.start * n_genes : chunk.stop * n_genes].view(-1, n_genes, n_units)
            by_gene += (y * error[chunk][..., None]).sum(0) if len(y) > 1 else y[0] * error[chunk][0][:, None]
        total = error.sum(0)
        d_readout = folded2 * by_gene + torch.outer(total, offset2)
        d_shift2 = readout.T @ total
        d_folded2 = (readout * by_gene).sum(0) - d_shift2 * mean2
        d_scale2 = d_folded2 * root2
        d_variance2 = -0.5 * scale2 * root2**3 * d_folded2
        d_mean2 = -folded2 * d_shift2 - 2 * mean2 * d_variance2
        scaled = readout * folded2
        # through both maps
        d_weight2, d_folded1 = torch.zeros_like(weight2), torch.zeros_like(weight1)
        d_offset1 = z.new_zeros(len(weight1))
        d_h = z.new_empty(len(u) * n_genes, d)
        for chunk in chunks:
            rows = slice(chunk.start * n_genes, chunk.stop * n_genes)
            a, y = a_all[rows], y_all[rows]
            d_y = torch.addcmul(d_mean2, y, 2 * d_variance2).view(-1, n_genes, n_units)
            d_y = d_y.mul_(pairs[chunk][:, None, None]).addcmul_(error[chunk][..., None], scaled).view(-1, n_units)
            d_weight2.addmm_(d_y.T, a)
            d_x = torch.ops.aten.threshold_backward(d_y @ weight2, a, 0)
            d_folded1.addmm_(d_x.T, _hidden(z, u[chunk]))
            d_offset1 += d_x.sum(0)
            torch.mm(d_x, folded1, out=d_h[rows])
        # first normalisation
        d_folded1 -= torch.outer(d_offset1, mean_h)
        d_mean_h = -(folded1.T @ d_offset1)
        d_root_scale = (weight1 * d_folded1).sum(1)
        d_scale1 = d_root_scale * root1
        d_variance1 = -0.5 * scale1 * root1**3 * d_root_scale
        d_weight1 = (scale1 * root1)[:, None] * d_folded1 + 2 * d_variance1[:, None] * (weight1 @ covariance)
        d_covariance = weight1.T @ (d_variance1[:, None] * weight1)
        d_mean_h -= 2 * d_covariance @ mean_h
        # into genes and conditions
        d_z, d_u = torch.zeros_like(z), torch.empty_like(u)
        for chunk in chunks:
            h = _hidden(z, u[chunk])
            through = torch.addmm(d_mean_h, h, d_covariance, alpha=2).view(-1, n_genes, d)
            part = d_h[chunk.start * n_genes : chunk.stop * n_genes].view(-1, n_genes, d)
            part = part.add_(through.mul_(pairs[chunk][:, None, None])).view(-1, d)
            part = torch.ops.aten.threshold_backward(part, h, 0).view(-1, n_genes, d)
            d_u[chunk] = part.sum(1)
            d_z += part.sum(0) if len(part) > 1 else part[0]
        return (
            None, d_z, d_u, None, d_weight1, d_scale1, d_offset1, None, d_weight2, d_scale2, d_shift2, None, d_readout
        )  # fmt: skip


def _chunks(n_conditions: int, n_genes: int) -> list[slice]:
    step = max(1, _ROWS // n_genes)
    return [slice(start, min(start + step, n_conditions)) for start in range(0, n_conditions, step)]


def _hidden(z: Tensor, u: Tensor) -> Tensor:
    """ReLU of all sums, (conditions · genes) × d."""
    return (z + u[:, None]).relu_().view(-1, z.shape[1])


def _weighted(rows: Tensor, pairs: Tensor, n_genes: int) -> Tensor:
    if len(pairs) == 1:
        return rows * pairs
    return (rows.view(-1, n_genes, rows.shape[1]) * pairs[:, None, None]).view(-1, rows.shape[1])
