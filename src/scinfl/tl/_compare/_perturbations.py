"""Perturbation response through every method: alone, pooled, federated, keyed, and without the key."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from anndata import AnnData
from tqdm import tqdm

from scinfl import _names, metrics, pp
from scinfl._checks import gene_names, layers_of, obs_column, values_of, whole_number
from scinfl.model import GEARS
from scinfl.privacy import Key
from scinfl.tl._score_perturbations import held_out, prepared, score_perturbations

PERTURBATION_METHODS = ("local-only", "centralised", "FedAvg", "keyed", "wrong key", "modules removed")
"""Methods that :func:`compare_perturbations` knows; simple baselines are always there."""


def compare_perturbations(
    adata: AnnData,
    gene_ontology: Any = None,
    *,
    site_key: str | None = None,
    by_site: bool = False,
    methods: Sequence[str] = PERTURBATION_METHODS,
    n_seeds: int = 3,
    n_keys: int = 3,
    layer: str | None = None,
    condition_key: str = _names.PERTURBATION,
    control: str | None = None,
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
    by_site
        Score every site by itself, where sites are cell lines, tissues or batches whose cells differ: its cells against
        its own controls, on the genes that a perturbation changes in it. ``"local-only"`` is then scored at its own
        site alone, ``"centralised"`` has the site as a covariate, so that cells are compared with controls of their
        site, and the baselines are of the site's own training cells and, named ``"…, all sites"``, of the changes
        within sites, averaged over them by their numbers of cells.
    methods
        Which methods, of :data:`PERTURBATION_METHODS`.
    n_seeds
        Number of initialisations.
    n_keys
        Wrong keys to try; their mean is reported.
    layer, condition_key, control
        See :meth:`scinfl.model.GEARS.setup_anndata`; the control is by default the one that
        :func:`scinfl.pp.perturbations` was called with.
    init, train
        Arguments of :class:`~scinfl.model.GEARS` and its ``train``, for all methods.
    rng
        First seed.
    progress
        Show a progress bar.

    Returns
    -------
    Tidy data frame with the columns ``seed``, ``method``, ``site`` (``"all"`` or a site), ``perturbation``, ``metric``,
    ``value``, ``subgroup``, ready for :func:`scinfl.metrics.perturbation_summary` and
    :func:`scinfl.pl.perturbation_metrics`. ``.attrs["shrinkage"]`` holds the share of the network's part by (method,
    seed).

    Raises
    ------
    KeyError
        If the cells were not prepared.
    ValueError
        If a method is unknown or needs sites that are not named, no perturbation is held out, or a site lacks controls.
    """
    unknown = [name for name in methods if name not in PERTURBATION_METHODS]
    if unknown:
        msg = f"Expected `methods` among {list(PERTURBATION_METHODS)}, found {unknown}."
        raise ValueError(msg)
    if site_key is None and (alone := [name for name in methods if name != "centralised"]):
        msg = f"Expected `site_key` for the methods {alone}, found none. Name a column, or ask for 'centralised' alone."
        raise ValueError(msg)
    if by_site and site_key is None:
        msg = (
            "Expected `site_key` to score by site, found none. Name the column with the sites, or leave out `by_site`."
        )
        raise ValueError(msg)
    whole_number("n_seeds", n_seeds, 1)
    whole_number("n_keys", n_keys, 1)
    if site_key is not None:
        obs_column(adata, site_key, "site_key")
    known = prepared(adata, "test")
    setup = {"condition_key": condition_key, "control": control or str(known["control"]), "layer": layer}
    setup["gene_key"] = known.get("gene_key")
    data = _Data(adata, setup, site_key, by_site=by_site)
    tables = [data.baselines().assign(seed=rng)]
    shrinkage: dict[tuple[str, int], Any] = {}
    with tqdm(total=n_seeds * len(methods), disable=not progress, desc="Methods") as bar:
        for seed in range(rng, rng + n_seeds):
            study = _Study(data, gene_ontology, init or {}, train or {}, n_keys, seed)
            for method in methods:
                tables.append(study.score(method).assign(method=method, seed=seed))
                if method in study.models:
                    shrinkage[method, seed] = study.models[method].shrinkage
                bar.update()
    result = pd.concat(tables, ignore_index=True)
    order = [*dict.fromkeys(result["method"])]
    result["method"] = pd.Categorical(result["method"], categories=order)
    result.attrs["shrinkage"] = shrinkage
    return result[["seed", "method", "site", "perturbation", "metric", "value", "subgroup"]]


