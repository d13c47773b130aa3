"""The audit: attacks on a trained model and on what its sites send, by kind of model."""

from scinfl._audit._plan import Request
from scinfl._audit._run import run_audit

__all__ = ["Request", "run_audit"]
