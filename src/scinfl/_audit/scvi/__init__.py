"""Attacks on models of scvi-tools."""

from scinfl._audit.scvi._plan import plan
from scinfl._audit.scvi._target import check_scvi

__all__ = ["check_scvi", "plan"]
