"""The operator's side: start the server, let the sites in, train."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from scinfl._checks import first_of
from scinfl.flower._require import require_flower
from scinfl.flower.server._coordinator import Coordinator
from scinfl.flower.setup._job import Job
from scinfl.flower.setup._kit import ADDRESS, SITES, pinned_identities, split_address

logger = logging.getLogger(__name__)

RUN = "run"
_REVOKED = ".revoked"


def run_server(
    kit: str | os.PathLike[str],
    *,
    job: str | os.PathLike[str],
    resume: bool = False,
    host: str = "0.0.0.0",  # noqa: S104
    port: int | None = None,
    report: Callable[[str], None] = logger.info,
    progress: bool = False,
) -> None:
    """Run the server of a federation until the sites have the model.

    Starts Flower's SuperLink with TLS for the registered sites alone, waits for the sites of the job, compares what
    must be the same at all of them, and adds their masked updates round by round. The server holds no key and ends with
    no model. Sums, history and an audit log are kept in the folder ``run`` of the kit.

    Parameters
    ----------
    kit
        Folder of the operator, from :func:`make_kit`.
    job
        File of the job.
    resume
        Go on after the last finished round of the run that is there.
    host, port
        Where to listen; the port of the kit by default. From other machines only the calls of registered sites are
        answered; where Flower would answer more, the server does not start.
    report
        Called with one line per event, for example ``print``; the log by default.
    progress
        Show a progress bar over the rounds.

    Raises
    ------
    ValueError
        If sites differ in features, labels, job, version or key; the message names the site and the cure.
    RuntimeError
        If too few sites answer, or Flower would let other machines start runs.
    """
    require_flower()
    kit = Path(kit)
    parsed = Job.read(job)
    state, run = kit / "state", kit / RUN
    for folder in (state, run):
        folder.mkdir(mode=0o700, exist_ok=True)
    own_port = split_address((kit / ADDRESS).read_text())[1]
    keys = _public_keys(kit, parsed)
    coordinator = Coordinator(
        run, parsed, pinned_identities(kit), report, resume=resume, expected=keys, progress=progress
    )

    from flwr.serverapp import ServerApp

    from scinfl.flower.server._superlink import SuperLink
    from scinfl.flower.server._transport import FlowerTransport

    app = ServerApp()

    @app.main()
    def main(grid, context) -> None:  # type: ignore[no-untyped-def]
        del context
        coordinator.run(FlowerTransport(grid))

    superlink = SuperLink(kit, state, host, own_port if port is None else port)
    try:
        superlink.wait()
        superlink.let_in(keys)
        report(f"listening on port {own_port if port is None else port} for {first_of(sorted(keys), 20)}")
        superlink.run(app)
    finally:
        superlink.close()


def revoke_site(kit: str | os.PathLike[str], site: str) -> None:
    """Never let a site in again: its public key leaves the operator's folder for good.

    The server refuses it from its next start, also in a run that goes on with ``resume``. What the site knows it keeps:
    let the others change the key (:func:`scinfl.privacy.revoke`).

    Parameters
    ----------
    kit
        Folder of the operator.
    site
        Name of the site.
    """
    path = Path(kit) / SITES / f"{site}.pub"
    if not path.is_file():
        msg = f"Expected the public key of site '{site}' in '{path.parent}', found none. Check the name."
        raise FileNotFoundError(msg)
    path.rename(path.with_suffix(_REVOKED))


def _public_keys(kit: Path, job: Job) -> dict[str, Path]:
    """Public keys of the sites of a job, without those that were revoked."""
    keys = {site: kit / SITES / f"{site}.pub" for site in job.sites}
    keys = {site: path for site, path in keys.items() if not path.with_suffix(_REVOKED).exists()}
    missing = [site for site, path in keys.items() if not path.is_file()]
    if missing:
        msg = (
            f"Expected the public keys of all sites of the job in '{kit / SITES}', found none of "
            f"{first_of(missing)}. Put the 'link.pub' of these sites there as SITE.pub."
        )
        raise ValueError(msg)
    if len(keys) < job.min_sites:
        msg = (
            f"Expected at least {job.min_sites} sites that may take part, as `min_sites` asks for, found "
            f"{len(keys)}: the others are revoked. Start a new federation with `scinfl federation init`."
        )
        raise ValueError(msg)
    return keys
