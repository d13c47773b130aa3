"""Perturbed cells of a site, for a GEARS."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scinfl._checks import first_of, gene_names
from scinfl._conditions import CONTROL
from scinfl.flower.tasks._task import Facts, Task
from scinfl.privacy import Key


class PerturbationTask(Task):
    """Cells of a perturbation screen."""

    kind = "GEARS"

    def _check(self) -> None:
        self._options = {"condition_key": "condition", "control": CONTROL, **self._options}
        self._column("condition_key")
        self._values()
        from scinfl.model.gears import condition_facts

        self._own = condition_facts(self.data, self._setup(), int(self._job.train_options.get("min_cells", 2)))

    def _facts(self) -> dict[str, Any]:
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
        """Names that the network knows, and its gene ontology, in addition to what every kind of model compares."""
        from scinfl.model.gears import GEARSView

        edges = GEARSView(model).ontology_edges or ()
        ontology = hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in edges)).hexdigest()
        return json.dumps([super().digest(facts, model), model.perturbation_genes, ontology])

    def make_model(self, facts: Facts) -> Any:
        """GEARS that knows the perturbed genes and covariates of any site."""
        from scinfl.model.base import registry_of
        from scinfl.model.gears import levels_of

        options, model_options = dict(self._options), dict(self._job.model_options)
        setup = self._setup()
        self._class.setup_anndata(self.data, source_registry=registry_of(self._class, self._blank(setup)), **options)
        perturbed = {gene for own in facts.values() for gene in own["perturbed"]}
        model_options["perturbation_genes"] = sorted({*perturbed, *model_options.get("perturbation_genes", ())})
        model_options["covariate_levels"] = levels_of(facts, setup["covariate_keys"])
        if self._settings.gene_ontology is not None:
            model_options["gene_ontology"] = Path(self._settings.gene_ontology)
        return self._class(self.data, **model_options)

    def load_model(self, path: Path, key: Key) -> Any:
        """The GEARS that all sites have, which knows the genes that are perturbed here."""
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
        if setup["split_key"] is not None:
            obs[setup["split_key"]] = "train"
        var = pd.DataFrame(index=self.data.var_names.astype(str))
        if genes is not None:
            var[genes] = gene_names(self.data, genes).to_numpy()
        ones = np.ones((4, self.data.n_vars), np.float32)
        blank = AnnData(ones, obs, var, layers={} if setup["layer"] is None else {setup["layer"]: ones})
        self._class.setup_anndata(blank, **self._options)
        return blank
