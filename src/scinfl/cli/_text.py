"""How the command line speaks: help with examples, and errors in the words that were typed."""

from __future__ import annotations

import argparse

_WORDS = {  # what the Python API says, and what somebody typed
    "`site_key=None`": "no `--site`",
    "`overwrite=True`": "`--overwrite`",
    "`force=True`": "`--force`",
    "set up with `missing='zero'`": "pass `--missing zero`",
    "Call `model.unlock(key)` first": "Pass its key file with `--key`",
    "Pass `key=` as in training": "Pass the key file of the training with `--key`",
    "`scinfl.privacy.rotate`": "`scinfl key rotate`",
    "`labels_key`": "`--labels`",
    "`site_key`": "`--site`",
    "`group_key`": "`--group`",
    "`layer`": "`--layer`",
    "`n_rounds`": "`--rounds`",
    "`n_hidden`": "`--hidden`",
    "`device`": "`--device`",
    "`attributes`": "`--attributes`",
    "`rng`": "`--rng`",
}


def command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, help: str, *examples: str
) -> argparse.ArgumentParser:
    """Add a command whose help ends with examples.

    Parameters
    ----------
    commands
        Commands of the parser above.
    name
        What is typed.
    help
        One line, for the list of commands and the command's own help.
    examples
        Lines that can be typed.
    """
    heading = "example:" if len(examples) == 1 else "examples:"
    return commands.add_parser(
        name,
        help=help,
        description=f"{help[0].upper()}{help[1:]}.",
        epilog="\n  ".join([heading, *examples]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def told(error: BaseException, options: argparse.Namespace) -> str:
    """Text of an error in one line, with options for arguments of the Python API.

    Parameters
    ----------
    error
        What was raised.
    options
        Options of the command.

    Examples
    --------
    >>> told(ValueError("Expected `n_rounds` to be 1, found 0."), argparse.Namespace(rounds=0))
    'Expected `--rounds` to be 1, found 0.'
    """
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"Expected a file at '{error.filename}', found none. Check the path."
    if isinstance(error, OSError) and error.filename is not None:
        return f"Expected to read or write '{error.filename}', found: {error.strerror}."
    # a KeyError shows its text in quotation marks
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if not hasattr(options, "overwrite"):
        text = text.replace(", or pass `overwrite=True`", "")
    in_files = hasattr(options, "kit")  # a federation names its settings in files, as the Python API does
    for said, typed in () if in_files else _WORDS.items():
        text = text.replace(said, typed)
    return " ".join(text.split())
