"""Command line: parses arguments and calls the public API."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from scinfl import __version__, _names
from scinfl._data_files import check_output, read_data
from scinfl._spelling import spelling
from scinfl.cli._federation import add_federation
from scinfl.cli._info import describe_model, describe_setup
from scinfl.cli._keys import add_keys
from scinfl.cli._models import add_models, load_model
from scinfl.cli._text import Commands, as_typed, command, error_line

_START = """start here (`scinfl COMMAND --help` has an example of each command):
  scinfl demo --out demo                                  a complete example on bundled cells, about a minute
  scinfl key new lung.key                                 the sites share it, a server never sees it
  scinfl train cells.h5ad --labels cell_type --site hospital --key lung.key --out run
  scinfl predict run new_cells.h5ad --key lung.key
  scinfl info                                             versions, devices and extras of this installation
"""
_EXIT_CODES = "exit codes: 0 done, 1 an error (one line on standard error), 2 wrong usage, 130 stopped by Ctrl-C"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Errors are one line on standard error."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = _parser()
    if not arguments:
        parser.print_help(sys.stderr)
        return 2
    options = parser.parse_args(arguments)
    level = getattr(logging, options.log_level.upper())
    logging.basicConfig(level=max(level, logging.INFO), format="%(message)s")
    logging.getLogger("scinfl").setLevel(level)  # not of others, which would show calls and headers
    for noisy in ("fontTools", "matplotlib", "numba", "scvi", "lightning", "pytorch_lightning"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        with spelling(as_typed(options)):
            options.run(options)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError) as error:
        print(f"scinfl: error: {error_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("scinfl: stopped", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scinfl",
        description="Train one model over sites that do not pool cells, locked with a secret key.",
        epilog=f"{_START}\n{_EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"scinfl {__version__}")
    parser.add_argument(
        "--log-level",
        choices=["debug", "info", "warning", "error"],
        default="info",
        help="what scinfl logs on standard error, before the command (default info)",
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    demo = command(
        commands,
        "demo",
        "a complete example on bundled cells: five sites, right, wrong and no key",
        "scinfl demo --out demo",
    )
    demo.add_argument("--out", type=Path, required=True, help="folder for table, figures and h5ad")
    demo.add_argument("--overwrite", action="store_true", help="replace the files of an earlier demo")
    demo.add_argument("--rng", type=int, default=0, help="seed (default 0)")
    demo.set_defaults(run=_demo)

    add_keys(commands, print)

    add_models(commands, print)
    _add_audit(commands)
    add_federation(commands, print)

    info = command(
        commands,
        "info",
        "versions, devices and extras, or what is known about a saved model without its key",
        "scinfl info",
        "scinfl info run",
    )
    info.add_argument("model", type=Path, nargs="?", help="folder of a model")
    info.set_defaults(run=_info)
    return parser


def _add_audit(commands: Commands) -> None:
    audit = command(
        commands,
        "audit",
        "attack a trained model of any kind and what its sites send; a report with verdicts",
        "scinfl audit run cells.h5ad --key lung.key --held-out new_cells.h5ad --out audit.html",
        "scinfl audit run cells.h5ad --key lung.key --quick --attributes sex smoker",
        "scinfl audit model.pt",
    )
    audit.add_argument("model", type=Path, help="folder of the model, or a file that scvi-tools saved")
    text = "h5ad or h5mu file that it was trained on, with all columns it needs; none for a file of scvi-tools"
    audit.add_argument("data", type=Path, nargs="?", help=text)
    audit.add_argument("--key", type=Path, help="key file of a keyed model")
    audit.add_argument(
        "--held-out", type=Path, help="h5ad or h5mu file that it was not trained on; else a twin is trained if need be"
    )
    audit.add_argument("--attributes", nargs="+", default=(), help="columns that an attacker might infer, such as sex")
    audit.add_argument("--quick", action="store_true", help="a tenth of the effort")
    audit.add_argument("--rng", type=int, default=0, help="seed of the attacks (default 0)")
    audit.add_argument("--out", type=Path, default=Path("audit.html"), help="html or md file (default: audit.html)")
    audit.add_argument("--overwrite", action="store_true", help="replace a report that is there")
    audit.set_defaults(run=_audit)


def _demo(options: argparse.Namespace) -> None:
    from scinfl.cli._demo import demo

    print(demo(options.out, rng=options.rng, overwrite=options.overwrite).to_string())
    print("\n175 held-out cells of 10 types, some of them with two cells: a few points of difference are noise.")
    print(f"Table, figures, labelled cells, model and key are in '{options.out}'.")


def _audit(options: argparse.Namespace) -> None:
    import scinfl as si

    if options.data is None:
        found = si.privacy.inspect_model_file(options.model)
        print(found.to_string(index=False) if len(found) else "Nothing of single cells was found in the file.")
        return
    check_output(options.out, (".html", ".md"), overwrite=options.overwrite)
    adata, held_out = (path and read_data(path) for path in (options.data, options.held_out))
    key = options.key and si.privacy.Key.load(options.key)
    model = load_model(options.model, adata, key=key)
    si.tl.audit(
        adata,
        model,
        held_out=held_out,
        key=key,
        attributes=options.attributes,
        quick=options.quick,
        rng=options.rng,
    )
    si.tl.audit_report(adata, options.out, overwrite=options.overwrite)
    for adversary, verdict in adata.uns[_names.UNS]["audit"]["verdicts"].items():
        print(f"{adversary}: {verdict}")
    print(f"Wrote '{options.out}'.")


def _info(options: argparse.Namespace) -> None:
    for line in describe_setup() if options.model is None else describe_model(options.model):
        print(line)
