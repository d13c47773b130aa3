"""Commands of a federation over several machines: parse arguments and call ``scinfl.flower``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from scinfl.cli._text import Commands, command

if TYPE_CHECKING:
    import pandas as pd

_STORY = """one command per role (details in the guide 'Federations over several machines'):
  scinfl federation init --sites north,south,west --address fed.example.org:9092 --out kit    the operator, once
  scinfl key new consortium.key                     one site, once; it gives the file to the other sites only
  scinfl federation server kit/server --job kit/server/job.toml                               the operator
  scinfl federation site kit/site_north --data north.h5ad --key consortium.key                every site
"""

Report = Callable[[str], None]


def add_federation(commands: Commands, report: Report) -> None:
    """Add the commands."""
    federation = commands.add_parser(
        "federation",
        help="train over several machines: folders for the roles, the server, a site",
        epilog=_STORY,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = federation.add_subparsers(required=True, metavar="action")

    init = command(
        actions,
        "init",
        "write the folders of the operator and of the sites",
        "scinfl federation init --sites north,south,west --address fed.example.org:9092 --out kit",
    )
    init.add_argument("--sites", required=True, help="names of the sites, with commas between")
    init.add_argument("--out", type=Path, required=True, help="folder to write")
    init.add_argument("--address", default="127.0.0.1:9092", help="host:port of the server (default 127.0.0.1:9092)")
    init.add_argument("--job", type=Path, help="file of the job (a template by default)")
    init.set_defaults(run=_init)

    server = command(
        actions,
        "server",
        "let the sites train, as the operator",
        "scinfl federation server kit/server --job kit/server/job.toml",
        "scinfl federation server kit/server --job kit/server/job.toml --resume",
    )
    server.add_argument("kit", type=Path, help="folder of the operator")
    server.add_argument("--job", type=Path, required=True, help="file of the job")
    server.add_argument("--resume", action="store_true", help="go on after the last finished round")
    server.add_argument("--host", default="0.0.0.0", help="where to listen (default: everywhere)")  # noqa: S104
    server.add_argument("--port", type=int, help="port (default: the one of the kit)")
    server.set_defaults(run=_server)

    site = command(
        actions,
        "site",
        "take part, as a site",
        "scinfl federation site kit/site_north --data north.h5ad --key consortium.key --dry-run",
        "scinfl federation site kit/site_north --data north.h5ad --key consortium.key",
    )
    site.add_argument("kit", type=Path, help="folder of the site")
    site.add_argument("--data", type=Path, required=True, help="h5ad or h5mu file of this site")
    site.add_argument("--key", type=Path, required=True, help="key file of the sites")
    site.add_argument(
        "--yes", action="store_true", help="agree to what leaves the site in this run without being asked"
    )
    site.add_argument("--runs", type=int, default=1, help="new runs that are agreed to (default 1), for a service")
    site.add_argument(
        "--accept-difference",
        action="append",
        default=[],
        metavar="SITE",
        help="take part though what this site contributes can be computed: it is in one of two runs over the same data "
        "only, or one of few that measured a modality",
    )
    site.add_argument("--dry-run", action="store_true", help="list what would leave the site, and stop")
    site.add_argument("--poll", type=float, default=0.5, help="seconds between looks for messages (default 0.5)")
    site.set_defaults(run=_site)

    app = command(
        actions,
        "app",
        "write the folder that `flwr run` takes, for a Flower that runs already",
        "scinfl federation app kit/server --job kit/server/job.toml --out app",
    )
    app.add_argument("kit", type=Path, help="folder of the operator")
    app.add_argument("--job", type=Path, required=True, help="file of the job")
    app.add_argument("--out", type=Path, required=True, help="folder to write")
    app.set_defaults(run=_app)

    add = command(actions, "add", "write the folder of a further site", "scinfl federation add kit/server west")
    add.add_argument("kit", type=Path, help="folder of the operator")
    add.add_argument("site", help="name of the new site")
    add.set_defaults(run=_add)

    show = command(
        actions,
        "show",
        "fingerprints of the sites in a folder, to compare by telephone",
        "scinfl federation show kit/site_north",
    )
    show.add_argument("kit", type=Path, help="folder of the operator or of a site")
    show.set_defaults(run=_show)

    revoke = command(actions, "revoke", "never let a site in again", "scinfl federation revoke kit/server west")
    revoke.add_argument("kit", type=Path, help="folder of the operator")
    revoke.add_argument("site", help="name of the site")
    revoke.set_defaults(run=_revoke)

    status = command(
        actions,
        "status",
        "who is connected, how far the run is, and what the server waits for; also while it runs",
        "scinfl federation status kit/server",
        "scinfl federation status kit/server --format prometheus",
    )
    status.add_argument("kit", type=Path, help="folder of the operator")
    status.add_argument(
        "--format",
        choices=["text", "json", "prometheus"],
        default="text",
        help="text, a line of JSON, or metrics for Prometheus (default text)",
    )
    status.set_defaults(run=_status)
    for parser in (init, app, add, server, site, show, revoke, status):
        parser.set_defaults(report=report)


def _init(options: argparse.Namespace) -> None:
    from scinfl.flower import make_kit

    sites = [name.strip() for name in options.sites.split(",") if name.strip()]
    make_kit(options.out, sites, address=options.address, job=options.job)
    options.report(
        f"Wrote '{options.out}' for {len(sites)} sites. Send each site_… folder to its site and delete your copy; keep "
        f"authority/ off the server. '{options.out / 'README.md'}' explains more."
    )


def _app(options: argparse.Namespace) -> None:
    from scinfl.flower import make_app

    path = make_app(options.kit, options.out, job=options.job)
    options.report(
        f"Wrote '{path}', without any key or path. `flwr run {path} NAME --stream` trains it over the SuperNodes of "
        "that SuperLink, whose sites name folder, data and key in the configuration of their own nodes."
    )


def _add(options: argparse.Namespace) -> None:
    from scinfl.flower import add_site

    path = add_site(options.kit, options.site)
    options.report(
        f"Wrote '{path}'. Send it to the site and delete your copy. Name '{options.site}' in `sites` of the job, and "
        f"send the job to all sites, with '{options.kit / 'identities' / options.site}.json'."
    )


def _server(options: argparse.Namespace) -> None:
    from scinfl.flower import run_server
    from scinfl.flower.server import forget_trust

    forget_trust(os.environ)
    _prepare()
    progress = sys.stderr.isatty()
    run_server(
        options.kit,
        job=options.job,
        resume=options.resume,
        host=options.host,
        port=options.port,
        report=tqdm.write if progress else options.report,
        progress=progress,
    )
    options.report("The run is finished. The sites have the model; the server has none.")


def _site(options: argparse.Namespace) -> None:
    from scinfl.flower import list_payload, run_site

    _prepare()
    if options.dry_run:
        options.report(_as_text(list_payload(options.kit, data=options.data, key=options.key)))
        options.report("Nothing was sent.")
        return

    def confirm(payload: pd.DataFrame) -> bool:
        options.report(f"In all rounds together this site will send:\n{_as_text(payload)}")
        return options.yes or _answer("Take part? [y/N] ")

    run_site(
        options.kit,
        data=options.data,
        key=options.key,
        confirm=confirm,
        report=options.report,
        poll=options.poll,
        n_runs=options.runs,
        accept_difference=options.accept_difference,
    )


def _prepare() -> None:
    """Report in one line that the extra is missing, and let Flower log errors only."""
    from scinfl.flower import quiet_flower, require_flower

    try:
        require_flower()
    except ImportError as error:
        raise RuntimeError(str(error)) from None
    quiet_flower()


def _show(options: argparse.Namespace) -> None:
    from scinfl.flower.setup import pinned_identities

    pinned = pinned_identities(options.kit)
    if not pinned:
        msg = f"Expected a folder that `scinfl federation init` wrote, found no identities in '{options.kit}'."
        raise ValueError(msg)
    options.report("fingerprints of the identities of the sites:")
    for name, public in pinned.items():
        options.report(f"{public.fingerprint}  {name}")


def _revoke(options: argparse.Namespace) -> None:
    from scinfl.flower import revoke_site

    revoke_site(options.kit, options.site)
    options.report(
        f"Site '{options.site}' is refused from the next start of the server. It keeps the key and the models that it "
        "has: let the other sites run `scinfl key revoke`."
    )


def _status(options: argparse.Namespace) -> None:
    import json

    from scinfl.flower import read_status
    from scinfl.flower.server import status_as_metrics, status_as_text

    status = read_status(options.kit)
    as_text = {"text": status_as_text, "json": json.dumps, "prometheus": status_as_metrics}[options.format]
    options.report(as_text(status))  # type: ignore[operator]


def _answer(question: str) -> bool:
    if not sys.stdin.isatty():
        msg = "Expected somebody to agree to what leaves the site, found no terminal. Pass `--yes` after reading it."
        raise RuntimeError(msg)
    return input(question).strip().lower() in {"y", "yes"}


def _as_text(payload: pd.DataFrame) -> str:
    from scinfl.flower import in_bytes

    shown = payload[["purpose", "array", "shape", "type", "rounds", "bytes"]]
    masked = "the server can read none of it" if payload["masked"].all() else "the server reads what is not masked"
    return f"{shown.to_string(index=False)}\n{in_bytes(payload['bytes'].sum())} in all; {masked}"
