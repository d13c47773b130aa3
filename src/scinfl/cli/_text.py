"""Texts of the command line: help with examples, errors in one line, options for arguments of the Python API."""

from __future__ import annotations

import argparse
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # argparse has no public name for it

_NAN_ZERO = ", or set up with `missing='zero'`"
_OVERWRITE = ", or pass `overwrite=True`"
_OPTIONS = {  # phrases of the Python API by option, and how they are typed
    "labels": {"`labels_key`": "`--labels`"},
    "condition": {"`condition_key`": "`--condition`"},
    "section": {"`section_key`": "`--section`"},
    "clusters": {"`n_clusters`": "`--clusters`"},
    "early_stopping": {"`early_stopping`": "`--early-stopping`"},
    "epochs": {"`local_epochs`": "`--epochs`"},
    "batch_size": {"`batch_size`": "`--batch-size`"},
    "lr": {"`lr`": "`--lr`"},
    "modality": {"`modality`": "`--modality`"},
    "sections": {"`sections`": "`--sections`"},
    "gene_names": {"`gene_key`": "`--gene-names`"},
    "spatial": {"`spatial_key`": "`--spatial`"},
    "site": {"`site_key`": "`--site`", "`site_key=None`": "no `--site`"},
    "group": {"`group_key`": "`--group`"},
    "layer": {"`layer`": "`--layer`"},
    "missing": {_NAN_ZERO: ", or pass `--missing zero`"},
    "unlabeled": {"`unlabeled_category`": "`--unlabeled`"},
    "key": {
        "Call `model.unlock(key)` first": "Pass its key file with `--key`",
        "Pass `key=` as in training": "Pass the key file of the training with `--key`",
    },
    "rounds": {"`n_rounds`": "`--rounds`"},
    "hidden": {"`n_hidden`": "`--hidden`"},
    "journal": {"`journal`": "`--journal`"},
    "control": {"`control`": "`--control`"},
    "split": {"`split_key`": "`--split`"},
    "covariates": {"Pass `covariates=`": "Pass them with `--covariates`"},
    "latent": {"`n_latent`": "`--latent`"},
    "device": {"`device`": "`--device`"},
    "attributes": {"`attributes`": "`--attributes`"},
    "rng": {"`rng`": "`--rng`"},
    "new": {"`scinfl.privacy.rotate`": "`scinfl key rotate`"},
    "overwrite": {_OVERWRITE: ", or pass `--overwrite`"},
}


def command(commands: Commands, name: str, help: str, *examples: str) -> argparse.ArgumentParser:
    """Add a command whose help ends with examples."""
    heading = "example:" if len(examples) == 1 else "examples:"
    return commands.add_parser(
        name,
        help=help,
        description=f"{help[0].upper()}{help[1:]}.",
        epilog="\n  ".join([heading, *examples]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def as_typed(options: argparse.Namespace) -> dict[str, str]:
    """Spelling of the Python API's phrases for the options of a command, see :func:`scinfl._spelling.spelling`."""
    phrases = {_OVERWRITE: "", _NAN_ZERO: ", or train with `--missing zero`"}
    if hasattr(options, "kit"):  # a federation names its settings in files, as the Python API does
        return {_OVERWRITE: ""}
    for option, typed in _OPTIONS.items():
        if hasattr(options, option):
            phrases |= typed
    return phrases


def error_line(error: BaseException) -> str:
    """Text of an error in one line."""
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"Expected a file at '{error.filename}', found none. Check the path."
    if isinstance(error, OSError) and error.filename is not None:
        return f"Expected to read or write '{error.filename}', found: {error.strerror}."
    # a KeyError shows its text in quotation marks
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    return " ".join(text.split())
