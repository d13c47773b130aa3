"""Settings of a training of perturbation responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from scinfl._checks import number_between, one_of, whole_number
from scinfl.model.base._options import TrainOptions


@dataclass(frozen=True, kw_only=True, eq=False)
class GEARSOptions(TrainOptions):
    """Settings of :meth:`GEARS.train`: those of every run (:class:`TrainOptions`), and its own.

    Parameters
    ----------
    loss
        ``"quartic"`` as published, ``"squared"``, or ``"auto"``: train with both, keep what is better on validation
        conditions.
    direction_weight
        Weight of a term for the direction of the change (the published one has no gradient).
    uncertainty_weight
        Weight of the published uncertainty term.
    min_cells
        A perturbation with fewer cells at a site is left out there, with a warning.
    """

    n_rounds: int = 40
    local_epochs: int = 3
    batch_size: int = 16
    monitor: str = "validation_mse_de"
    loss: Literal["squared", "quartic", "auto"] = "auto"
    direction_weight: float = 0.0
    uncertainty_weight: float = 1.0
    min_cells: int = 2

    monitors: ClassVar[Sequence[str]] = ("mse_de", "mse", "pearson_delta")

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("batch_size", self.batch_size, 2)
        whole_number("min_cells", self.min_cells, 1)
        number_between("direction_weight", self.direction_weight, 0, 1e6)
        number_between("uncertainty_weight", self.uncertainty_weight, 0, 1e6)
        one_of("loss", self.loss, ["squared", "quartic", "auto"])
