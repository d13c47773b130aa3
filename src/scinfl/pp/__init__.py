"""Prepare data."""

from scinfl.pp._split_sites import split_sites

__all__ = ["split_sites"]
