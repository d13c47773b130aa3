"""What a site contributes to models that learn labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from scinfl._checks import first_of
from scinfl.flower.tasks._task import Facts, Task


class LabelledTask(Task):
    """Rows with labels, which all sites must know of."""

    _labels: Sequence[str]
    """Labels of this site."""

    def _facts(self) -> dict[str, Any]:
        return {"labels": list(self._labels)}

    def _check_frequent(self, counts: pd.Series) -> None:
        """Refuse labels of few cells, which could be recognised in an update."""
        few = counts[counts < self._settings.min_cells_per_label]
        if len(few):
            msg = (
                f"Expected at least {self._settings.min_cells_per_label} cells of each label, as site.toml asks for, "
                f"found fewer of {len(few)} labels: {first_of(list(few.index))}. Merge or drop them, or lower "
                "`min_cells_per_label`."
            )
            raise ValueError(msg)

    def _check_known(self, facts: Facts) -> None:
        if unknown := sorted(set(self._labels) - set(labels_of(facts))):
            msg = (
                f"Expected labels that the run began with, found {len(unknown)} others here: {first_of(unknown)}. "
                "Let the operator start a new run with all sites."
            )
            raise ValueError(msg)

    def describe(self, facts: Facts) -> str:
        """Numbers of labels and features."""
        return f"{len(labels_of(facts))} labels and {self.data.n_vars} features"


def labels_of(facts: Facts) -> list[str]:
    """Labels of all sites, in order."""
    return sorted({str(label) for own in facts.values() for label in own["labels"]})
