"""Perturbation response through every method: alone, pooled, federated, keyed, and without the key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from anndata import AnnData
from tqdm import tqdm

from scinfl import _names
from scinfl._checks import layers_of, obs_column, whole_number
from scinfl.model import GEARS
from scinfl.privacy import Key
from scinfl.tl._score_perturbations import score_perturbations

PERTURBATION_METHODS = ("local-only", "centralised", "FedAvg", "keyed", "wrong key", "modules removed")
"""Methods that :func:`compare_perturbations` knows; simple baselines are always there."""


def compare_perturbations(
    adata: AnnData,
    gene_ontology: Any = None,
    *,
    site_key: str | None = None,
    methods: Sequence[str] = PERTURBATION_METHODS,
    n_seeds: int = 3,
    n_keys: int = 3,
    layer: str | None = None,
    condition_key: str = _names.PERTURBATION,
    control: str = "ctrl",
    init: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
    rng: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Compare ways to train GEARS on your own screen, on the same held-out perturbations.

    Nothing is chosen on the test perturbations: rounds, loss and shrinkage follow from the validation ones.

    Parameters
    ----------
    adata
        Cells that went through :func:`scinfl.pp.perturbations` and :func:`scinfl.pp.split_perturbations`.
    gene_ontology
        See :class:`scinfl.model.GEARS`.
    site_key
        Column of ``adata.obs`` with the site; without it only ``"centralised"`` can be trained.
    methods
        Which methods, of :data:`PERTURBATION_METHODS`.
    n_seeds
        Number of initialisations.
    n_keys
        Wrong keys to try; their mean is reported.
    layer, condition_key, control
        See :meth:`scinfl.model.GEARS.setup_anndata`.
    init, train
        Arguments of :class:`~scinfl.model.GEARS` and its ``train``, for all methods.
    rng
        First seed.
    progress
        Show a progress bar.

    Returns
    -------
    Tidy data frame with the columns ``seed``, ``method``, ``perturbation``, ``metric``, ``value``, ``subgroup``, ready
    for :func:`scinfl.metrics.perturbation_summary` and :func:`scinfl.pl.perturbation_metrics`. ``.attrs["shrinkage"]``
    holds the share of the network's part by (method, seed).

    Raises
    ------
    ValueError
        If a method is unknown or needs sites that are not named.
    """
    unknown = [name for name in methods if name not in PERTURBATION_METHODS]
    if unknown:
        msg = f"Expected `methods` among {list(PERTURBATION_METHODS)}, found {unknown}."
        raise ValueError(msg)
    if site_key is None and (alone := [name for name in methods if name != "centralised"]):
        msg = f"Expected `site_key` for the methods {alone}, found none. Name a column, or ask for 'centralised' alone."
        raise ValueError(msg)
    whole_number("n_seeds", n_seeds, 1)
    whole_number("n_keys", n_keys, 1)
    if site_key is not None:
        obs_column(adata, site_key, "site_key")
    setup = {"condition_key": condition_key, "control": control, "layer": layer}
    tables = [score_perturbations(adata, {}, layer=layer).assign(seed=rng)]
    shrinkage: dict[tuple[str, int], Any] = {}
    with tqdm(total=n_seeds * len(methods), disable=not progress, desc="Methods") as bar:
        for seed in range(rng, rng + n_seeds):
            study = _Study(adata, gene_ontology, setup, site_key, init or {}, train or {}, n_keys, seed)
            for method in methods:
                tables.append(study.score(method).assign(method=method, seed=seed))
                if method in study.models:
                    shrinkage[method, seed] = study.models[method].shrinkage
                bar.update()
    result = pd.concat(tables, ignore_index=True)
    order = [*dict.fromkeys(result["method"])]
    result["method"] = pd.Categorical(result["method"], categories=order)
    result.attrs["shrinkage"] = shrinkage
    return result[["seed", "method", "perturbation", "metric", "value", "subgroup"]]


@dataclass
class _Study:
    """Models of one seed."""

    adata: AnnData
    gene_ontology: Any
    setup: dict[str, Any]
    site_key: str | None
    init: dict[str, Any]
    train: dict[str, Any]
    n_keys: int
    seed: int
    models: dict[str, GEARS] = field(default_factory=dict)
    key: Key = field(default_factory=Key.generate)

    def score(self, method: str) -> pd.DataFrame:
        """Scores of a method on the test perturbations."""
        if method == "local-only":
            return self._local_only()
        if method == "wrong key":
            return self._wrong_keys()
        if method == "modules removed":
            return self._scored(self._model("keyed").stripped())
        return self._scored(self._model(method))

    def _model(self, method: str) -> GEARS:
        if method not in self.models:
            site_key = None if method == "centralised" else self.site_key
            self.models[method] = self._fit(self.adata, site_key, self.key if method == "keyed" else None)
        return self.models[method]

    def _fit(self, adata: AnnData, site_key: str | None, key: Key | None) -> GEARS:
        GEARS.setup_anndata(adata, site_key=site_key, **self.setup)
        options = {"key_scheme": None if key is None else "coordinate", "rng": self.seed, **self.init}
        model = GEARS(adata, gene_ontology=self.gene_ontology, **options)
        model.train(key=key, **{"rng": self.seed, "progress": False, **self.train})
        return model

    def _wrong_keys(self) -> pd.DataFrame:
        """Mean score over keys drawn like the right one."""
        model, tables = self._model("keyed"), []
        for _ in range(self.n_keys):
            model.unlock(Key.generate(), force=True)
            tables.append(self._scored(model))
        model.unlock(self.key)
        return _averaged(tables)

    def _local_only(self) -> pd.DataFrame:
        """Mean score over the sites, each with a model of its own cells."""
        sites = self.adata.obs[self.site_key].astype(str)
        conditions = self.adata.obs[self.setup["condition_key"]].astype(str)
        tables = []
        for site in sorted(sites.unique()):
            counts = conditions[sites == site].value_counts()
            obs = self.adata.obs.copy()
            obs[_names.SPLIT] = obs[_names.SPLIT].where((sites == site) & conditions.isin(counts.index[counts > 1]))
            own = AnnData(self.adata.X, obs, self.adata.var, layers=layers_of(self.adata))
            tables.append(self._scored(self._fit(own, None, None)))
        return _averaged(tables)

    def _scored(self, model: GEARS) -> pd.DataFrame:
        return score_perturbations(self.adata, {"model": model}, layer=self.setup["layer"], baselines=False)


def _averaged(tables: list[pd.DataFrame]) -> pd.DataFrame:
    columns = ["perturbation", "metric", "subgroup"]
    return pd.concat(tables).groupby(columns, as_index=False, observed=True, sort=False)["value"].mean()
