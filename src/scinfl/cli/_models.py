"""Commands for models of any class: parse arguments and call ``scinfl.model`` and ``scinfl.tl``."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scinfl import _names
from scinfl._checks import new_path, number_between, obs_column, one_of, whole_number
from scinfl._data_files import check_output, read_data, write_data
from scinfl.cli._text import Commands, command

if TYPE_CHECKING:
    import pandas as pd

Report = Callable[[str], None]

MODELS = {"classifier": "Classifier", "gears": "GEARS", "spamosaic": "SpaMosaic"}
"""Model classes of ``scinfl.model`` by what users type; a further one needs an entry here alone."""
_OF_SCVI = "scvi."
"""What stands before the name of a class of scvi-tools."""
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
_SOME_FILES = "h5ad, h5mu or zarr file"


def add_models(commands: Commands, report: Report) -> None:
    """Add the commands."""
    train = command(
        commands,
        "train",
        "train a model over the sites of a file",
        "scinfl train cells.h5ad --labels cell_type --site hospital --group donor --key lung.key --out run",
        "scinfl train cells.h5ad --labels cell_type --site hospital --key lung.key --out run --dry-run",
        "scinfl train screen.zarr --model gears --condition condition --site lab --ontology go.csv --out run",
        "scinfl train sections.h5mu --model spamosaic --section section --site hospital --key lung.key --out run",
        "scinfl train counts.h5ad --model scvi.SCVI --site hospital --key lung.key --out run",
    )
    train.add_argument("data", type=Path, help=_SOME_FILES)
    text = f"{', '.join(MODELS)}, or a class of scvi-tools such as scvi.SCVI (default classifier)"
    train.add_argument("--model", type=_model_name, default="classifier", help=text)
    _add(train, _SETUP, _MODEL, _TRAIN)
    train.add_argument("--key", type=Path, help="key file; without it the model is not keyed")
    train.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    train.add_argument("--rng", type=int, default=0, help="seed (default 0)")
    train.add_argument("--device", default="auto", help="auto, cpu or cuda:0 (default auto: the first GPU if any)")
    train.add_argument("--overwrite", action="store_true", help="replace a model that is there")
    train.add_argument("--dry-run", action="store_true", help="list what would leave each site, and stop")
    train.set_defaults(run=_train)

    predict = _with_model(
        commands,
        "predict",
        "label cells, or predict responses to perturbations, with a trained model",
        "scinfl predict run new_cells.h5ad --key lung.key",
        "scinfl predict run new_cells.h5ad --key lung.key --out labels.csv --min-confidence 0.8",
        "scinfl predict run screen.h5ad --perturbations KLF1 KLF1+BAK1 --out changes.csv",
    )
    predict.add_argument("--min-confidence", type=float, help="0 to 1; cells below become 'unassigned'")
    predict.add_argument("--perturbations", nargs="+", help="for a gears: genes to perturb, such as A and A+B")
    predict.add_argument("--covariates", nargs="+", type=_level, metavar="COLUMN=LEVEL", help="for a gears with any")
    predict.set_defaults(run=_predict)

    embed = _with_model(
        commands,
        "embed",
        "write the latent representation of cells or spots",
        "scinfl embed run sections.h5mu --key lung.key",
        "scinfl embed run cells.zarr --key lung.key --out embedded.zarr",
    )
    embed.set_defaults(run=_embed)

    impute = _with_model(
        commands,
        "impute",
        "impute a modality for sections that did not measure it",
        "scinfl impute run sections.h5mu --modality adt --key lung.key --out adt.h5ad",
    )
    impute.add_argument("--modality", required=True, help="what to impute")
    impute.add_argument("--sections", nargs="+", help="which sections (default: all that lack it)")
    impute.set_defaults(run=_impute)

    cluster = command(
        commands,
        "cluster",
        "cluster cells or spots by an embedding, with one name per domain over all sections",
        "scinfl cluster sections_infl.h5mu --clusters 8 --section section",
    )
    cluster.add_argument("data", type=Path, help=f"{_SOME_FILES} that `scinfl embed` wrote")
    cluster.add_argument("--clusters", type=int, help="number of domains")
    cluster.add_argument("--method", choices=["kmeans", "gaussian", "leiden"], default="kmeans", help="default kmeans")
    cluster.add_argument("--resolution", type=float, default=1.0, help="of leiden (default 1)")
    cluster.add_argument("--rep", default=_names.EMBEDDING, help=f"embedding in obsm (default {_names.EMBEDDING})")
    cluster.add_argument("--section", help="column of obs with the section, to warn of sections that stay apart")
    cluster.add_argument("--rng", type=int, default=0, help="seed (default 0)")
    _add_output(cluster, "domains")
    cluster.set_defaults(run=_cluster)
    for parser in (train, predict, embed, impute, cluster):
        parser.set_defaults(report=report)


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


def _with_model(commands: Commands, name: str, help: str, *examples: str) -> argparse.ArgumentParser:
    parser = command(commands, name, help, *examples)
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("data", type=Path, help=_SOME_FILES)
    parser.add_argument("--key", type=Path, help="key file of a keyed model")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:0 (default auto: the first GPU if any)")
    _add_output(parser, "infl")
    return parser


def _add_output(parser: argparse.ArgumentParser, word: str) -> None:
    text = f"h5ad, h5mu, zarr or csv file to write (default: the name of the data with _{word})"
    parser.add_argument("--out", type=Path, help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    parser.set_defaults(word=word)


def _model_name(typed: str) -> str:
    if typed not in MODELS and not typed.startswith(_OF_SCVI):
        msg = f"expected {', '.join(MODELS)} or {_OF_SCVI}SCVI, found {typed!r}"
        raise argparse.ArgumentTypeError(msg)
    return typed


def _level(typed: str) -> tuple[str, str]:
    column, equals, level = typed.partition("=")
    if not equals:
        msg = f"expected COLUMN=LEVEL, such as cell_type=T, found {typed!r}"
        raise argparse.ArgumentTypeError(msg)
    return column, level


def load_model(path: Path, adata: Any = None, *, key: Any = None, device: str = "auto") -> Any:
    """A saved model of any class, unlocked where there is a key."""
    from scinfl import model as models
    from scinfl.model.base import read_document

    model = getattr(models, read_document(path)["class"]).load(path, adata, device=device)
    if key is not None:
        model.unlock(key)
    return model


def _key(options: argparse.Namespace) -> Any:
    from scinfl.privacy import Key

    return Key.load(options.key) if options.key else None


def _train(options: argparse.Namespace) -> None:
    new_path(options.out, overwrite=options.overwrite)
    for argument, (name, _) in {**_MODEL, **_TRAIN}.items():
        if argument in _WHOLE and (value := getattr(options, name)) is not None:
            whole_number(argument, value, 1)
    key = _key(options)
    # a Classifier has no `setup_mudata`: a misspelt file or column is reported before torch takes its time to load
    adata = read_data(options.data, "h5ad" if options.model != "spamosaic" else None)
    for option in ("labels", "condition", "section", "site", "group"):
        column = getattr(options, option)
        if column is not None and not hasattr(adata, "mod"):  # modalities may have it where a MuData has not
            obs_column(adata, column, f"{option}_key")

    from scinfl.model.base import check_replaceable

    check_replaceable(options.out)
    model, to_train = _made(options, adata)
    model.train(**to_train, key=key, rng=options.rng, device=options.device, dry_run=options.dry_run)
    if options.dry_run and model.payload is not None:
        options.report(f"{model.payload.to_string(index=False)}\n{_totals(model.payload)}")
        options.report(f"Nothing was trained, sent or written to '{options.out}'.")
        return
    model.save(options.out, overwrite=options.overwrite)
    options.report(f"{model}\nSaved to '{options.out}'.")


def _made(options: argparse.Namespace, adata: Any) -> tuple[Any, dict[str, Any]]:
    """The model that the options describe, of data that were set up for it, and arguments of its training."""
    from scinfl import model as models
    from scinfl.model.scvi import class_of

    name = options.model.removeprefix(_OF_SCVI)
    of_scvi = name != options.model
    kind: Any = models.ScviModel if of_scvi else getattr(models, MODELS[name])
    setup = kind.setup_mudata if hasattr(adata, "mod") else kind.setup_anndata
    made_by: Any = class_of(name) if of_scvi else kind
    to_set_up, to_make, to_train = (
        _chosen(options, function, names)
        for function, names in ((setup, _SETUP), (made_by, _MODEL), (kind.train, _TRAIN))
    )
    _check_all_taken(options, {*to_set_up, *to_make, *to_train})
    if of_scvi:
        return models.from_scvi(name, adata, **{"site_key": None, **to_set_up}, **to_make, rng=options.rng), to_train
    setup(adata, **to_set_up)
    return kind(adata, **to_make, rng=options.rng), to_train


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


def _opened(options: argparse.Namespace, *, csv: bool = True) -> tuple[Any, Any, Path]:
    """Model, data and the checked path of the output."""
    out = options.out or options.data.with_name(f"{options.data.stem}_{options.word}{options.data.suffix}")
    check_output(out, (".h5ad", ".h5mu", ".zarr", *([".csv"] if csv else [])), overwrite=options.overwrite)
    key = _key(options) if hasattr(options, "key") else None
    model = load_model(options.model, key=key, device=options.device) if hasattr(options, "model") else None
    data = read_data(options.data)
    if out.suffix in {".h5ad", ".h5mu"} and options.word != "imputed":
        one_of("--out (ending)", out.suffix, [".h5mu" if hasattr(data, "mod") else ".h5ad", ".zarr", ".csv"])
    return model, data, out


def _predict(options: argparse.Namespace) -> None:
    if options.min_confidence is not None:
        number_between("--min-confidence", options.min_confidence, 0, 1)
    model, adata, out = _opened(options)

    import pandas as pd

    import scinfl as si

    if isinstance(model, si.model.GEARS):
        _predict_responses(options, model, adata, out)
        return
    for option in ("perturbations", "covariates"):
        if getattr(options, option):
            msg = f"Expected a gears for `--{option}`, found a {type(model).__name__}. Leave them out."
            raise ValueError(msg)
    if not isinstance(model, si.model.Classifier | si.model.ScviModel):
        msg = (
            f"Expected a model that predicts, found a {type(model).__name__}. Use `scinfl embed`, `scinfl cluster` or "
            "`scinfl impute`."
        )
        raise TypeError(msg)
    si.tl.annotate(adata, model, min_confidence=options.min_confidence)
    if out.suffix == ".csv":
        probabilities = pd.DataFrame(adata.obsm[_names.PROBABILITY], adata.obs_names, model.labels)
        # by place: names of cells may occur twice
        probabilities.insert(0, _names.LABEL, adata.obs[_names.LABEL].to_numpy(), allow_duplicates=True)
        write_data(probabilities, out)
    else:
        si.tl.embed(adata, model)
        write_data(adata, out)
    options.report(f"{adata.obs[_names.LABEL].value_counts().to_string()}\nWrote '{out}'.")


def _predict_responses(options: argparse.Namespace, model: Any, adata: Any, out: Path) -> None:
    if not options.perturbations:
        msg = "Expected `--perturbations` for a gears, found none. Name them, for example `--perturbations A A+B`."
        raise ValueError(msg)
    names, covariates = options.perturbations, dict(options.covariates or ())
    if out.suffix == ".csv":
        write_data(model.predict_change(names, covariates=covariates), out)
    else:
        write_data(model.predict(names, adata, covariates=covariates), out)
    options.report(f"{len(options.perturbations)} perturbations × {len(model.genes)} genes\nWrote '{out}'.")


def _embed(options: argparse.Namespace) -> None:
    model, data, out = _opened(options)

    import pandas as pd

    from scinfl import tl

    if not hasattr(model, "get_latent_representation"):
        msg = f"Expected a model with an embedding, found a {type(model).__name__}. Use `scinfl predict`."
        raise ValueError(msg)
    tl.embed(data, model)
    embedding = data.obsm[_names.EMBEDDING]
    write_data(pd.DataFrame(embedding, data.obs_names) if out.suffix == ".csv" else data, out)
    options.report(f"{len(embedding)} × {embedding.shape[1]} in obsm['{_names.EMBEDDING}']\nWrote '{out}'.")


def _impute(options: argparse.Namespace) -> None:
    options.out = options.out or options.data.with_name(f"{options.data.stem}_{options.modality}.h5ad")
    options.word = "imputed"
    model, data, out = _opened(options)
    one_of("--out (ending)", out.suffix, [".h5ad", ".zarr", ".csv"])

    from scinfl import tl

    if not hasattr(model, "impute") or not hasattr(data, "mod"):
        found = "a MuData" if hasattr(data, "mod") else "an AnnData"
        msg = f"Expected a SpaMosaic and a MuData, found a {type(model).__name__} and {found}. Check the paths."
        raise ValueError(msg)
    imputed = tl.impute(data, model, modality=options.modality, sections=options.sections)
    write_data(imputed.to_df() if out.suffix == ".csv" else imputed, out)
    options.report(f"{imputed.n_obs} spots × {imputed.n_vars} features\nWrote '{out}'.")


def _cluster(options: argparse.Namespace) -> None:
    _, data, out = _opened(options)

    from scinfl import tl

    tl.cluster(
        data,
        options.clusters,
        method=options.method,
        use_rep=options.rep,
        section_key=options.section,
        resolution=options.resolution,
        rng=options.rng,
    )
    domains = data.obs[_names.DOMAIN]
    write_data(domains.to_frame() if out.suffix == ".csv" else data, out)
    options.report(f"{domains.value_counts().to_string()}\nWrote '{out}'.")
