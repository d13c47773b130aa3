"""Attacks on a model of perturbation response."""

from scinfl._audit.gears._plan import plan
from scinfl._audit.gears._target import check_gears

__all__ = ["check_gears", "plan"]