@dataclass
class _Data:
    """Cells to train on, and the cells to score on: all of them, or those of each site by themselves."""

    adata: AnnData
    setup: dict[str, Any]
    site_key: str | None
    by_site: bool
    scored: dict[str, AnnData] = field(init=False)

    def __post_init__(self) -> None:
        self.scored = {"all": self.adata}
        if self.by_site:
            every = {site: self._at(site) for site in self.sites()}
            self.scored = {site: own for site, own in every.items() if held_out(own)}

    def sites(self) -> list[str]:
        """Names of the sites."""
        return sorted(self.adata.obs[self.site_key].astype(str).unique())

    def baselines(self) -> pd.DataFrame:
        """Scores of simple rules, of the cells that are scored and of all sites."""
        layer = self.setup["layer"]
        tables = [score_perturbations(own, {}, layer=layer).assign(site=name) for name, own in self.scored.items()]
        if self.by_site:
            trained = self._changes_within_sites()
            for name, own in self.scored.items():
                rules = metrics.perturbation_baselines(trained, held_out(own), control=self.setup["control"])
                several = {f"{rule}, all sites": change for rule, change in rules.items() if rule != "no change"}
                tables.append(score_perturbations(own, several, layer=layer, baselines=False).assign(site=name))
        return pd.concat(tables)

    def score(self, model: GEARS, *, at: str | None = None, covariate: str | None = None) -> pd.DataFrame:
        """Scores of a model on all that is scored, or at one site; ``covariate`` is the one that names sites."""
        tables = [
            score_perturbations(
                own,
                {"model": model},
                layer=self.setup["layer"],
                baselines=False,
                covariates=None if covariate is None else {covariate: name},
            ).assign(site=name)
            for name, own in self.scored.items()
            if at in (None, name)
        ]
        return pd.concat(tables)

    def _at(self, site: str) -> AnnData:
        """Cells of a site, with the genes that perturbations change in it."""
        own = self.adata[(self.adata.obs[self.site_key].astype(str) == site).to_numpy()].copy()
        known = own.uns[_names.UNS]["perturbations"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what is weak in the cells of one site alone
            pp.perturbations(
                own,
                str(known["condition_key"]),
                control=str(known["control"]),
                layer=self.setup["layer"],
                gene_key=known.get("gene_key"),
                unknown="keep",
                n_top=known["top_de"].shape[1],
            )
        return own

    def _changes_within_sites(self) -> pd.DataFrame:
        """Mean change of each training perturbation against controls of its site, over sites by numbers of cells."""
        changes, counts, genes = [], [], gene_names(self.adata, self.setup["gene_key"])
        for site in self.sites():
            rows = (self.adata.obs[self.site_key].astype(str) == site).to_numpy()
            own = self.adata[rows & (self.adata.obs[_names.SPLIT] == "train").to_numpy()]
            names = own.obs[self.setup["condition_key"]].astype(str)
            if self.setup["control"] not in set(names):
                msg = f"Expected control cells to train on at site '{site}', found none. Add some, or leave it out."
                raise ValueError(msg)
            matrix = values_of(own, self.setup["layer"])
            changes.append(metrics.mean_changes(matrix, names, genes, control=self.setup["control"]))
            counts.append(names.value_counts().reindex(changes[-1].index))
        total = pd.concat(counts).groupby(level=0).sum()
        weighted = [change.mul(count, axis=0) for change, count in zip(changes, counts, strict=True)]
        return pd.concat(weighted).groupby(level=0).sum().div(total, axis=0)


@dataclass
class _Study:
    """Models of one seed."""

    data: _Data
    gene_ontology: Any
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
            return self.data.score(self._model("keyed").stripped())
        if method == "centralised" and self.data.by_site:
            return self.data.score(self._model(method), covariate=self.data.site_key)
        return self.data.score(self._model(method))

    def _model(self, method: str) -> GEARS:
        if method not in self.models:
            site_key, by_site = self.data.site_key, self.data.by_site
            pooled = {"site_key": None, "covariate_keys": [site_key] if by_site else []}
            sites = pooled if method == "centralised" else {"site_key": site_key}
            self.models[method] = self._fit(self.data.adata, self.key if method == "keyed" else None, **sites)
        return self.models[method]

    def _fit(self, adata: AnnData, key: Key | None, **sites: Any) -> GEARS:
        GEARS.setup_anndata(adata, **sites, **self.data.setup)
        options = {"key_scheme": None if key is None else "coordinate", "rng": self.seed, **self.init}
        model = GEARS(adata, gene_ontology=self.gene_ontology, **options)
        model.train(key=key, **{"rng": self.seed, "progress": False, **self.train})
        return model

    def _wrong_keys(self) -> pd.DataFrame:
        """Mean score over keys drawn like the right one."""
        model, tables = self._model("keyed"), []
        for _ in range(self.n_keys):
            model.unlock(Key.generate(), force=True)
            tables.append(self.data.score(model))
        model.unlock(self.key)
        return _averaged(tables)

    def _local_only(self) -> pd.DataFrame:
        """Scores of the sites, each with a model of its own cells: at its site, or on all cells and then their mean."""
        adata, split = self.data.adata, _names.SPLIT
        sites = adata.obs[self.data.site_key].astype(str)
        conditions = adata.obs[self.data.setup["condition_key"]].astype(str)
        tables = []
        for site in self.data.scored if self.data.by_site else self.data.sites():
            counts = conditions[sites == site].value_counts()
            obs = adata.obs.copy()
            obs[split] = obs[split].where((sites == site) & conditions.isin(counts.index[counts > 1]))
            own = AnnData(adata.X, obs, adata.var, layers=layers_of(adata))
            tables.append(self.data.score(self._fit(own, None, site_key=None), at=site if self.data.by_site else None))
        return _averaged(tables)


def _averaged(tables: list[pd.DataFrame]) -> pd.DataFrame:
    columns = ["site", "perturbation", "metric", "subgroup"]
    return pd.concat(tables).groupby(columns, as_index=False, observed=True, sort=False)["value"].mean()
