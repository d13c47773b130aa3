"""Command that trains a model of any class."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scinfl._checks import new_path, obs_column, whole_number
from scinfl._data_files import read_data
from scinfl._names import OF_SCVI
from scinfl.cli._text import Commands, command

if TYPE_CHECKING:
    import pandas as pd

Report = Callable[[str], None]

MODELS = {"classifier": "Classifier", "gears": "GEARS", "spamosaic": "SpaMosaic"}
"""Model classes of ``scinfl.model`` by what users type; a further one needs an entry here alone."""
_SETUP = {  # options by the argument of `setup_anndata` and `setup_mudata` that they set
    "labels_key": ("labels", "column of obs with the labels"),
    "condition_key": ("condition", "column of obs with the perturbation of each cell"),
    "section_key": ("section", "column of obs with the section of each spot"),
    "site_key": ("site", "column of obs with the site (one pooled site by default)"),
    "group_key": ("group", "column of obs with patient or donor, kept together in validation"),
    "unlabeled_category": ("unlabeled", "label of rows that have none; they are predicted but not trained on"),
    "control": ("control", "name of the control condition (default ctrl)"),
    "gene_key": ("gene_names", "column of var with names of genes, where the index holds ids"),
    "split_key": ("split", "column of obs with train, val and test (default infl_split, where there is one)"),
    "covariate_keys": ("covariates", "columns of obs whose levels shift the response"),
    "spatial_key": ("spatial", "entry of obsm with the coordinates (default spatial)"),
    "layer": ("layer", "layer to use instead of X"),
    "missing": ("missing", "what to do with NaN (default error)"),
}
_MODEL = {  # of the class
    "n_hidden": ("hidden", "hidden units"),
    "n_latent": ("latent", "dimensions of the latent representation"),
    "gene_ontology": ("ontology", "csv, tsv or gmt file of similar genes or of their terms"),
}
_TRAIN = {  # of `train`
    "n_rounds": ("rounds", "rounds (default 50; 40 for gears and spamosaic, 20 for scvi)"),
    "early_stopping": ("early_stopping", "stop after so many rounds without a better one"),
    "local_epochs": ("epochs", "passes over the cells of a site per round"),
    "batch_size": ("batch_size", "cells per step"),
    "lr": ("lr", "learning rate"),
    "journal": ("journal", "folder for checkpoints; resumes the run that it holds"),
}
_WHOLE = ("n_hidden", "n_latent", "n_rounds", "early_stopping", "local_epochs", "batch_size")
SOME_FILES = "h5ad, h5mu or zarr file"


def add_train(commands: Commands, report: Report) -> None:
    """Add the command."""
    train = command(
        commands,
        "train",
        "train a model over the sites of a file",
        "scinfl train cells.h5ad --labels cell_type --site hospital --group donor --key lung.key --out run",
        "scinfl train cells.h5ad --labels cell_type --site hospital --key lung.key --out run --dry-run",
        "scinfl train screen.zarr --model gears --condition condition --site lab --ontology go.csv --out run",
        "scinfl train sections.h5mu --model spamosaic --section section --site hospital --key lung.key --out run",
        "scinfl train counts.h5ad --model scvi.SCANVI --labels cell_type --unlabeled unknown --site hospital "
        "--key lung.key --out run",
    )
    train.add_argument("data", type=Path, help=SOME_FILES)
    train.add_argument(
        "--model", type=_model, default="classifier", help=f"{', '.join(MODELS)}, or a class of scvi-tools: scvi.SCVI"
    )
    _add(train, _SETUP, _MODEL, _TRAIN)
    train.add_argument("--key", type=Path, help="key file; without it the model is not keyed")
    train.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    train.add_argument("--rng", type=int, default=0, help="seed (default 0)")
    train.add_argument("--device", default="auto", help="auto, cpu or cuda:0 (default auto: the first GPU if any)")
    train.add_argument("--overwrite", action="store_true", help="replace a model that is there")
    train.add_argument("--dry-run", action="store_true", help="list what would leave each site, and stop")
    train.set_defaults(run=_train, report=report)


def _model(text: str) -> str:
    """What users type for a class of models."""
    if text not in MODELS and not text.startswith(OF_SCVI):
        msg = f"invalid choice: {text!r} (choose from {', '.join(MODELS)}, or name a class of scvi-tools: scvi.SCVI)"
        raise argparse.ArgumentTypeError(msg)
    return text


def _add(parser: argparse.ArgumentParser, *options: dict[str, tuple[str, str]]) -> None:
    for argument, (name, text) in [item for some in options for item in some.items()]:
        more: dict[str, Any] = {"dest": name}
        if argument in _WHOLE or argument == "lr":
            more["type"] = float if argument == "lr" else int
        elif argument == "missing":
            more["choices"] = ["error", "zero"]
        elif argument == "covariate_keys":
            more["nargs"] = "+"
        elif argument in {"journal", "gene_ontology"}:
            more["type"] = Path
        parser.add_argument(f"--{name.replace('_', '-')}", help=text, **more)


def key_of(options: argparse.Namespace) -> Any:
    """The key of a command, where it has one."""
    from scinfl.privacy import Key

    return Key.load(options.key) if options.key else None


def _train(options: argparse.Namespace) -> None:
    new_path(options.out, overwrite=options.overwrite)
    for argument, (name, _) in {**_MODEL, **_TRAIN}.items():
        if argument in _WHOLE and (value := getattr(options, name)) is not None:
            whole_number(argument, value, 1)
    key = key_of(options)
    # a Classifier has no `setup_mudata`: a misspelt file or column is reported before torch takes its time to load
    may_have_modalities = options.model == "spamosaic" or options.model.startswith(OF_SCVI)
    adata = read_data(options.data, None if may_have_modalities else "h5ad")
    for option in ("labels", "condition", "section", "site", "group"):
        column = getattr(options, option)
        if column is not None and not hasattr(adata, "mod"):  # modalities may have it where a MuData has not
            obs_column(adata, column, f"{option}_key")

    from scinfl import model as models
    from scinfl.model.base import check_replaceable

    check_replaceable(options.out)
    if options.model.startswith(OF_SCVI):
        model, to_train = _of_scvi(options, adata)
    else:
        kind = getattr(models, MODELS[options.model])
        setup = kind.setup_mudata if hasattr(adata, "mod") else kind.setup_anndata
        to_set_up, to_make, to_train = (
            _chosen(options, function, names)
            for function, names in ((setup, _SETUP), (kind, _MODEL), (kind.train, _TRAIN))
        )
        _check_all_taken(options, {*to_set_up, *to_make, *to_train})
        setup(adata, **to_set_up)
        model = kind(adata, **to_make, rng=options.rng)
    model.train(**to_train, key=key, rng=options.rng, device=options.device, dry_run=options.dry_run)
    if options.dry_run and model.payload is not None:
        options.report(f"{model.payload.to_string(index=False)}\n{_totals(model.payload)}")
        options.report(f"Nothing was trained, sent or written to '{options.out}'.")
        return
    model.save(options.out, overwrite=options.overwrite)
    options.report(f"{model}\nSaved to '{options.out}'.")


def _of_scvi(options: argparse.Namespace, adata: Any) -> tuple[Any, dict[str, Any]]:
    """An untrained model of scvi-tools, and arguments of its training."""
    from scinfl import model as models
    from scinfl.pp import join_modalities

    kind, name = models.ScviModel, options.model.removeprefix(OF_SCVI)
    setup, to_train = (
        _chosen(options, function, names) for function, names in ((kind.setup_anndata, _SETUP), (kind.train, _TRAIN))
    )
    sizes = {argument: getattr(options, _MODEL[argument][0]) for argument in ("n_hidden", "n_latent")}
    own = {argument: size for argument, size in sizes.items() if size is not None}
    _check_all_taken(options, {*setup, *own, *to_train})
    cells = join_modalities(adata) if hasattr(adata, "mod") else adata
    site = setup.pop("site_key", None)
    return models.from_scvi(name, cells, site_key=site, rng=options.rng, **setup, **own), to_train


def _chosen(
    options: argparse.Namespace, function: Callable[..., Any], names: dict[str, tuple[str, str]]
) -> dict[str, Any]:
    """Arguments of a function that were typed; an error names one that it needs."""
    parameters = inspect.signature(function).parameters
    chosen = {}
    for argument, (name, text) in names.items():
        if argument not in parameters:
            continue
        if (value := getattr(options, name)) is not None:
            chosen[argument] = value
        elif parameters[argument].default is inspect.Parameter.empty:
            msg = f"Expected --{name} ({text}) for `--model {options.model}`, found none. Pass it."
            raise ValueError(msg)
    return chosen


def _check_all_taken(options: argparse.Namespace, taken: set[str]) -> None:
    """Refuse options that the model has no use for."""
    for argument, (name, _) in {**_SETUP, **_MODEL, **_TRAIN}.items():
        if argument not in taken and getattr(options, name) is not None:
            option = f"--{name.replace('_', '-')}"
            msg = f"Expected options that `--model {options.model}` takes, found {option} for such data. Leave it out."
            raise ValueError(msg)


def _totals(payload: pd.DataFrame) -> str:
    """Bytes of each site in all rounds, and whether a server could read them."""
    from scinfl.flower import in_bytes

    lines = [f"{site}: {in_bytes(n)} in all rounds" for site, n in payload.groupby("site")["bytes"].sum().items()]
    total, open_ = payload["bytes"].sum(), payload.loc[~payload["masked"].astype(bool), "bytes"].sum()
    return "\n".join([*lines, f"all sites: {in_bytes(total)}, of which the server could read {in_bytes(open_)}"])
