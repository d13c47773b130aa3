"""Settings of the documentation."""

import os
import sys
from importlib.metadata import version as version_of
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))

project = "scinfl"
author = "scinfl developers"
copyright = "2026, scinfl developers"
release = version = version_of("scinfl")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "plot_images",
]
# Formulas need nothing from the internet where math-core is installed; else a browser fetches MathJax for them.
if find_spec("math_core"):
    extensions.append("mathml")
    html_math_renderer = "mathml"
else:
    extensions.append("sphinx.ext.mathjax")
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
nb_execution_mode = "off"  # notebooks are stored with their outputs
myst_enable_extensions = ["colon_fence", "dollarmath", "amsmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 88
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_use_rtype = False
napoleon_use_param = False

html_theme = "sphinx_book_theme"
html_title = f"scinfl {release}"
html_theme_options = {
    "show_toc_level": 2,
    "navbar_persistent": [],  # the search field stands in the sidebar
}
html_static_path = ["_static"]
html_css_files = ["scinfl.css"]
suppress_warnings = ["mystnb.unknown_mime_type"]

# Links to other packages need their inventories, so they are made where a network is promised: on Read the Docs, or
# with SCINFL_INTERSPHINX=1. Everywhere else the same names stand without a link, and the build touches no network.
if os.environ.get("READTHEDOCS") == "True" or os.environ.get("SCINFL_INTERSPHINX"):
    intersphinx_mapping = {
        "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
        "matplotlib": ("https://matplotlib.org/stable/", None),
        "mudata": ("https://mudata.readthedocs.io/stable/", None),
        "numpy": ("https://numpy.org/doc/stable/", None),
        "pandas": ("https://pandas.pydata.org/docs/", None),
        "python": ("https://docs.python.org/3/", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable/", None),
        "scipy": ("https://docs.scipy.org/doc/scipy/", None),
        "scvi-tools": ("https://docs.scvi-tools.org/en/stable/", None),
        "spatialdata": ("https://spatialdata.scverse.org/en/stable/", None),
        "squidpy": ("https://squidpy.readthedocs.io/en/stable/", None),
        "torch": ("https://docs.pytorch.org/docs/stable/", None),
    }

nitpicky = True
nitpick_ignore_regex = [
    # names of other packages, which nothing can be looked up for without their inventories
    (
        "py:.*",
        r"(anndata|collections|cryptography|matplotlib|mudata|numpy|os|pandas|pathlib|scanpy|scipy|scvi|spatialdata|squidpy|torch)\..*",
    ),
    ("py:class", r"AnnData|Axes|SpatialData|Tensor|pd\.DataFrame"),  # imported for type checkers alone
]
nitpick_ignore = [
    # in signatures of public names, but nothing to build with
    ("py:class", "scinfl.federation._journal.Cipher"),
    ("py:class", "RemoteContext"),
    ("py:class", "scinfl.model.base._local_training.LocalTraining"),
    ("py:class", "scinfl.model.base._remote.RemoteContext"),
    ("py:class", "scinfl.module._gears.Conditions"),
    ("py:class", "scinfl.nn._sparse_rows.SparseRows"),
    ("py:class", "scinfl.module._gears_loss.Targets"),
    ("py:class", "scinfl.module._spamosaic.SpotBatch"),
    ("py:class", "scinfl.privacy.aggregation._advertisement.Advertisement"),
    ("py:class", "scinfl.privacy.aggregation._context.RunContext"),
    ("py:class", "scinfl.privacy.aggregation._pairwise_participant.PairwiseParticipant"),
    ("py:class", "scinfl.privacy.dp._per_unit.PoissonBatch"),
    # raised and caught inside a run
    ("py:exc", "RepeatRoundError"),
]

# Where a class is defined is not always where its own documentation puts it.
PUBLIC_NAMES = {
    "AnnData": "anndata.AnnData",
    "Axes": "matplotlib.axes.Axes",
    "SpatialData": "spatialdata.SpatialData",
    "Tensor": "torch.Tensor",
    "anndata._core.anndata.AnnData": "anndata.AnnData",
    "matplotlib.axes._axes.Axes": "matplotlib.axes.Axes",
    "mudata._core.mudata.MuData": "mudata.MuData",
    "pandas.core.frame.DataFrame": "pandas.DataFrame",
    "pandas.core.indexes.base.Index": "pandas.Index",
    "pandas.core.series.Series": "pandas.Series",
    "scipy.sparse._base.sparray": "scipy.sparse.sparray",
    "scipy.sparse._matrix.spmatrix": "scipy.sparse.spmatrix",
    "torch._C.Generator": "torch.Generator",
    "torch.nn.modules.linear.Linear": "torch.nn.Linear",
    "torch.nn.modules.module.Module": "torch.nn.Module",
}


def use_public_name(app: Sphinx, env: object, node: nodes.Element, child: nodes.Node) -> None:
    """Let a reference to another package look for the name that the package documents."""
    del app, env, child
    node["reftarget"] = PUBLIC_NAMES.get(node["reftarget"], node["reftarget"])


def setup(app: Sphinx) -> None:
    """Come before intersphinx."""
    app.connect("missing-reference", use_public_name, priority=400)
