"""Before a federation starts: the job, and the folders of the operator and the sites.

A job is one text that every site reads and agrees to. The folders hold certificates, keys and identities, never the key
of the federation.
"""

from scinfl.flower.setup._app import make_app
from scinfl.flower.setup._job import Job
from scinfl.flower.setup._kit import add_site, make_kit, pinned_identities

__all__ = ["Job", "add_site", "make_app", "make_kit", "pinned_identities"]
