"""Show the stored figure of each plot function on its page of the reference."""

from __future__ import annotations

from pathlib import Path

from sphinx.application import Sphinx

_FOLDER = Path(__file__).parent / "_static" / "pl"


def add_image(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Put the figure behind the first paragraph of the docstring."""
    del app, what, obj, options
    package, _, function = name.rpartition(".")
    if package == "scinfl.pl" and (_FOLDER / f"{function}.png").is_file():
        after = lines.index("") if "" in lines else len(lines)
        lines[after:after] = [
            "",
            f".. image:: /_static/pl/{function}.png",
            f"   :alt: Example of {function}",
            "   :class: plot",
            "",
        ]


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to autodoc, before napoleon reads the docstring."""
    app.connect("autodoc-process-docstring", add_image, priority=400)
    return {"parallel_read_safe": True}
