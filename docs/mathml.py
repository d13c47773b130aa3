"""Formulas as MathML, which browsers draw themselves: no script, and nothing to fetch when a page is read offline."""

from __future__ import annotations

import re
from html import unescape
from xml.etree import ElementTree as ET

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

_CONVERTER = LatexToMathML(fancy_error=False)
_LINE = "\N{COMBINING LOW LINE}"


def convert(tex: str, *, block: bool) -> str:
    """MathML of a formula."""
    if r"\\" in tex and r"\begin" not in tex:
        tex = rf"\begin{{aligned}}{tex}\end{{aligned}}"
    text = _CONVERTER.convert_with_local_state(tex, displaystyle=block)
    text = re.sub(r"&(?!(?:amp|gt|lt);)\w+;", lambda entity: unescape(entity[0]), text)  # XML knows no others
    tree = ET.fromstring(text)  # noqa: S314
    for over in tree.iter("mover"):
        if over[1].text == _LINE:  # few fonts can stretch it, so that the style sheet draws it
            over.tag, over.attrib = "mrow", {"class": "overline"}
            over.remove(over[1])
    return ET.tostring(tree, encoding="unicode")


def write(translator: HTML5Translator, node: nodes.math | nodes.math_block) -> None:
    """Write a formula in a line, or standing for itself: one a paragraph."""
    block = isinstance(node, nodes.math_block)
    formulas = node.astext().split("\n\n") if block else [node.astext()]
    for tex in filter(str.strip, formulas):
        try:
            mathml = convert(tex.strip(), block=block)
        except LatexError as error:  # a warning, and so an error of the build
            logging.getLogger(__name__).warning("Cannot draw a formula: %s", error, location=node)
            mathml = translator.encode(tex)
        translator.body.append(f'<div class="formula">{mathml}</div>\n' if block else mathml)
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer."""
    app.add_html_math_renderer("mathml", (write, None), (write, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
