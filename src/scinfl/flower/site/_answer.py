"""A site whose process ends with each answer: what a node of standard Flower calls for every message."""

from __future__ import annotations

import logging
from collections.abc import Callable

from scinfl.flower._format import readable
from scinfl.flower.protocol._message import Message, asked_run, unread
from scinfl.flower.site._data import BusyError, alone
from scinfl.flower.site._node_config import NodeConfig
from scinfl.flower.site._run import _Site

logger = logging.getLogger(__name__)

STOPPED = "stopped"


def answer_message(node: NodeConfig, message: Message, *, report: Callable[[str], None] = logger.info) -> Message:
    """Answer one message of the server, in a process that may end with the answer; the folder of the site holds all.

    What stopped this site in a run stops it there until a person removes the note of it from the folder, as a site of
    :func:`run_site` stops until it is started again. An error of the site itself is answered by its kind alone.

    Parameters
    ----------
    node
        Configuration of the node.
    message
        What the server asks.
    report
        Called with one line per event.

    Returns
    -------
    The answer.

    Raises
    ------
    ValueError
        If configuration, data, key or job cannot be used.
    OSError
        If the folder cannot be read or written.
    """
    if message.kind == "end":
        report(f"the server ended the run: {readable(message.fields.get('reason', ''))}")
        return Message("bye", {"message": "the server ended the run"})
    try:
        run = asked_run(message)
    except Exception as error:  # noqa: BLE001 (whatever the server made fail)
        return unread(str(error))
    try:
        with alone(node.folder):
            return _answer(node, run, message, report)
    except BusyError:
        return Message("busy")


def _answer(node: NodeConfig, run: str, message: Message, report: Callable[[str], None]) -> Message:
    note = node.folder / STOPPED / run
    if note.exists():
        report(f"this site stopped in the run for a reason that '{note}' holds; remove that file to go on")
        return Message("failed", {"message": "it stopped before; its own log says more"})
    site = _Site(
        node.folder, node.data, node.key, report, n_runs=node.runs, accepted=node.accept_difference, is_brief=True
    )
    try:
        return site.answer(run, message)
    except OSError:
        raise  # of our own files
    except Exception as error:
        note.parent.mkdir(mode=0o700, exist_ok=True)
        note.write_text(f"{error}\n")
        raise
