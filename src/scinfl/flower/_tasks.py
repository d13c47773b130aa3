"""What a site brings to each kind of model, what it tells the other sites of it, and the model that they make."""

from __future__ import annotations

import hashlib
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from scinfl._checks import first_of, looks_like_counts
from scinfl.flower._job import Job, SiteSettings
from scinfl.privacy import Key

Facts = Mapping[str, Mapping[str, Any]]
"""What sites tell each other, sealed under the key: by site."""


class Task(ABC):
    """Data of one site, for a kind of model.

    Parameters
    ----------
    data
        The site's own.
    job, settings
        What is trained, and how the site reads its data.
    """

    kind: ClassVar[str]

    def __init__(self, data: Any, job: Job, settings: SiteSettings) -> None:
        from scinfl import model

        self.data, self._job, self._settings = data, job, settings
        self._class: Any = getattr(model, self.kind)
        self._options = settings.setup_options(job)
        self._check()

    @property
    def features(self) -> list[str]:
        """Names of the features, in order."""
        return [str(name) for name in self.data.var_names]

    @property
    def scale(self) -> list[str]:
        """Whether values are counts."""
        return ["counts" if looks_like_counts(self._values(self.data, self._options.get("layer"))) else "other"]

    def facts(self) -> dict[str, Any]:
        """What the other sites must know; they alone can read it."""
        told = self._tell()
        return told if self._job.features == "same" else {**told, "features": self.features}

    def join(self, facts: Facts) -> None:
        """Bring the data to the features that all sites agreed on.

        Raises
        ------
        ValueError
            If this site came later and has what the run began without.
        """
        self._check_known(facts)
        if self._job.features == "same":
            return
        names = _shared(facts, self._job.features)
        missing = [name for name in names if name not in set(self.features)]
        if missing and self._job.features == "intersection":
            msg = (
                f"Expected the features that the run began with, found {len(missing)} of them missing here: "
                f"{first_of(missing)}. Let the operator start a new run with all sites."
            )
            raise ValueError(msg)
        from scinfl import pp

        frame = AnnData(None, var=pd.DataFrame(index=pd.Index(names)))
        pp.align_genes(frame, [self.data], how="union")
        self.data = self.data[:, names].copy()

    def digest(self, facts: Facts, model: Any) -> str:
        """Text that is the same at sites that agree."""
        start = ""
        if self._job.continues:
            arrays = (value.detach().cpu().numpy().tobytes() for _, value in sorted(model.module.state_dict().items()))
            start = hashlib.sha256(b"".join(arrays)).hexdigest()
        return json.dumps([facts, list(map(str, model.var_names)), start], sort_keys=True)

    @abstractmethod
    def make_model(self, facts: Facts) -> Any:
        """The model of all sites, with the data of this one."""

    def load_model(self, path: Path, key: Key) -> Any:
        """The model that all sites have, with the data of this one.

        Parameters
        ----------
        path
            Folder of the model.
        key
            Secret of the sites.
        """
        model = self._class.load(path, device=self._settings.device)
        model.unlock(key)
        model._attach(self.data, self._options)
        return model

    @abstractmethod
    def describe(self, facts: Facts) -> str:
        """What sites agree on, in words for the one at this site."""

    def rehearsal(self) -> Facts:
        """Facts for a dry run, where nobody else is there."""
        return {self._settings.site: self.facts()}

    @abstractmethod
    def _check(self) -> None:
        """Refuse data that this site should not take part with."""

    @abstractmethod
    def _tell(self) -> dict[str, Any]:
        """What the other sites must know."""

    @abstractmethod
    def _check_known(self, facts: Facts) -> None:
        """Refuse to join a run that began without what is here."""

    def _values(self, adata: AnnData, layer: str | None) -> Any:
        if layer is not None and layer not in adata.layers:
            msg = f"Expected layer {layer!r}, found {list(adata.layers)}. Name one as `layer` in site.toml."
            raise KeyError(msg)
        return adata.X if layer is None else adata.layers[layer]

    def _column(self, name: str) -> str:
        column = self._options.get(name)
        if column is None or column not in self.data.obs:
            what = name.removesuffix("_key")
            msg = (
                f"Expected the {what} of each row in a column of obs, found no {column!r}. Columns are "
                f"{first_of(list(map(str, self.data.obs.columns)), 20)}: name one as `{name}` in site.toml."
            )
            raise KeyError(msg)
        return str(column)

    def _setup(self) -> dict[str, Any]:
        """All arguments of the setup, defaults included."""
        known = inspect.signature(self._class.setup_anndata).parameters.values()
        defaults = {p.name: p.default for p in known if p.kind is not p.VAR_KEYWORD and p.name != "adata"}
        return {**defaults, **self._options}


