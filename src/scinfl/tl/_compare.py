"""The same data, split alike, through every method, with what each costs and gives away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GroupShuffleSplit
from torch import nn
from tqdm import tqdm

from scinfl import metrics
from scinfl._checks import number_between, obs_column, whole_number
from scinfl.federation import FedAdam, FedProx
from scinfl.model import Classifier
from scinfl.nn import keyed_layers
from scinfl.privacy import Key, KeyedSum, attacks


@dataclass(frozen=True)
class _Method:
    """How a method makes and trains its model, and what the server reads of it."""

    server_sees: str
    init: dict[str, Any] = field(default_factory=lambda: {"key_scheme": None})
    train: dict[str, Any] = field(default_factory=dict)
    keyed_sums: bool = False
    pooled: bool = False
    watched: bool = False

    @property
    def needs_key(self) -> bool:
        return self.init["key_scheme"] is not None


_LOCKED = "locked updates of every site"
_METHODS = {
    "majority": None,
    "local-only": None,
    "centralised": _Method("all cells", pooled=True),
    "FedAvg": _Method("updates of every site"),
    "FedProx": _Method("updates of every site", train={"strategy": FedProx()}),
    "FedAdam": _Method("updates of every site", train={"strategy": FedAdam()}),
    "permuted": _Method(_LOCKED, {"key_scheme": "permuted"}),
    "pooled": _Method(_LOCKED, {"key_scheme": "pooled"}),
    "coordinate": _Method(_LOCKED, {"key_scheme": "coordinate"}, watched=True),
    "coordinate, trained": _Method(_LOCKED, {"key_scheme": "coordinate", "train_meta": True}),
    "coordinate + keyed sums": _Method(
        "nothing but sizes", {"key_scheme": "coordinate"}, keyed_sums=True, watched=True
    ),
    "meta only": _Method(
        "meta learners of every site", {"key_scheme": "coordinate", "train_meta": True}, {"share": "meta"}
    ),
    "projected": _Method(
        "locked updates without the first layer", {"key_scheme": "coordinate"}, {"share": "projected"}
    ),
}

_MAX_FEATURES_TO_MATCH = 300  # matching takes the cube of that

METHODS = tuple(_METHODS)
"""Methods that :func:`compare` knows."""


def compare(
    adata: AnnData,
    labels_key: str,
    *,
    site_key: str,
    methods: Sequence[str] = METHODS,
    group_key: str | None = None,
    layer: str | None = None,
    n_seeds: int = 3,
    test_size: float = 0.2,
    thief_samples: Sequence[int] = (50, 200),
    n_keys: int = 20,
    init: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
    rng: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Compare methods on your own data: utility, cost, and what is left without the key.

    For every seed the rows are split anew into training, test and (if there are thieves) the thief's rows, by group
    where there are groups; all methods get the same split. Nothing is chosen on the test rows, except by the thieves,
    who keep their best checkpoint on them.

    Parameters
    ----------
    adata
        Cells or samples × features.
    labels_key, site_key, layer
        See :meth:`scinfl.model.Classifier.setup_anndata`.
    methods
        Which methods, of :data:`METHODS`.
    group_key
        Patient or donor, whose rows are never split between training and test.
    n_seeds
        Number of splits and initialisations.
    test_size
        Share of the groups (or rows) to test on; the thief gets as many.
    thief_samples
        Numbers of labelled samples of a thief; none leaves the thieves out.
    n_keys
        Wrong keys to try.
    init, train
        Arguments of :class:`~scinfl.model.Classifier` and its ``train``, for all methods.
    rng
        First seed.
    progress
        Show a progress bar.

    Returns
    -------
    Tidy data frame with the columns ``seed``, ``method``, ``metric``, ``label`` (``"all"`` or a class), ``site``
    (``"all"`` or a site) and ``value``. Metrics are those of :func:`scinfl.metrics.classification`, ``seconds`` and
    ``bytes`` a round, and balanced accuracies of attackers: ``wrong key, mean``, ``wrong key, best``,
    ``modules removed``, ``thief, n`` (the best of three thieves) and ``from scratch, n``. With at most 300 features,
    ``key recovered by the server`` is the share of the key's permutation that a server finds from what it was sent.
    What the server reads under each method stands in ``.attrs["server_sees"]``.

    Raises
    ------
    KeyError, ValueError
        If columns, methods or numbers cannot be used; before any training.
    """
    unknown = [name for name in methods if name not in _METHODS]
    if unknown or not methods:
        msg = f"Expected `methods` among {list(METHODS)}, found {unknown or 'none'}."
        raise ValueError(msg)
    whole_number("n_seeds", n_seeds, 1)
    whole_number("n_keys", n_keys, 1)
    number_between("test_size", test_size, 0.01, 0.45)
    for column, argument in ((labels_key, "labels_key"), (site_key, "site_key"), (group_key, "group_key")):
        if column is not None:
            obs_column(adata, column, argument)
    setup = {"labels_key": labels_key, "group_key": group_key, "layer": layer}
    rows = []
    with tqdm(total=n_seeds * len(methods), disable=not progress, desc="Comparing") as bar:
        for seed in range(rng, rng + n_seeds):
            split = _Split.draw(adata, group_key, test_size, bool(thief_samples), seed)
            job = _Job(adata, split, setup, site_key, init or {}, train or {}, thief_samples, n_keys, seed)
            for name in methods:
                bar.set_postfix_str(name)
                rows += [{"seed": seed, "method": name, **row} for row in job.run(name)]
                bar.update()
    table = pd.DataFrame(rows)
    table["method"] = pd.Categorical(table["method"], categories=list(methods))
    table.attrs["server_sees"] = {
        name: method.server_sees if (method := _METHODS[name]) else "nothing" for name in methods
    }
    return table


