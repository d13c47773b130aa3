"""Axes to draw on."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.axes import Axes


def axes(ax: Axes | None, width: float = 5.0, height: float = 3.5) -> Axes:
    """The given axes, or those of a new figure of this size in inches."""
    return plt.subplots(figsize=(width, height), layout="constrained")[1] if ax is None else ax


def polar_axes(ax: Axes | None, size: float = 5.0) -> Axes:
    """The given polar axes, or those of a new figure."""
    if ax is None:
        return plt.subplots(figsize=(1.4 * size, size), layout="constrained", subplot_kw={"projection": "polar"})[1]
    if ax.name != "polar":
        msg = "Expected polar axes, found others. Make them with `subplot_kw={'projection': 'polar'}`."
        raise ValueError(msg)
    return ax
