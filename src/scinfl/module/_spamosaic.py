"""Local learner of SpaMosaic: one code a spot, from a spot and its neighbourhood."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SpaMosaicModule(nn.Module):
    r"""Encoder and linear decoder of SpaMosaic (Yan et al. 2025) on features that were propagated before.

    Propagation over the spatial graph has no parameters, so a spot comes as its features after 0, 1, … K hops, one
    behind the other, and training is that of a perceptron:

    .. math::
        c_i = W_2\, \text{dropout}(\text{norm}(\text{LeakyReLU}(W_1 [x_i, \hat A x_i, \dots, \hat A^K x_i]))), \qquad
        \hat x_i = W_3 c_i

    The published normalisation over the batch is one over the units here, which stores no statistics.

    Parameters
    ----------
    n_input
        Features of a spot, all hops together.
    n_output
        Features that are reconstructed.
    n_latent
        Length of a code.
    n_hidden
        Hidden units.
    dropout
        Share of hidden units dropped in training.
    """

    def __init__(
        self, n_input: int, n_output: int, *, n_latent: int = 32, n_hidden: int = 128, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(n_input, n_hidden),
            nn.LeakyReLU(0.2),
            nn.LayerNorm(n_hidden),
            nn.Dropout(dropout),
            nn.Linear(n_hidden, n_latent),
        )
        self.decoder = nn.Linear(n_latent, n_output)

    def forward(self, x: Tensor) -> Tensor:
        """Codes (spots × n_latent) of propagated features (spots × n_input)."""
        return self.encoder(x)

    def loss(self, batch: tuple[Tensor, Tensor, Tensor], graph_weight: float = 0.0) -> Tensor:
        r"""Mean squared error of the reconstruction, and cross-entropy of the graph.

        .. math::
            \ell = (1 - w)\, \overline{(\hat x_i - y_i)^2} - w\, \overline{\log \sigma(\langle z_i, z_j \rangle)
            + \log \sigma(-\langle z_i, z_k \rangle)}, \qquad z = c / \lVert c \rVert

        with a neighbour :math:`j` in space and any other spot :math:`k` for each spot :math:`i`.

        Parameters
        ----------
        batch
            Propagated features, features to reconstruct, and propagated features of a neighbour of each spot.
        graph_weight
            :math:`w`.
        """
        x, target, neighbour = batch
        code = self(x)
        loss = (1 - graph_weight) * F.mse_loss(self.decoder(code), target)
        if graph_weight:
            own, near = F.normalize(code), F.normalize(self(neighbour))
            far = near[torch.randperm(len(near), device=near.device)]
            score = F.logsigmoid((own * near).sum(1)) + F.logsigmoid(-(own * far).sum(1))
            loss = loss - graph_weight * score.mean()
        return loss

    @torch.no_grad()
    def evaluate(self, batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> dict[str, float]:
        """Mean squared error of the reconstruction."""
        total, n = 0.0, 0
        for x, target, _ in batches:
            total += float(F.mse_loss(self.decoder(self(x)), target)) * len(x)
            n += len(x)
        return {"loss": total / max(n, 1)}
