"""The operator's side: it holds no key, reads no number, and ends without a model.

The coordinator asks sites for steps and passes their masked terms to an aggregation, which adds them. What a run leaves
is kept in its folder. Flower's SuperLink, a process of its own, carries the messages.
"""

from scinfl.flower.server._environment import forget_trust
from scinfl.flower.server._grid_run import run_in_grid
from scinfl.flower.server._run import revoke_site, run_server
from scinfl.flower.server._status import read_status, status_as_metrics, status_as_text

__all__ = [
    "forget_trust",
    "read_status",
    "revoke_site",
    "run_in_grid",
    "run_server",
    "status_as_metrics",
    "status_as_text",
]
