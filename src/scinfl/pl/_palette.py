"""Colours of all figures, distinct in grey and for colour-blind readers too."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_hex

BLUE, VERMILION, ORANGE, GREEN = "#0072B2", "#D55E00", "#E69F00", "#009E73"
BLACK, GREY, PALE = "#000000", "#8C8C8C", "#D9D9D9"

# Okabe & Ito (2008) without green, which is the control's, and yellow, which is too pale on white
_METHODS = (VERMILION, BLUE, ORANGE, "#CC79A7", "#56B4E9", BLACK)
_SYMBOLS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_LINES = ("-", "--", "-.", ":")

# the "muted" scheme of Tol (2021)
_CATEGORIES = ("#CC6677", "#332288", "#DDCC77", "#117733", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499")

CONTROL = GREEN
VERDICTS = {"leaks": VERMILION, "unclear": ORANGE, "holds": BLUE}
SEQUENTIAL = "viridis"
SHARES = "Blues"
DEVIATIONS = "RdBu_r"


def method_styles(methods: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and symbol of each method; beyond six the colours repeat with other symbols."""
    return {
        method: (_METHODS[number % len(_METHODS)], _SYMBOLS[number % len(_SYMBOLS)])
        for number, method in enumerate(methods)
    }


def method_lines(methods: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and kind of line of each method."""
    return {
        method: (_METHODS[number % len(_METHODS)], _LINES[number % len(_LINES)])
        for number, method in enumerate(methods)
    }


def category_colours(n: int) -> list[str]:
    """Colours of so many categories; no scheme keeps more than nine distinct for everybody."""
    if n <= len(_CATEGORIES):
        return list(_CATEGORIES[:n])
    if n <= 20:
        return [to_hex(colour) for colour in colormaps["tab20"](np.arange(n))]
    return [to_hex(colour) for colour in colormaps["turbo"](np.linspace(0, 1, n))]


def low_to_high() -> Colormap:
    """From blue over grey to vermilion, all of which stand out from white."""
    return LinearSegmentedColormap.from_list("low to high", [BLUE, "#B8B8B8", VERMILION])
