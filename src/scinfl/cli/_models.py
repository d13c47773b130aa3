"""Commands for models of any class: parse arguments and call ``scinfl.model`` and ``scinfl.tl``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from scinfl import _names
from scinfl._checks import new_path, number_between, one_of
from scinfl._data_files import check_output, read_data, write_data
from scinfl.cli._text import Commands, command
from scinfl.cli._train import SOME_FILES, Report, add_train, key_of


def add_models(commands: Commands, report: Report) -> None:
    """Add the commands."""
    add_train(commands, report)
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

    mapping = _with_model(
        commands,
        "map",
        "map the cells of a new site onto a trained model of scvi-tools; nothing is sent",
        "scinfl map run new_hospital.h5ad --key lung.key --out mapped",
        out="folder to write the mapped model to (default: mapped)",
    )
    mapping.add_argument("--epochs", type=int, default=100, help="passes over the cells (default 100)")
    mapping.add_argument("--rng", type=int, default=0, help="seed (default 0)")
    mapping.set_defaults(run=_map)

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
    cluster.add_argument("data", type=Path, help=f"{SOME_FILES} that `scinfl embed` wrote")
    cluster.add_argument("--clusters", type=int, help="number of domains")
    cluster.add_argument("--method", choices=["kmeans", "gaussian", "leiden"], default="kmeans", help="default kmeans")
    cluster.add_argument("--resolution", type=float, default=1.0, help="of leiden (default 1)")
    cluster.add_argument("--rep", default=_names.EMBEDDING, help=f"embedding in obsm (default {_names.EMBEDDING})")
    cluster.add_argument("--section", help="column of obs with the section, to warn of sections that stay apart")
    cluster.add_argument("--rng", type=int, default=0, help="seed (default 0)")
    _add_output(cluster, "domains")
    cluster.set_defaults(run=_cluster)
    for parser in (predict, embed, mapping, impute, cluster):
        parser.set_defaults(report=report)


def _with_model(
    commands: Commands, name: str, help: str, *examples: str, out: str | None = None
) -> argparse.ArgumentParser:
    parser = command(commands, name, help, *examples)
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("data", type=Path, help=SOME_FILES)
    parser.add_argument("--key", type=Path, help="key file of a keyed model")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:0 (default auto: the first GPU if any)")
    _add_output(parser, "infl", out)
    return parser


def _add_output(parser: argparse.ArgumentParser, word: str, out: str | None = None) -> None:
    default = f"h5ad, h5mu, zarr or csv file to write (default: the name of the data with _{word})"
    parser.add_argument("--out", type=Path, help=out or default)
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    parser.set_defaults(word=word)


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


def _opened(options: argparse.Namespace, *, csv: bool = True) -> tuple[Any, Any, Path]:
    """Model, data and the checked path of the output."""
    out = options.out or options.data.with_name(f"{options.data.stem}_{options.word}{options.data.suffix}")
    check_output(out, (".h5ad", ".h5mu", ".zarr", *([".csv"] if csv else [])), overwrite=options.overwrite)
    key = key_of(options) if hasattr(options, "key") else None
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


def _map(options: argparse.Namespace) -> None:
    out = options.out or Path("mapped")
    new_path(out, overwrite=options.overwrite)
    key, data = key_of(options), read_data(options.data)

    from scinfl import model as models

    reference = load_model(options.model, key=key, device=options.device)
    if not isinstance(reference, models.ScviModel):
        msg = f"Expected a model of scvi-tools to map onto, found a {type(reference).__name__}. Use `add_site`."
        raise TypeError(msg)
    mapped = models.map_query(reference, data, key, n_epochs=options.epochs, rng=options.rng)
    mapped.save(out, overwrite=options.overwrite)
    options.report(f"{mapped}\nSaved to '{out}'. Nothing was sent.")


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
