"""Spatial sections of a site, for a SpaMosaic."""

from __future__ import annotations

from typing import Any

from mudata import MuData

from scinfl._checks import first_of
from scinfl.flower.tasks._task import Facts, Task


class SpatialTask(Task):
    """Spatial sections of one or several modalities."""

    kind = "SpaMosaic"

    def _check(self) -> None:
        if "batch_size" not in self._job.train_options:
            msg = (
                "Expected `batch_size` in [train] of the job, found none: by default it follows from the smallest "
                "site, which nobody knows here. Write for example `batch_size = 64`."
            )
            raise ValueError(msg)
        if self._job.features != "same" and isinstance(self.data, MuData):
            msg = (
                f'Expected `features = "same"` for several modalities, found {self._job.features!r}. Align the '
                "features of each modality with `scinfl.pp.align_genes`."
            )
            raise ValueError(msg)
        self._class_setup()(self.data, **self._options)
        model = self._class(self.data, **self._job.model_options)
        from scinfl.model.spamosaic import SpaMosaicView

        measured = SpaMosaicView(model).measured(self.data, train=True)
        self._normalise = {name: own.normalise for name, own in measured.items()}

    def _class_setup(self) -> Any:
        return self._class.setup_mudata if isinstance(self.data, MuData) else self._class.setup_anndata

    @property
    def features(self) -> list[str]:
        """Names of the features; with several modalities ``"modality:feature"``."""
        if isinstance(self.data, MuData):
            return [f"{name}:{feature}" for name, adata in self.data.mod.items() for feature in adata.var_names]
        return super().features

    @property
    def scale(self) -> list[str]:
        """How the values of each modality are normalised."""
        return [f"{name}: {how}" for name, how in sorted(self._normalise.items())]

    def _facts(self) -> dict[str, Any]:
        return {"modalities": list(self._normalise)}

    def _check_known(self, facts: Facts) -> None:
        found = {site: list(own["modalities"]) for site, own in facts.items()}
        if odd := [site for site, own in found.items() if own != list(self._normalise)]:
            msg = (
                f"Expected the modalities {list(self._normalise)} at all sites, found others at {first_of(odd)}. "
                "Across machines every site measures every modality in some section; mosaics of other kinds train in "
                "one process."
            )
            raise ValueError(msg)

    def describe(self, facts: Facts) -> str:
        """Numbers of modalities and features."""
        del facts
        n = len(self._normalise)
        return f"{n} modalit{'y' if n == 1 else 'ies'} and {len(self.features)} features"

    def make_model(self, facts: Facts) -> Any:
        """SpaMosaic of the modalities that all sites have."""
        del facts
        self._class_setup()(self.data, **self._options)
        return self._class(self.data, **self._job.model_options)
