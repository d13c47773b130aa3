"""Local learner of SpaMosaic: one code a spot, from its neighbourhood in each modality."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scinfl.module._contrastive import contrastive_loss


class SpotBatch(NamedTuple):
    """Spots that were measured in the same modalities."""

    rows: Tensor
    """Which spots."""
    inputs: Mapping[str, Tensor]
    """Propagated features by modality (spots × n_inputs)."""
    targets: Mapping[str, Tensor]
    """Neighbourhood to reconstruct by modality (spots × n_outputs)."""
    values: Mapping[str, Tensor]
    """Components of the spots themselves by modality (spots × n_values)."""
    neighbours: Mapping[str, Tensor]
    """Propagated features of a neighbour in space."""


class SpaMosaicModule(nn.Module):
    r"""Encoder and linear decoder of SpaMosaic (Yan et al. 2026) on features that were propagated before.

    Propagation over the spatial graph has no parameters, so a spot comes as its features after 0, 1, … K hops, one
    behind the other, and training is that of a perceptron for each modality:

    .. math::
        c_i = W_2\, \text{dropout}(\text{norm}(\text{LeakyReLU}(W_1 [x_i, \hat A x_i, \dots, \hat A^K x_i]))), \qquad
        \hat y_i = W_3 c_i

    The code of a spot is the mean over the modalities that measured it. The published normalisation over the batch
    is one over the units here by default, which stores no statistics. From any code all modalities are decoded.

    Parameters
    ----------
    n_inputs
        Features of a spot by modality, all hops together.
    n_outputs
        Features that are reconstructed, by modality.
    n_values
        Components of the spot itself that are predicted from its code, by modality; none by default.
    n_latent
        Length of a code.
    n_hidden
        Hidden units.
    dropout
        Share of hidden units dropped in training.
    norm
        ``"layer"``, or ``"batch"`` as published.

    Examples
    --------
    >>> import torch, scinfl as si
    >>> network = si.module.SpaMosaicModule({"rna": 30, "adt": 15}, {"rna": 10, "adt": 5})
    >>> network.embed({"adt": torch.ones(4, 15)}).shape  # predicted from protein alone, all modalities
    torch.Size([4, 15])
    """

    def __init__(
        self,
        n_inputs: Mapping[str, int],
        n_outputs: Mapping[str, int],
        n_values: Mapping[str, int] | None = None,
        *,
        n_latent: int = 32,
        n_hidden: int = 128,
        dropout: float = 0.2,
        norm: Literal["layer", "batch"] = "layer",
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(
            {
                modality: nn.Sequential(
                    nn.Linear(n, n_hidden),
                    nn.LeakyReLU(0.2),
                    nn.LayerNorm(n_hidden) if norm == "layer" else nn.BatchNorm1d(n_hidden),
                    nn.Dropout(dropout),
                    nn.Linear(n_hidden, n_latent),
                )
                for modality, n in n_inputs.items()
            }
        )
        self.decoders = nn.ModuleDict({modality: nn.Linear(n_latent, n) for modality, n in n_outputs.items()})
        self.readouts = nn.ModuleDict({modality: nn.Linear(n_latent, n) for modality, n in (n_values or {}).items()})

    def codes(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Code of each spot in each modality that measured it (spots × n_latent)."""
        return {modality: self.encoders[modality](x) for modality, x in inputs.items()}

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Mean code (spots × n_latent) of propagated features by modality."""
        return torch.stack(list(self.codes(inputs).values())).mean(0)

    def embed(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Neighbourhood in all modalities that is predicted from the code (spots × sum of n_outputs)."""
        code = self(inputs)
        return torch.cat([decoder(code) for decoder in self.decoders.values()], 1)

    def loss(
        self,
        batch: SpotBatch,
        graph_weight: float = 0.0,
        contrast_weight: float = 0.0,
        temperature: float = 0.1,
        value_weight: float = 1.0,
    ) -> Tensor:
        r"""Reconstruction of neighbourhoods, of the graph and of spots, and contrast between modalities.

        .. math::
            \ell = (1 - w)\, \overline{(\hat y_i - y_i)^2} + v\, \overline{(\hat x_i - x_i)^2}
            - w\, \overline{\log \sigma(\langle z_i, z_j \rangle) + \log \sigma(-\langle z_i, z_k \rangle)}
            + u\, \ell_\text{contrast}, \qquad z = c / \lVert c \rVert

        with a neighbour :math:`j` in space and any other spot :math:`k` for each spot :math:`i`. Every modality of a
        spot has to predict what all of its modalities measured, and so has the mean code.

        Parameters
        ----------
        batch
            Spots that were measured in the same modalities.
        graph_weight
            :math:`w`.
        contrast_weight
            :math:`u`, see :func:`scinfl.module.contrastive_loss`; spots of one modality have nothing to contrast.
        temperature
            Of the contrast.
        value_weight
            :math:`v`, where there is more than one modality.
        """
        codes = self.codes(batch.inputs)
        mean = torch.stack(list(codes.values())).mean(0)
        predictors = [*codes.values(), mean] if len(codes) > 1 else [mean]
        loss = (1 - graph_weight) * self._error(predictors, batch.targets, self.decoders)
        if self.readouts and value_weight:
            loss = loss + value_weight * self._error(predictors, batch.values, self.readouts)
        if graph_weight:
            own, near = F.normalize(mean), F.normalize(self(batch.neighbours))
            far = near[torch.randperm(len(near), device=near.device)]
            score = F.logsigmoid((own * near).sum(1)) + F.logsigmoid(-(own * far).sum(1))
            loss = loss - graph_weight * score.mean()
        if contrast_weight and len(codes) > 1:
            loss = loss + contrast_weight * contrastive_loss(list(codes.values()), temperature=temperature)
        return loss

    @staticmethod
    def _error(codes: list[Tensor], measured: Mapping[str, Tensor], readers: nn.ModuleDict) -> Tensor:
        """Mean squared error over all codes and all features of all modalities that were measured."""
        errors = [
            F.mse_loss(readers[modality](code), truth, reduction="sum")
            for code in codes
            for modality, truth in measured.items()
        ]
        n_values = len(codes) * sum(truth.numel() for truth in measured.values())
        return torch.stack(errors).sum() / n_values

    @property
    def metric_names(self) -> list[str]:
        """Names of what :meth:`evaluate` returns."""
        return ["loss"]

    @torch.no_grad()
    def evaluate(self, batches: Iterable[SpotBatch]) -> dict[str, float]:
        """Mean squared error of the reconstruction of neighbourhoods, from the code of each modality and the mean."""
        total, n = 0.0, 0
        for batch in batches:
            codes = self.codes(batch.inputs)
            mean = torch.stack(list(codes.values())).mean(0)
            predictors = [*codes.values(), mean] if len(codes) > 1 else [mean]
            total += float(self._error(predictors, batch.targets, self.decoders)) * len(batch.rows)
            n += len(batch.rows)
        return {"loss": total / max(n, 1)}
