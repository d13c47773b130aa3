"""Write what a model says back into AnnData."""

from scinfl.tl._annotate import annotate
from scinfl.tl._embed import embed

__all__ = ["annotate", "embed"]
