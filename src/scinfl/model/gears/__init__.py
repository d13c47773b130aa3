"""Response of cells to perturbations of genes."""

from scinfl.model.gears._conditions import condition_facts, levels_of
from scinfl.model.gears._data import TEST, TRAIN, Condition, ConditionBatches, Design, SiteCells, mean_changes
from scinfl.model.gears._model import GEARS
from scinfl.model.gears._moments import Moments
from scinfl.model.gears._options import GEARSOptions
from scinfl.model.gears._prediction import EVERYWHERE
from scinfl.model.gears._sums import pooled_changes, pooled_counts
from scinfl.model.gears._view import GEARSView

__all__ = [
    "EVERYWHERE",
    "GEARS",
    "TEST",
    "TRAIN",
    "Condition",
    "ConditionBatches",
    "Design",
    "GEARSOptions",
    "GEARSView",
    "Moments",
    "SiteCells",
    "condition_facts",
    "levels_of",
    "mean_changes",
    "pooled_changes",
    "pooled_counts",
]
