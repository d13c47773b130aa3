"""Federations over several machines: the same sites and strategies, carried by Flower (extra ``scinfl[flower]``)."""

from scinfl.flower.server._run import revoke_site, run_server
from scinfl.flower.setup._job import Job
from scinfl.flower.setup._kit import add_site, make_kit
from scinfl.flower.site._run import list_payload, run_site

__all__ = ["Job", "add_site", "list_payload", "make_kit", "revoke_site", "run_server", "run_site"]
