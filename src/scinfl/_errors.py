"""Errors and warnings that one part of scinfl raises and another acts on."""

from __future__ import annotations


class RepeatRoundError(RuntimeError):
    """The updates of a round must be encoded and sent again; nothing needs to be trained again."""


class TamperedSumError(ValueError):
    """A sum is not the sum of what the sites sent: the server or the network changed something."""


class TwoSitesWarning(UserWarning):
    """Each of two sites can subtract its own numbers from a sum."""


class WeakNoiseWarning(UserWarning):
    """So few sites learn little from updates with noise."""
