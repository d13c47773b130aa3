"""Attacks on a model of spatial sections."""

from scinfl._audit.spamosaic._plan import plan
from scinfl._audit.spamosaic._sections import check_spamosaic

__all__ = ["check_spamosaic", "plan"]
