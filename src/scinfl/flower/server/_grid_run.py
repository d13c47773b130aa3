"""The server as an app of a Flower that runs already."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from scinfl.flower.server._coordinator import Coordinator
from scinfl.flower.server._run import RUN
from scinfl.flower.setup._app import FOLDER, RESUME, read_app

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 0.2


def run_in_grid(grid: Any, config: Mapping[str, Any], *, report: Callable[[str], None] = logger.info) -> None:
    """Train the job of a run over the nodes of its grid, until the sites have the model.

    Parameters
    ----------
    grid
        Grid of the run, with Flower's public methods.
    config
        Configuration of the run, as :func:`scinfl.flower.make_app` wrote it: job and public identities; ``folder`` for
        sums, history and audit log at the server (a temporary one by default), and ``resume`` to go on with it.
    report
        Called with one line per event.

    Raises
    ------
    ValueError
        If sites differ in what must be the same, or the configuration cannot be used.
    RuntimeError
        If too few sites answer.
    """
    from scinfl.flower.server._grid_transport import GridTransport

    job, identities = read_app(config)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(str(config.get(FOLDER, "")) or temporary) / RUN
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        resume = bool(config.get(RESUME, False))
        Coordinator(folder, job, identities, report, resume=resume, poll=_SECONDS_BETWEEN_LOOKS, moves=True).run(
            GridTransport(grid)
        )
