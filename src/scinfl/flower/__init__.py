"""Federations over several machines: the same sites and strategies, carried by Flower (extra ``scinfl[flower]``)."""

# not public, for the command line
from scinfl.flower._format import in_bytes as in_bytes
from scinfl.flower._require import quiet_flower as quiet_flower
from scinfl.flower._require import require_flower as require_flower
from scinfl.flower.server import read_status, revoke_site, run_server
from scinfl.flower.setup import Job, add_site, make_app, make_kit
from scinfl.flower.site import list_payload, run_site

__all__ = [
    "Job",
    "add_site",
    "list_payload",
    "make_app",
    "make_kit",
    "read_status",
    "revoke_site",
    "run_server",
    "run_site",
]
