"""Draw on matplotlib axes; nothing is shown or saved."""

from scinfl.pl._classification import confusion
from scinfl.pl._compare import compare, radar, tradeoff
from scinfl.pl._history import history
from scinfl.pl._sites import sites

__all__ = ["compare", "confusion", "history", "radar", "sites", "tradeoff"]
