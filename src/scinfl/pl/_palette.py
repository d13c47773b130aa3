"""Colours of all figures, distinct in grey and for colour-blind readers too."""

from __future__ import annotations

from collections.abc import Iterable

from matplotlib.colors import Colormap, LinearSegmentedColormap

BLUE, VERMILION, ORANGE, GREEN = "#0072B2", "#D55E00", "#E69F00", "#009E73"
BLACK, GREY, PALE = "#000000", "#8C8C8C", "#D9D9D9"

# Okabe & Ito (2008) without green, which is the control's, and yellow, which is too pale on white
_METHODS = (VERMILION, BLUE, ORANGE, "#CC79A7", "#56B4E9", BLACK)
_SYMBOLS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_LINES = ("-", "--", "-.", ":")

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


def low_to_high() -> Colormap:
    """From blue over grey to vermilion, all of which stand out from white."""
    return LinearSegmentedColormap.from_list("low to high", [BLUE, "#B8B8B8", VERMILION])
