"""Whether the job that is here is that of the server: asked before the data of a site are blamed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from scinfl.flower._format import readable
from scinfl.flower.protocol._message import Message
from scinfl.flower.setup._job import JOB, SITE_SETTINGS, Job, SiteSettings
from scinfl.flower.setup._kit import ADDRESS, CA, LINK_KEY

logger = logging.getLogger(__name__)

_SECONDS = 10.0
_ROOM = 1 << 16  # nothing large is fetched: the greeting of a server holds its job


def other_job(odd: str) -> str:
    """Message for a site whose job differs from that of the server."""
    return (
        f"Expected the job of the server, found that the one here differs from it in {odd}. Get the present 'job.toml' "
        "from the operator, read what changed, and start the site again; or let the operator start the server with the "
        "job that the sites agreed to."
    )


def differences(job: Job, text: str) -> str:
    """Entries of the job of a server that differ from a job; none where it is the same."""
    if text == job.text or (theirs := Job.parse(text)).digest == job.digest:
        return ""
    return readable(", ".join(job.differences(theirs)))


def refuse_other_job(kit: Path, report: Callable[[str], None], *, seconds: float = _SECONDS) -> None:
    """Ask the server for its job, and stop here with what differs, if it does; a server that is away is not waited for.

    The server learns from it that this site stopped, and why: in which entries the jobs differ, or that its log says
    more.

    Raises
    ------
    ValueError
        If the job differs.
    """
    from scinfl.flower.site._client_app import client_app
    from scinfl.flower.site._connection import FleetConnection, RefusedError

    job, site = Job.read(kit / JOB), SiteSettings.read(kit / SITE_SETTINGS).site
    asker = _Asker(job, site)
    report("these data do not fit the job that is here: asking the server whether it has the same job")
    connection = FleetConnection(
        (kit / ADDRESS).read_text().strip(), kit / CA, kit / LINK_KEY, site=site, poll=0.1, room=lambda: _ROOM
    )
    timer = threading.Timer(seconds, connection.stop)
    timer.start()
    with suppress(RefusedError):
        connection.serve(client_app(asker, stop=connection.stop))
    timer.cancel()
    if asker.odd:
        raise ValueError(other_job(asker.odd))


class _Asker:
    """Answers the greeting of a server: that this site stopped, and why."""

    def __init__(self, job: Job, site: str) -> None:
        self._job, self._site = job, site
        self.odd = ""

    def handle(self, message: Message) -> Message:
        """Answer one message of the server."""
        try:
            self.odd = differences(self._job, str(message.fields["job"]))
        except (KeyError, ValueError) as error:
            logger.debug("The server sent no job: %s", error)
        why = f"its job differs from that of the server in {self.odd}" if self.odd else "its own log says why"
        return Message("failed", {"message": f"site '{self._site}' cannot take part: {why}"})
