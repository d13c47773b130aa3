"""Settings of a training on labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from scinfl._checks import number_between, one_of, whole_number
from scinfl.model.base._options import TrainOptions


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassifierOptions(TrainOptions):
    """Settings of :meth:`Classifier.train`: those of every run (:class:`TrainOptions`), and its own.

    Parameters
    ----------
    class_weight
        ``"balanced"`` weights each class of a site by the inverse of its frequency there.
    min_cells
        A site with fewer labelled rows is left out, with a warning: an update from so few shows them.
    batch_size
        By default 32 rows per step; sites with more than 32,768 rows to train on take 64 to 256.
    """

    lr: float = 6e-3
    weight_decay: float = 0.01
    smoothing: float = 0.8
    monitor: str = "validation_balanced_accuracy"
    class_weight: Literal["balanced"] | None = None
    min_cells: int = 10

    monitors: ClassVar[Sequence[str]] = ("loss", "accuracy", "balanced_accuracy")

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("min_cells", self.min_cells, 1)
        one_of("class_weight", self.class_weight, ["balanced", None])
        if self.early_stopping is not None:
            number_between("validation_size", self.validation_size, 0, 0.9, open_low=True)
