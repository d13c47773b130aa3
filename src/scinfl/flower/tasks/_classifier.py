"""Labelled cells of a site, for a Classifier."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scinfl._checks import complete_column
from scinfl.flower.tasks._labelled import LabelledTask, labels_of
from scinfl.flower.tasks._task import Facts


class ClassifierTask(LabelledTask):
    """Labelled cells or samples."""

    kind = "Classifier"

    def _check(self) -> None:
        own, unlabeled = self._column("labels_key"), self._options.get("unlabeled_category")
        self._values()
        is_labelled = own.isna() | (own.astype(str) != str(unlabeled)) | (unlabeled is None)
        cells, column = self.data[is_labelled.to_numpy()], str(own.name)
        cure = "Drop these rows, or give them a category and name it as `unlabeled_category` in [setup] of the job."
        counts = complete_column(cells, column, "labels_key", "a label for every row", cure).astype(str).value_counts()
        self.data.obs[column] = pd.Categorical(own.astype(str))
        self._check_frequent(counts)
        self._labels = sorted(counts.index)

    def rehearsal(self) -> Facts:
        """Facts for a dry run; a network needs two labels."""
        own = dict(self.facts())
        labels = self._labels if len(self._labels) > 1 else [*self._labels, "another label"]
        return {self._settings.site: {**own, "labels": labels}}

    def make_model(self, facts: Facts) -> Any:
        """Classifier with an output for each label of any site."""
        from scinfl.model.base import registry_of

        options, labels = dict(self._options), labels_of(facts)
        unlabeled = [str(options[name]) for name in ("unlabeled_category",) if options.get(name) is not None]
        every = [*(label for label in labels if label not in unlabeled), *unlabeled]
        rows = np.repeat(np.array(every, dtype=object), 3)
        obs = pd.DataFrame({options["labels_key"]: pd.Categorical(rows, categories=every)})
        obs.index = obs.index.astype(str)
        if options.get("group_key") is not None:
            obs[options["group_key"]] = "none"
        nothing = np.zeros((len(rows), self.data.n_vars), np.float32)
        layers = {} if options.get("layer") is None else {options["layer"]: nothing}
        agreed = AnnData(nothing, obs, pd.DataFrame(index=self.data.var_names.astype(str)), layers=layers)
        self._class.setup_anndata(agreed, **options)
        self._class.setup_anndata(self.data, source_registry=registry_of(self._class, agreed), **options)
        return self._class(self.data, **self._job.model_options)