@dataclass(frozen=True)
class _Split:
    train: np.ndarray
    thief: np.ndarray
    test: np.ndarray

    @classmethod
    def draw(cls, adata: AnnData, group_key: str | None, size: float, with_thief: bool, seed: int) -> _Split:  # noqa: FBT001
        groups = np.arange(adata.n_obs) if group_key is None else adata.obs[group_key].astype(str).to_numpy()
        rows = np.arange(adata.n_obs)
        rest, test = next(GroupShuffleSplit(1, test_size=size, random_state=seed).split(rows, groups=groups))
        if not with_thief:
            return cls(rest, rest[:0], test)
        splitter = GroupShuffleSplit(1, test_size=size / (1 - size), random_state=seed)
        train, thief = next(splitter.split(rest, groups=groups[rest]))
        return cls(rest[train], np.random.default_rng(seed).permutation(rest[thief]), test)


@dataclass
class _Job:
    """One seed: the same rows for all methods."""

    adata: AnnData
    split: _Split
    setup: dict[str, Any]
    site_key: str
    init: dict[str, Any]
    train: dict[str, Any]
    thief_samples: Sequence[int]
    n_keys: int
    seed: int

    def run(self, name: str) -> list[dict[str, Any]]:
        """Rows of the table for one method."""
        test = self.adata[self.split.test].copy()
        true = test.obs[self.setup["labels_key"]].astype(str).to_numpy()
        method = _METHODS[name]
        if name == "majority":
            labels = self.adata.obs[self.setup["labels_key"]].astype(str).iloc[self.split.train]
            return self._utility(test, true, np.full(len(true), labels.mode()[0], dtype=object))
        if name == "local-only":
            return self._local_only(test, true)
        assert method is not None  # noqa: S101
        key = Key.generate() if method.needs_key else None
        watcher = attacks.Watcher()
        model = self._fit(self.adata[self.split.train].copy(), method, key, watcher=watcher, pooled=method.pooled)
        rows = self._utility(test, true, model.predict(test, soft=True))
        history = model.history
        assert history is not None  # noqa: S101
        rows += [
            _row("seconds", float(history["seconds"].median())),
            _row("bytes", 0.0 if method.pooled else float((history["bytes_sent"] / history["n_sites"]).median())),
        ]
        if model.is_personal:
            return rows
        if key is not None and method.watched and len(self.split.thief) and test.n_vars <= _MAX_FEATURES_TO_MATCH:
            rows.append(_row("key recovered by the server", self._watch(model, watcher, key)))
        return rows + self._attack(model, test, true, keyed=key is not None)

    def _fit(
        self, data: AnnData, method: _Method, key: Key | None, *, pooled: bool, watcher: attacks.Watcher | None = None
    ) -> Classifier:
        Classifier.setup_anndata(data, **self.setup, site_key=None if pooled else self.site_key)
        model = Classifier(data, **{**self.init, "rng": self.seed, **method.init})
        protections: list[Any] = [KeyedSum(key)] if key is not None and method.keyed_sums else []
        if watcher is not None:
            protections.append(watcher)
        arguments = {**self.train, "rng": self.seed, "progress": False, **method.train}
        model.train(key=key, protections=protections, **arguments)
        return model

    def _local_only(self, test: AnnData, true: np.ndarray) -> list[dict[str, Any]]:
        """Every site by itself, rated on its own test rows."""
        data = self.adata[self.split.train]
        predicted = np.full(len(true), "", dtype=object)
        for site in data.obs[self.site_key].astype(str).unique():
            mine = (test.obs[self.site_key].astype(str) == site).to_numpy()
            part = data[(data.obs[self.site_key].astype(str) == site).to_numpy()].copy()
            if part.obs[self.setup["labels_key"]].nunique() < 2:
                predicted[mine] = str(part.obs[self.setup["labels_key"]].iloc[0])
            elif mine.any():
                model = self._fit(part, _Method("nothing"), None, pooled=True)
                predicted[mine] = model.predict(test[mine])
        return self._utility(test, true, predicted)

    def _watch(self, model: Classifier, watcher: attacks.Watcher, key: Key) -> float:
        """Share of the features that the server matches to the columns of the first layer, with the thief's samples."""
        layer = keyed_layers(model.module)[first := model.first_layer]
        seen = watcher.mean(f"{first}.weight", (layer.out_features, layer.in_features))
        public = _tensor(self.adata[self.split.thief], self.setup["layer"]).numpy()
        order = np.argsort(key.coordinates(f"{first}/permutation", (layer.in_features,)), kind="stable")
        return float((attacks.match_features(seen, public, rng=self.seed) == order).mean())

    def _utility(self, test: AnnData, true: np.ndarray, predicted: np.ndarray | pd.DataFrame) -> list[dict[str, Any]]:
        table = metrics.classification(true, predicted, n_bootstrap=0)
        rows = [_row(row.metric, row.value, label=row.label) for row in table.itertuples()]
        guess = predicted if isinstance(predicted, np.ndarray) else predicted.idxmax(axis=1).to_numpy()
        sites = test.obs[self.site_key].astype(str).to_numpy()
        for site in np.unique(sites):
            mine = sites == site
            recall = [np.mean(guess[mine & (true == label)] == label) for label in np.unique(true[mine])]
            rows.append(_row("balanced_accuracy", float(np.mean(recall)), site=site))
        return rows

    def _attack(self, model: Classifier, test: AnnData, true: np.ndarray, *, keyed: bool) -> list[dict[str, Any]]:
        network, labels = model.module, np.array(model.labels)
        x_test = _tensor(test, self.setup["layer"])

        def score(network: nn.Module) -> float:
            with torch.inference_mode():
                return float(balanced_accuracy_score(true, labels[network(x_test).argmax(1).numpy()]))

        rows = []
        if keyed:
            wrong = attacks.wrong_keys(network, score, n_keys=self.n_keys)
            rows += [_row("wrong key, mean", float(wrong.mean())), _row("wrong key, best", float(wrong.max()))]
            rows.append(_row("modules removed", attacks.removed_modules(network, score)))
        own = self.adata[self.split.thief]
        codes = pd.Categorical(own.obs[self.setup["labels_key"]].astype(str), categories=labels).codes
        x, y = _tensor(own, self.setup["layer"]), torch.from_numpy(codes.astype(np.int64))
        thieves: list[Callable[..., float]] = [attacks.fine_tune, attacks.fit_scales, attacks.fit_key]
        for n in self.thief_samples:
            some, few = x[:n], y[:n]
            scratch = attacks.train_from_scratch(network, some, few, score, rng=self.seed)
            rows.append(_row(f"from scratch, {n}", scratch))
            if keyed:
                best = max(thief(network, some, few, score, rng=self.seed) for thief in thieves)
                rows.append(_row(f"thief, {n}", best))
        return rows


def _row(metric: str, value: float, *, label: str = "all", site: str = "all") -> dict[str, Any]:
    return {"metric": metric, "label": label, "site": site, "value": value}


def _tensor(adata: AnnData, layer: str | None) -> torch.Tensor:
    values = adata.X if layer is None else adata.layers[layer]
    return torch.from_numpy(
        np.asarray(values.toarray() if sparse.issparse(values) else values, dtype=np.float32).copy()
    )