class ClassifierTask(Task):
    """Labelled cells or samples."""

    kind = "Classifier"

    def _check(self) -> None:
        column = self._column("labels_key")
        own = self.data.obs[column]
        self.data.obs[column] = pd.Categorical(own.astype(object).where(own.isna(), own.astype(str)))
        self._values(self.data, self._options.get("layer"))
        counts = self.data.obs[column].dropna().astype(str).value_counts()
        counts = counts[counts.index != str(self._options.get("unlabeled_category"))]
        few = counts[counts < self._settings.min_cells_per_label]
        if len(few):
            msg = (
                f"Expected at least {self._settings.min_cells_per_label} cells of each label, as site.toml asks for, "
                f"found fewer of {len(few)} labels: {first_of(list(few.index))}. Merge or drop them, or lower "
                "`min_cells_per_label`."
            )
            raise ValueError(msg)
        self._labels = sorted(counts.index)

    def _tell(self) -> dict[str, Any]:
        return {"labels": self._labels}

    def _check_known(self, facts: Facts) -> None:
        if unknown := sorted(set(self._labels) - set(_labels(facts))):
            msg = (
                f"Expected labels that the run began with, found {len(unknown)} others here: {first_of(unknown)}. "
                "Let the operator start a new run with all sites."
            )
            raise ValueError(msg)

    def rehearsal(self) -> Facts:
        """Facts for a dry run; a network needs two labels."""
        own = dict(self.facts())
        labels = self._labels if len(self._labels) > 1 else [*self._labels, "another label"]
        return {self._settings.site: {**own, "labels": labels}}

    def describe(self, facts: Facts) -> str:
        """Numbers of labels and features."""
        return f"{len(_labels(facts))} labels and {self.data.n_vars} features"

    def make_model(self, facts: Facts) -> Any:
        """Classifier with an output for each label of any site."""
        options, labels = dict(self._options), _labels(facts)
        every = [*labels, *[str(options[name]) for name in ("unlabeled_category",) if options.get(name) is not None]]
        rows = np.repeat(np.array(every, dtype=object), 3)
        obs = pd.DataFrame({options["labels_key"]: pd.Categorical(rows, categories=every)})
        obs.index = obs.index.astype(str)
        if options.get("group_key") is not None:
            obs[options["group_key"]] = "none"
        nothing = np.zeros((len(rows), self.data.n_vars), np.float32)
        layers = {} if options.get("layer") is None else {options["layer"]: nothing}
        agreed = AnnData(nothing, obs, pd.DataFrame(index=self.data.var_names.astype(str)), layers=layers)
        self._class.setup_anndata(agreed, **options)
        self._class.setup_anndata(self.data, source_registry=self._class._registry_of(agreed), **options)
        return self._class(self.data, **self._job.model_options)


