"""Settings of a training on spatial sections."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scinfl._checks import number_between
from scinfl.model.base._options import TrainOptions


@dataclass(frozen=True, kw_only=True, eq=False)
class SpaMosaicOptions(TrainOptions):
    """Settings of :meth:`SpaMosaic.train`: those of every run (:class:`TrainOptions`), and its own.

    Without ``batch_size`` the smallest site takes about 16 steps per epoch.

    Parameters
    ----------
    graph_weight
        Weight of the reconstruction of the spatial graph beside that of features.
    contrast_weight, temperature
        Weight of the contrast between modalities of the same spot, and its temperature. Every modality has to
        reconstruct all that the others measured, which aligns them without; contrast brings the same spot somewhat
        closer together.
    """

    n_rounds: int = 40
    graph_weight: float = 0.0
    contrast_weight: float = 0.0
    temperature: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        number_between("graph_weight", self.graph_weight, 0, 1)
        number_between("contrast_weight", self.contrast_weight, 0, 100)
        number_between("temperature", self.temperature, 0, 100, open_low=True)


def batch_size_of(n_spots: int, validation_size: float) -> int:
    """Spots per step with which a site takes about 16 steps per epoch."""
    return int(np.clip(n_spots * (1 - validation_size) // 16, 32, 1024))
