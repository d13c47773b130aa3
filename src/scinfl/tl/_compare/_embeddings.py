"""Embeddings of counts through every method: alone, pooled, federated, keyed, without the key, and untrained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from sklearn.cluster import KMeans
from tqdm import tqdm

from scinfl import metrics, pp
from scinfl._checks import obs_column, values_of, whole_number
from scinfl.model import ScviModel, ScviOptions, from_scvi
from scinfl.model.scvi import ScviView, train_pooled
from scinfl.privacy import Key

EMBEDDING_METHODS = (
    "PCA",
    "PCA, offsets removed",
    "untrained",
    "local-only",
    "centralised",
    "FedAvg",
    "keyed",
    "wrong key",
    "modules removed",
)
"""Methods that :func:`compare_embeddings` knows."""


def compare_embeddings(
    adata: AnnData,
    labels_key: str,
    *,
    site_key: str,
    kind: type | str = "SCVI",
    methods: Sequence[str] = EMBEDDING_METHODS,
    unlabeled_category: str | None = None,
    layer: str | None = None,
    n_seeds: int = 3,
    n_keys: int = 3,
    init: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
    rng: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Compare ways to train a model of scvi-tools on your own cells, by what its codes are good for.

    Labels are used to score, and to train a class that needs them (``SCANVI``, which is then scored on labels that it
    has seen). Nothing is chosen on them. The methods:

    ========================  ==========================================================================
    Method                    Codes
    ========================  ==========================================================================
    ``PCA``                   :func:`scinfl.pp.federated_pca` of log counts per 10,000: that of pooled cells
    ``PCA, offsets removed``  the same after :func:`scinfl.pp.federated_offsets`, which is Harmony from sums
    ``untrained``             initial weights, mean of ``n_keys`` networks: not chance, but what a wrong key may leave
    ``local-only``            a model of each site by itself embeds the cells of all; mean over sites
    ``centralised``           scvi-tools' own model and trainer on pooled cells, the same number of epochs
    ``FedAvg``, ``keyed``     trained over sites, without and with a key
    ``wrong key``             the keyed one, mean of ``n_keys`` wrong keys
    ``modules removed``       the keyed one without its keyed modules
    ========================  ==========================================================================

    Parameters
    ----------
    adata
        Cells × features, raw counts.
    labels_key, site_key
        Columns of ``adata.obs`` with the labels and the sites.
    kind, unlabeled_category, layer
        See :func:`scinfl.model.from_scvi`.
    methods
        Which methods, of :data:`EMBEDDING_METHODS`.
    n_seeds
        Number of initialisations.
    n_keys
        Wrong keys, and untrained networks, to average over.
    init, train
        Arguments of the class (``n_latent``) and of :meth:`scinfl.model.ScviModel.train`, for all methods.
    rng
        First seed.
    progress
        Show a progress bar.

    Returns
    -------
    Tidy data frame with the columns ``seed``, ``method``, ``metric``, ``label`` and ``site`` (always ``"all"``) and
    ``value``, ready for :func:`scinfl.pl.compare`. The metrics are those of :func:`scinfl.metrics.integration`, among
    them ``label_transfer`` (labels of each site, voted by the nearest cells of the others), ``ari`` and ``nmi`` of
    k-means with as many clusters as there are labels, ``mixing`` and ``ilisi``.

    Raises
    ------
    KeyError, ValueError
        If columns, methods, counts or the class cannot be used; before any training.

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> adata = si.datasets.pbmc()
    >>> adata.X = np.random.default_rng(0).poisson(1.0, adata.shape).astype("float32")  # your counts
    >>> si.pp.split_sites(adata, n_sites=3, rng=0)
    >>> table = si.tl.compare_embeddings(
    ...     adata,
    ...     "bulk_labels",
    ...     site_key="site",
    ...     methods=["PCA", "keyed"],
    ...     n_seeds=1,
    ...     train={"n_rounds": 1},
    ...     progress=False,
    ... )
    >>> table.loc[table["metric"] == "ari", "method"].tolist()
    ['PCA', 'keyed']
    """
    if (unknown := [name for name in methods if name not in EMBEDDING_METHODS]) or not methods:
        msg = f"Expected `methods` among {list(EMBEDDING_METHODS)}, found {unknown or 'none'}."
        raise ValueError(msg)
    whole_number("n_seeds", n_seeds, 1)
    whole_number("n_keys", n_keys, 1)
    for column, argument in ((labels_key, "labels_key"), (site_key, "site_key")):
        obs_column(adata, column, argument)
    setup = {"labels_key": labels_key, "unlabeled_category": unlabeled_category, "layer": layer}
    rows = []
    with tqdm(total=n_seeds * len(methods), disable=not progress, desc="Comparing") as bar:
        for seed in range(rng, rng + n_seeds):
            study = _Study(adata, kind, site_key, setup, dict(init or {}), dict(train or {}), n_keys, seed)
            for method in methods:
                bar.set_postfix_str(method)
                rows.append(study.score(method).assign(seed=seed, method=method, label="all", site="all"))
                bar.update()
    table = pd.concat(rows, ignore_index=True)
    table["method"] = pd.Categorical(table["method"], categories=list(methods))
    return table[["seed", "method", "metric", "label", "site", "value"]]