class PerturbationTask(Task):
    """Cells of a perturbation screen."""

    kind = "GEARS"

    def _check(self) -> None:
        self._options.setdefault("condition_key", "condition")
        self._column("condition_key")
        self._values(self.data, self._options.get("layer"))
        from scinfl.model._gears_conditions import condition_facts

        self._own = condition_facts(self.data, self._setup(), int(self._job.train_options.get("min_cells", 2)))

    def _tell(self) -> dict[str, Any]:
        return self._own

    def _check_known(self, facts: Facts) -> None:
        known = {json.dumps(row[:3]) for own in facts.values() for row in own["conditions"] if row[3]}
        mine = {json.dumps(row[:3]) for row in self._own["conditions"] if row[3]}
        if unknown := sorted(mine - known):
            names = ["+".join(json.loads(row)[0]) or "controls" for row in unknown]
            msg = (
                f"Expected perturbations that the run began with, found {len(unknown)} others here: {first_of(names)}. "
                "Leave their cells out, or let the operator start a new run with all sites."
            )
            raise ValueError(msg)

    def describe(self, facts: Facts) -> str:
        """Numbers of perturbations and genes."""
        sets = {tuple(row[0]) for own in facts.values() for row in own["conditions"] if row[0]}
        return f"{len(sets)} perturbations and {self.data.n_vars} genes"

    def digest(self, facts: Facts, model: Any) -> str:
        """Names that the network knows, and its gene ontology, besides what is the same at all kinds."""
        edges = () if model._ontology is None else model._ontology
        ontology = hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in edges)).hexdigest()
        return json.dumps([super().digest(facts, model), model.perturbation_genes, ontology])

    def make_model(self, facts: Facts) -> Any:
        """GEARS that knows the perturbed genes and covariates of any site."""
        from scinfl.model._gears_conditions import levels_of

        options, model_options = dict(self._options), dict(self._job.model_options)
        setup = self._setup()
        self._class.setup_anndata(self.data, source_registry=self._class._registry_of(self._blank(setup)), **options)
        perturbed = {gene for own in facts.values() for gene in own["perturbed"]}
        model_options["perturbation_genes"] = sorted({*perturbed, *model_options.get("perturbation_genes", ())})
        model_options["covariate_levels"] = levels_of(facts, setup["covariate_keys"])
        if self._settings.gene_ontology is not None:
            model_options["gene_ontology"] = Path(self._settings.gene_ontology)
        return self._class(self.data, **model_options)

    def load_model(self, path: Path, key: Key) -> Any:
        """The GEARS that all sites have, which knows the genes that are perturbed here.

        Parameters
        ----------
        path, key
            See :meth:`Task.load_model`.
        """
        model = super().load_model(path, key)
        if unknown := sorted(set(self._own["perturbed"]) - set(model.perturbation_genes)):
            msg = (
                f"Expected perturbations of genes that the model knows, found {len(unknown)} others: "
                f"{first_of(unknown)}. Leave their cells out, or train a new model."
            )
            raise ValueError(msg)
        return model

    def _blank(self, setup: Mapping[str, Any]) -> AnnData:
        """Data of the same genes, which name nothing of a site."""
        genes = setup["gene_key"]
        conditions = [setup["control"], setup["control"], "a gene", "a gene"]
        obs = pd.DataFrame({setup["condition_key"]: conditions}, index=list("abcd"))
        for key in setup["covariate_keys"]:
            obs[key] = "none"
        var = pd.DataFrame(index=self.data.var_names.astype(str))
        if genes is not None:
            var[genes] = self.data.var[genes].to_numpy()
        ones = np.ones((4, self.data.n_vars), np.float32)
        blank = AnnData(ones, obs, var, layers={} if setup["layer"] is None else {setup["layer"]: ones})
        self._class.setup_anndata(blank, **self._options)
        return blank


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
        self._normalise = {name: own.normalise for name, own in model._measured(self.data, train=True).items()}

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

    def _tell(self) -> dict[str, Any]:
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


TASKS: dict[str, type[Task]] = {task.kind: task for task in (ClassifierTask, PerturbationTask, SpatialTask)}


def _labels(facts: Facts) -> list[str]:
    return sorted({str(label) for own in facts.values() for label in own["labels"]})


def _shared(facts: Facts, how: str) -> list[str]:
    """Features of all sites, in the order of the first one."""
    lists = [list(map(str, facts[site]["features"])) for site in sorted(facts)]
    if how == "union":
        return list(dict.fromkeys(name for own in lists for name in own))
    others: Sequence[set[str]] = [set(own) for own in lists[1:]]
    names = [name for name in lists[0] if all(name in own for own in others)]
    if not names:
        msg = "Expected features in common, found none. Use the same kind of names (symbols or ids) at all sites."
        raise ValueError(msg)
    return names
