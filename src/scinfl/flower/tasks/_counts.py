"""Counts of a site, for a model of scvi-tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from scinfl._checks import first_of
from scinfl._names import FEATURE_TYPES, OF_SCVI
from scinfl._spelling import spelling
from scinfl.flower.setup._job import OF_ADAPTER
from scinfl.flower.tasks._labelled import LabelledTask, labels_of
from scinfl.flower.tasks._task import Facts
from scinfl.privacy import Key

_SITE = "site"
_LABELS = ("labels_key", "unlabeled_category")


class ScviTask(LabelledTask):
    """Raw counts of cells; the site is the batch of scvi-tools."""

    kind = "ScviModel"

    @property
    def _class_name(self) -> str:
        return self._job.model.removeprefix(OF_SCVI)

    def _check(self) -> None:
        from scinfl.model.scvi import check_labels_named, counts_of
        from scinfl.pp import join_modalities

        if isinstance(self.data, MuData):
            self.data = join_modalities(self.data, layer=self._options.pop("layer", None))
        if FEATURE_TYPES in self.data.var and self._job.features == "union":
            msg = (
                'Expected `features = "same"` or "intersection" for several modalities, found "union": which modality '
                "a feature of another site belongs to is not known here."
            )
            raise ValueError(msg)
        check_labels_named(self._class_name, **{name: self._options.get(name) for name in _LABELS})
        with spelling({"`layer`": "`layer` in site.toml"}):
            counts = counts_of(self.data, self._options.get("layer"))
        types = self.data.var[FEATURE_TYPES].astype(str) if FEATURE_TYPES in self.data.var else pd.Series(dtype=str)
        self._measured = [name for name in sorted(set(types)) if counts[:, (types == name).to_numpy()].sum() > 0]
        self._labels = []
        if self._options.get("labels_key") is not None:
            own = self._column("labels_key").astype(str)
            self.data.obs[str(own.name)] = pd.Categorical(own)
            cells = own[own != str(self._options.get("unlabeled_category"))].value_counts()
            self._check_frequent(cells)
            self._labels = sorted(cells.index)

    def _facts(self) -> dict[str, Any]:
        return {**super()._facts(), "measured": self._measured}

    def owners(self, facts: Facts) -> dict[str, list[str]]:
        """Sites that have counts of each modality."""
        names = sorted({name for own in facts.values() for name in own["measured"]})
        return {name: [site for site in sorted(facts) if name in facts[site]["measured"]] for name in names}

    def rehearsal(self) -> Facts:
        """Facts for a dry run, as if all sites of the job had what this one has."""
        return dict.fromkeys(self._job.sites, self.facts())

    def make_model(self, facts: Facts) -> Any:
        """Model with columns for each site and a class for each label of any site."""
        from scinfl.model.base import registry_of

        options = {**self._options, "site_key": _SITE}
        self._name_site(_SITE)
        agreed = self._agreed(sorted(facts), labels_of(facts), options)
        self._class.setup_anndata(agreed, **options)
        self._class.setup_anndata(self.data, source_registry=registry_of(self._class, agreed), **options)
        own = {name: value for name, value in self._job.model_options.items() if name in OF_ADAPTER}
        arguments = {name: value for name, value in self._job.model_options.items() if name not in OF_ADAPTER}
        return self._class(self.data, class_name=self._class_name, arguments=arguments, **own)

    def load_model(self, path: Path, key: Key) -> Any:
        """The model that all sites have, which knows this site since its cells were mapped onto it."""
        model = self._class.load(path, device=self._settings.device)
        model.unlock(key)
        if self._settings.site not in model.sites or model.class_name != self._class_name:
            msg = (
                f"Expected a {self._class_name} that knows site '{self._settings.site}', found a {model.class_name} of "
                f"{first_of(model.sites)}. Map the cells of this site onto it with `scinfl.model.map_query`, and hand "
                "the mapped model to all sites."
            )
            raise ValueError(msg)
        self._name_site(model.site_key)
        from scinfl.model.base import ModelView

        view = ModelView(model)
        view.attach(self.data, {**view.setup, **self._options})
        return model

    def _name_site(self, column: str) -> None:
        self.data.obs[column] = pd.Categorical([self._settings.site] * self.data.n_obs)

    def _agreed(self, sites: Sequence[str], labels: Sequence[str], options: Mapping[str, Any]) -> AnnData:
        """Data of the same features in which every site and label occurs, and no value of anybody."""
        unlabeled = options.get("unlabeled_category")
        every = [*labels, *([] if unlabeled is None else [str(unlabeled)])] or ["none"]
        n = 3 * max(len(sites), len(every))
        obs = pd.DataFrame({_SITE: [sites[i % len(sites)] for i in range(n)]}, index=[str(i) for i in range(n)])
        if options.get("labels_key") is not None:
            obs[options["labels_key"]] = pd.Categorical([every[i % len(every)] for i in range(n)])
        ones = np.ones((n, self.data.n_vars), np.float32)
        layers = {} if options.get("layer") is None else {options["layer"]: ones}
        return AnnData(ones, obs, pd.DataFrame(index=self.data.var_names.astype(str)), layers=layers)
