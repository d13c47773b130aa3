"""Axes to draw on."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.axes import Axes


def axes(ax: Axes | None, width: float = 5.0, height: float = 3.5) -> Axes:
    """The given axes, or those of a new figure of this size in inches."""
    return plt.subplots(figsize=(width, height), layout="constrained")[1] if ax is None else ax
