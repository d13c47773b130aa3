"""Settings of a training of models of scvi-tools."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from scinfl._checks import whole_number
from scinfl.model.base._local_training import LocalTraining
from scinfl.model.base._options import TrainOptions


@dataclass(frozen=True, kw_only=True, eq=False)
class ScviOptions(TrainOptions):
    """Settings of :meth:`ScviModel.train`: those of every run (:class:`TrainOptions`), and its own.

    Batches are smaller than those of scvi-tools (128) because each site has a part of the cells: an epoch over a few
    sites then takes about as many steps as one over the pooled cells.

    Parameters
    ----------
    n_epochs_kl_warmup
        Epochs of the whole run, rounds times local epochs, over which the weight of the KL divergence rises from 0 to
        1; ``None`` for 1 from the start. A run of fewer epochs ends at a lower weight, as in scvi-tools. By default
        those of scvi-tools: 400, of ``PEAKVI``, ``POISSONVI`` and ``MULTIVI`` 50, and of ``TOTALVI`` 192 (three steps
        of 256 cells for every four cells).
    """

    n_rounds: int = 20
    lr: float = 1e-3
    batch_size: int = 32
    weight_decay: float = 1e-6
    n_epochs_kl_warmup: int | Literal["auto"] | None = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_epochs_kl_warmup not in (None, "auto"):
            whole_number("n_epochs_kl_warmup", self.n_epochs_kl_warmup, 1)
        if self.share != "all":
            msg = (
                f"Expected `share='all'` for models of scvi-tools, found {self.share!r}: what the decoder of a site "
                "has of its own are its columns, and all sites have the rest."
            )
            raise ValueError(msg)


@dataclass(frozen=True)
class ScviTraining(LocalTraining):
    """Local training by Adam, as scvi-tools sets it.

    Parameters
    ----------
    eps
        Added to the root mean square of gradients.
    """

    eps: float = 0.01

    def make_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:  # type: ignore[override]
        """Optimiser of one round."""
        return torch.optim.Adam(parameters, self.lr, weight_decay=self.weight_decay, eps=self.eps, fused=True)
