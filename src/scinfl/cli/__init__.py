"""The command line: parses arguments and calls the public API."""

from scinfl.cli._main import main

__all__ = ["main"]
