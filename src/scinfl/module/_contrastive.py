"""What codes of the same spot in several modalities should be to each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


def contrastive_loss(codes: Sequence[Tensor], *, temperature: float = 0.1, chunk_size: int = 1024) -> Tensor:
    r"""Contrast a spot in one modality with itself in the others, against all other spots (Yan et al. 2026).

    With codes of n spots in m modalities stacked to :math:`z` (:math:`mn` rows of length 1), :math:`s_{ij} = \langle
    z_i, z_j \rangle / \tau` and :math:`P_i` the rows of the same spot in the other modalities,

    .. math::
        \ell = \frac{1}{mn} \sum_i \Big( \log \sum_{j \ne i} e^{s_{ij}} - \frac{1}{m - 1} \sum_{p \in P_i} s_{ip} \Big)

    Rows are compared in chunks that are computed again in the backward pass, so memory grows with ``chunk_size`` × mn
    instead of :math:`(mn)^2`, and no row is left out. Positives need no mask: they are the same row of another
    modality.

    Parameters
    ----------
    codes
        One tensor (spots × code) a modality, at least two, the same spots in the same order.
    temperature
        :math:`\tau`.
    chunk_size
        Rows that are compared at a time.

    Raises
    ------
    ValueError
        If there are fewer than two modalities, or their shapes differ.

    Examples
    --------
    >>> import torch, scinfl as si
    >>> rna = torch.eye(4)
    >>> paired, mixed = si.module.contrastive_loss([rna, rna]), si.module.contrastive_loss([rna, rna.roll(1, 0)])
    >>> bool(paired < mixed)
    True
    """
    shapes = {tuple(code.shape) for code in codes}
    if len(codes) < 2 or len(shapes) != 1:
        msg = (
            f"Expected codes of the same spots in at least 2 modalities, found {len(codes)} of shapes "
            f"{sorted(shapes)}. Pass the spots that were measured in all of them."
        )
        raise ValueError(msg)
    n = len(codes[0])
    z = F.normalize(torch.stack(list(codes)), dim=2)
    total = z.sum(0)
    # all products between modalities, less those of each with itself
    positive = ((total * total).sum() - (z * z).sum()) / (temperature * (len(codes) - 1))
    rows = z.flatten(0, 1)
    others = z.new_zeros(())
    for start in range(0, len(rows), chunk_size):
        others = others + checkpoint(
            _log_sums, rows, start, min(start + chunk_size, len(rows)), temperature, use_reentrant=False
        )
    return (others - positive) / (n * len(codes))


def _log_sums(rows: Tensor, start: int, stop: int, temperature: float) -> Tensor:
    """Sum over some rows of the logarithm of what they share with all others."""
    scores = rows[start:stop] @ rows.T / temperature
    own = torch.arange(start, stop, device=rows.device)
    scores[own - start, own] = -torch.inf
    return torch.logsumexp(scores, 1).sum()
