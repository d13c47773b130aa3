"""Spatial sections of a site, for a SpaMosaic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from scinfl._checks import first_of, whole_number
from scinfl.flower.tasks._task import Facts, Task

_LIST = "measured"  # facts: features as "modality:feature"


class SpatialTask(Task):
    """Spatial sections of one or several modalities; sites may have measured different ones."""

    kind = "SpaMosaic"

    def _check(self) -> None:
        if self._job.features != "same" and isinstance(self.data, MuData):
            msg = (
                f'Expected `features = "same"` for several modalities, found {self._job.features!r}. Align the '
                "features of each modality with `scinfl.pp.align_genes`."
            )
            raise ValueError(msg)
        self._class_setup()(self.data, **self._options)
        model = self._class(self.data, **self._job.model_options)
        from scinfl.model.spamosaic import SpaMosaicOptions, SpaMosaicView, batch_size_of

        measured = SpaMosaicView(model).measured(self.data, train=True)
        self._normalise = {name: own.normalise for name, own in measured.items()}
        together = pd.DataFrame({name: np.isin(np.arange(self.data.n_obs), own.rows) for name, own in measured.items()})
        self._links = sorted("+".join(together.columns[row]) for row in together.drop_duplicates().to_numpy(bool))
        share = self._job.train_options.get("validation_size", SpaMosaicOptions.validation_size)
        self._batch_size = batch_size_of(self.data.n_obs, share)

    def _class_setup(self) -> Any:
        return self._class.setup_mudata if isinstance(self.data, MuData) else self._class.setup_anndata

    @property
    def features(self) -> list[str]:
        """Names of the features; sites compare those of several modalities among themselves, modality by modality."""
        return [] if isinstance(self.data, MuData) else super().features

    @property
    def scale(self) -> list[str]:
        """How the values are normalised; of several modalities as :attr:`features`."""
        return [] if isinstance(self.data, MuData) else list(self._normalise.values())

    def _facts(self) -> dict[str, Any]:
        mods = self.data.mod if isinstance(self.data, MuData) else {}
        return {
            "modalities": list(self._normalise),
            _LIST: [f"{name}:{feature}" for name, adata in mods.items() for feature in adata.var_names],
            "normalise": [f"{name}:{how}" for name, how in self._normalise.items() if name in mods],
            "links": self._links,
            "batch_size": self._batch_size,
        }

    def _check_known(self, facts: Facts) -> None:
        own, site = self._facts(), self._settings.site
        if odd := [name for name, theirs in facts.items() if bool(theirs[_LIST]) != bool(own[_LIST])]:
            msg = (
                f"Expected files of one kind at all sites, found another one at {first_of(odd)}. Bring the data of all "
                "sites as MuData (h5mu), also of a site with one modality."
            )
            raise ValueError(msg)
        for name, theirs in facts.items():
            whole_number(f"the batch size of site '{name}'", theirs["batch_size"], 1)
        for fact in (_LIST, "normalise"):
            for modality in own["modalities"]:
                expected = _of(own[fact], modality)
                others = [name for name, theirs in facts.items() if modality in theirs["modalities"]]
                if odd := [name for name in others if _of(facts[name][fact], modality) != expected]:
                    what = "features of" if fact == _LIST else "normalisation of"
                    msg = (
                        f"Expected the same {what} '{modality}', in one order, at site '{site}' and {first_of(odd)}, "
                        "found others. Align features with `scinfl.pp.align_genes`; name layers and `normalise` in "
                        "[setup] of the job."
                    )
                    raise ValueError(msg)
        from scinfl.model.spamosaic import linked

        parts = {f"{name}: {link}": link.split("+") for name, theirs in facts.items() for link in theirs["links"]}
        modalities = _modalities(facts)
        linked({modality: [part for part, own in parts.items() if modality in own] for modality in modalities})

    def owners(self, facts: Facts) -> dict[str, list[str]]:
        """Sites that measured each modality."""
        return {
            name: [site for site in sorted(facts) if name in facts[site]["modalities"]] for name in _modalities(facts)
        }

    def describe(self, facts: Facts) -> str:
        """Modalities, and which sites measured them."""
        lacking = {
            name: [site for site in sorted(facts) if site not in own] for name, own in self.owners(facts).items()
        }
        without = [f"'{name}' is missing at {first_of(own)}" for name, own in lacking.items() if own]
        return ", ".join([f"modalities {first_of(list(lacking))}", *without])

    def make_model(self, facts: Facts) -> Any:
        """SpaMosaic of the modalities of all sites; those that this one lacks have no spots here."""
        if not isinstance(self.data, MuData):
            self._class.setup_anndata(self.data, **self._options)
            return self._class(self.data, **self._job.model_options)
        from scinfl.model.base import registry_of

        names = _modalities(facts)
        owner = {name: sites[0] for name, sites in self.owners(facts).items()}
        features = {name: _of(facts[owner[name]][_LIST], name) for name in names}
        found = {name: _of(facts[owner[name]]["normalise"], name)[0] for name in names}
        given = self._options.get("normalise") or {}
        # counts that nobody named a normalisation for are compared in two, by all sites, in the model
        how = {name: own for name, own in found.items() if own != "lognorm" or name in given}
        options = {**self._options, "normalise": how}
        agreed = MuData({name: self._blank(name, own, 10) for name, own in features.items()})
        self._class.setup_mudata(agreed, **options)
        lacking = {name: self._blank(name, own, 0) for name, own in features.items() if name not in self.data.mod}
        if lacking:
            self.data = _with(self.data, lacking, names)
        self._class.setup_mudata(self.data, source_registry=registry_of(self._class, agreed), **options)
        return self._class(self.data, **self._job.model_options)

    def _blank(self, modality: str, features: Sequence[str], n_spots: int) -> AnnData:
        """Spots of a modality that show nothing of a site."""
        values = np.ones((n_spots, len(features)), np.float32)
        layer = (self._options.get("layers") or {}).get(modality)
        obs = pd.DataFrame({self._options["section_key"]: "none"}, index=[f"spot {n}" for n in range(n_spots)])
        adata = AnnData(
            values, obs, pd.DataFrame(index=pd.Index(features)), layers={} if layer is None else {layer: values}
        )
        adata.obsm[self._options.get("spatial_key", "spatial")] = np.arange(2.0 * n_spots).reshape(-1, 2)
        return adata


def _modalities(facts: Facts) -> list[str]:
    """Modalities of all sites, in the order in which they occur."""
    return list(dict.fromkeys(name for site in sorted(facts) for name in facts[site]["modalities"]))


def _of(texts: Sequence[str], modality: str) -> list[str]:
    """What texts hold about a modality."""
    return [text.removeprefix(f"{modality}:") for text in texts if text.startswith(f"{modality}:")]


def _with(mdata: MuData, others: dict[str, AnnData], order: Sequence[str]) -> MuData:
    """The same spots with further modalities."""
    mods = {**mdata.mod, **others}
    joined = MuData({name: mods[name] for name in order})
    for column in mdata.obs:
        joined.obs[column] = mdata.obs[column].reindex(joined.obs_names)
    for name, array in mdata.obsm.items():
        if name not in mods:
            joined.obsm[name] = array[mdata.obs_names.get_indexer(joined.obs_names)]
    return joined
