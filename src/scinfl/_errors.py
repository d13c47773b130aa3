"""Errors that one part of scinfl raises and another acts on."""

from __future__ import annotations


class RepeatRoundError(RuntimeError):
    """The updates of a round must be sent again, encoded anew; nothing needs to be trained again."""


class TamperedSumError(ValueError):
    """A sum is not the sum of what the sites sent: the server or the network changed something."""