@dataclass
class _Study:
    """Models of one seed."""

    adata: AnnData
    kind: type | str
    site_key: str
    setup: dict[str, Any]
    init: dict[str, Any]
    train: dict[str, Any]
    n_keys: int
    seed: int
    models: dict[str, ScviModel] = field(default_factory=dict)
    key: Key = field(default_factory=Key.generate)

    def score(self, method: str) -> pd.DataFrame:
        """Mean scores of the embeddings of a method."""
        by_name: dict[str, Callable[[], Any]] = {
            "PCA": lambda: [self._components.obsm["X_pca"]],
            "PCA, offsets removed": self._without_offsets,
            "untrained": self._untrained,
            "local-only": self._local_only,
            "centralised": self._centralised,
            "wrong key": self._wrong_keys,
            "modules removed": lambda: [self._model("keyed").stripped().get_latent_representation()],
        }
        make = by_name.get(method, lambda: [self._model(method).get_latent_representation()])
        tables = [self._scores(embedding) for embedding in make()]
        return pd.concat(tables).groupby("metric", as_index=False, sort=False)["value"].mean()

    def _scores(self, embedding: np.ndarray) -> pd.DataFrame:
        labels = self.adata.obs[self.setup["labels_key"]]
        labels = labels.astype(object).where(labels.astype(str) != str(self.setup["unlabeled_category"]))
        found = KMeans(labels.nunique(), n_init=10, random_state=self.seed).fit_predict(embedding)
        sites = self.adata.obs[self.site_key].astype(str).to_numpy()
        return metrics.integration(embedding, batch=sites, labels=labels, clusters=found.astype(str), rng=self.seed)

    # ---- without a network

    @cached_property
    def _components(self) -> AnnData:
        """Components of log counts, from sums over sites."""
        values = values_of(self.adata, self.setup["layer"])
        logged = AnnData(values.copy(), self.adata.obs[[self.site_key]].copy(), self.adata.var[[]].copy())
        sc.pp.normalize_total(logged, target_sum=1e4)
        sc.pp.log1p(logged)
        n = min(self.init.get("n_latent", 10), logged.n_vars - 1)
        pp.federated_pca(logged, n, site_key=self.site_key, mask_var=None)
        return logged

    def _without_offsets(self) -> list[np.ndarray]:
        pp.federated_offsets(self._components, site_key=self.site_key, rng=self.seed)
        return [self._components.obsm["X_pca_aligned"]]

    # ---- models

    def _make(self, cells: AnnData, key: Key | None = None, *, site_key: str | None) -> ScviModel:
        scheme = None if key is None else "coordinate"
        return from_scvi(
            self.kind, cells, site_key=site_key, key_scheme=scheme, rng=self.seed, **self.setup, **self.init
        )

    def _fit(self, cells: AnnData, key: Key | None = None, *, site_key: str | None) -> ScviModel:
        model = self._make(cells, key, site_key=site_key)
        model.train(key=key, **{"rng": self.seed, "progress": False, **self.train})
        return model

    def _model(self, method: str) -> ScviModel:
        if method not in self.models:
            key = self.key if method == "keyed" else None
            self.models[method] = self._fit(self.adata.copy(), key, site_key=self.site_key)
        return self.models[method]

    def _untrained(self) -> list[np.ndarray]:
        view = ScviView(self._make(self.adata.copy(), site_key=self.site_key))
        return [view.latent(view.untrained(self.seed * self.n_keys + number)) for number in range(self.n_keys)]

    def _local_only(self) -> list[np.ndarray]:
        sites = self.adata.obs[self.site_key].astype(str)
        alone = [self._fit(self.adata[(sites == site).to_numpy()].copy(), site_key=None) for site in sites.unique()]
        return [model.get_latent_representation(self.adata) for model in alone]

    def _centralised(self) -> list[np.ndarray]:
        model = self._make(self.adata.copy(), site_key=self.site_key)
        options = ScviOptions(**self.train)
        n_epochs = options.n_rounds * options.local_epochs
        native = train_pooled(model, self.adata, n_epochs, lr=options.lr, rng=self.seed)
        return [native.get_latent_representation()]

    def _wrong_keys(self) -> list[np.ndarray]:
        """Codes with keys drawn like the right one."""
        model, found = self._model("keyed"), []
        for _ in range(self.n_keys):
            model.unlock(Key.generate(), force=True)
            found.append(model.get_latent_representation())
        model.unlock(self.key)
        return found
