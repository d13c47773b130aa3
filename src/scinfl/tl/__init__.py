"""Write what a model says back into AnnData."""

from scinfl.tl._annotate import annotate
from scinfl.tl._compare import METHODS, compare
from scinfl.tl._embed import embed

__all__ = ["METHODS", "annotate", "compare", "embed"]
