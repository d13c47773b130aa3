"""Colours of categories, the same for what tools write and what plots draw."""

from __future__ import annotations

# the "muted" scheme of Tol (2021)
_CATEGORIES = ("#CC6677", "#332288", "#DDCC77", "#117733", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499")


def category_colours(n: int) -> list[str]:
    """Colours of so many categories; no scheme keeps more than nine distinct for everybody."""
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    if n <= len(_CATEGORIES):
        return list(_CATEGORIES[:n])
    if n <= 20:
        return [to_hex(colour) for colour in colormaps["tab20"](np.arange(n))]
    return [to_hex(colour) for colour in colormaps["turbo"](np.linspace(0, 1, n))]
