"""Command line: parses arguments and calls the public API."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from scinfl import __version__, _names
from scinfl._checks import new_path, number_between, obs_column, one_of, read_data
from scinfl._spelling import spelling
from scinfl.cli._federation import add_federation
from scinfl.cli._info import describe_model, describe_setup
from scinfl.cli._keys import add_keys
from scinfl.cli._text import Commands, as_typed, command, error_line

_START = """start here (`scinfl COMMAND --help` has an example of each command):
  scinfl demo --out demo                                  a complete example on bundled cells, about a minute
  scinfl key new lung.key                                 the sites share it, a server never sees it
  scinfl train cells.h5ad --labels cell_type --site hospital --key lung.key --out run
  scinfl predict run new_cells.h5ad --key lung.key
  scinfl info                                             versions, devices and extras of this installation
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Errors are one line on standard error."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = _parser()
    if not arguments:
        parser.print_help(sys.stderr)
        return 2
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
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
        epilog=_START,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"scinfl {__version__}")
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

    train = command(
        commands,
        "train",
        "train a classifier over the sites of an h5ad file",
        "scinfl train cells.h5ad --labels cell_type --site hospital --group donor --key lung.key --out run",
        "scinfl train cells.h5ad --labels cell_type --site hospital --key lung.key --out run --dry-run",
    )
    train.add_argument("data", type=Path, help="h5ad file")
    train.add_argument("--labels", required=True, help="column of obs with the labels")
    train.add_argument("--site", help="column of obs with the site (one pooled site by default)")
    train.add_argument("--group", help="column of obs with patient or donor, kept together in validation")
    train.add_argument("--unlabeled", help="label of rows that have none; they are predicted but not trained on")
    train.add_argument("--layer", help="layer to use instead of X")
    train.add_argument("--missing", choices=["error", "zero"], default="error", help="what to do with NaN")
    train.add_argument("--key", type=Path, help="key file; without it the model is not keyed")
    train.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    train.add_argument("--rounds", type=int, default=50, help="rounds (default 50)")
    train.add_argument("--hidden", type=int, default=256, help="hidden units (default 256)")
    train.add_argument("--journal", type=Path, help="folder for checkpoints; resumes the run that it holds")
    train.add_argument("--rng", type=int, default=0, help="seed (default 0)")
    train.add_argument("--device", default="auto", help="auto, cpu or cuda:0 (default auto: the first GPU if any)")
    train.add_argument("--overwrite", action="store_true", help="replace a model that is there")
    train.add_argument("--dry-run", action="store_true", help="list what would leave each site, and stop")
    train.set_defaults(run=_train)

    predict = command(
        commands,
        "predict",
        "label the cells of an h5ad file with a trained model",
        "scinfl predict run new_cells.h5ad --key lung.key",
        "scinfl predict run new_cells.h5ad --key lung.key --out labels.csv --min-confidence 0.8",
    )
    predict.add_argument("model", type=Path, help="folder of the model")
    predict.add_argument("data", type=Path, help="h5ad file")
    predict.add_argument("--key", type=Path, help="key file of a keyed model")
    predict.add_argument("--out", type=Path, help="h5ad or csv file to write (default: <data>_infl.h5ad)")
    predict.add_argument("--min-confidence", type=float, help="0 to 1; cells below become 'unassigned'")
    predict.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    predict.set_defaults(run=_predict)

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
    )
    audit.add_argument("model", type=Path, help="folder of the model")
    audit.add_argument("data", type=Path, help="h5ad or h5mu file that it was trained on, with all columns it needs")
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


def _train(options: argparse.Namespace) -> None:
    new_path(options.out, overwrite=options.overwrite)
    adata = read_data(options.data, "h5ad")
    # a misspelt name is reported before torch takes its time to load
    for option in ("labels", "site", "group"):
        if (column := getattr(options, option)) is not None:
            obs_column(adata, column, f"{option}_key")

    from scinfl.model import Classifier
    from scinfl.model.base import check_replaceable
    from scinfl.privacy import Key

    check_replaceable(options.out)
    key = Key.load(options.key) if options.key else None
    Classifier.setup_anndata(
        adata,
        labels_key=options.labels,
        site_key=options.site,
        layer=options.layer,
        group_key=options.group,
        unlabeled_category=options.unlabeled,
        missing=options.missing,
    )
    model = Classifier(adata, n_hidden=options.hidden, rng=options.rng)
    model.train(
        options.rounds,
        key=key,
        journal=options.journal,
        rng=options.rng,
        device=options.device,
        dry_run=options.dry_run,
    )
    if options.dry_run and model.payload is not None:
        print(f"{model.payload.to_string(index=False)}\nNothing was trained, sent or written to '{options.out}'.")
        return
    model.save(options.out, overwrite=options.overwrite)
    print(f"{model}\nSaved to '{options.out}'.")


def _predict(options: argparse.Namespace) -> None:
    import pandas as pd

    import scinfl as si

    out = options.out or options.data.with_name(f"{options.data.stem}_infl.h5ad")
    _check_output(out, [".h5ad", ".csv"], overwrite=options.overwrite)
    if options.min_confidence is not None:
        number_between("--min-confidence", options.min_confidence, 0, 1)
    model = si.model.Classifier.load(options.model)
    if options.key:
        model.unlock(si.privacy.Key.load(options.key))
    adata = read_data(options.data, "h5ad")
    si.tl.annotate(adata, model, min_confidence=options.min_confidence)
    temporary = out.with_name(f".{out.name}.part{out.suffix}")
    try:
        if out.suffix == ".csv":
            probabilities = pd.DataFrame(adata.obsm["infl_probability"], adata.obs_names, model.labels)
            # by place: names of cells may occur twice
            probabilities.insert(0, "infl_label", adata.obs["infl_label"].to_numpy(), allow_duplicates=True)
            probabilities.to_csv(temporary)
        else:
            si.tl.embed(adata, model)
            adata.write_h5ad(temporary)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    print(adata.obs["infl_label"].value_counts().to_string())
    print(f"Wrote '{out}'.")


def _audit(options: argparse.Namespace) -> None:
    import scinfl as si
    from scinfl.model.base import read_document

    _check_output(options.out, [".html", ".md"], overwrite=options.overwrite)
    adata, held_out = (path and read_data(path) for path in (options.data, options.held_out))
    model = getattr(si.model, read_document(options.model)["class"]).load(options.model, adata)
    key = options.key and si.privacy.Key.load(options.key)
    if key is not None:
        model.unlock(key)
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


def _check_output(path: Path, endings: Sequence[str], *, overwrite: bool) -> None:
    """Refuse before any work is done what could not be written after it."""
    one_of("--out (ending)", path.suffix, endings)
    new_path(path, overwrite=overwrite)
    if not path.parent.is_dir():
        msg = f"Expected an existing folder for `--out`, found none at '{path.parent}'. Create it first."
        raise FileNotFoundError(msg)


def _info(options: argparse.Namespace) -> None:
    for line in describe_setup() if options.model is None else describe_model(options.model):
        print(line)
