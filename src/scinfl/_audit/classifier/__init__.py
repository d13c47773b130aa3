"""Attacks on a classifier."""

from scinfl._audit.classifier._plan import plan
from scinfl._audit.classifier._settings import check_classifier

__all__ = ["check_classifier", "plan"]
