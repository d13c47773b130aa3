"""One split of the data through one method after the other."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GroupShuffleSplit
from torch import nn

from scinfl import metrics
from scinfl._errors import WeakNoiseWarning
from scinfl.model import Classifier
from scinfl.nn import keyed_layers
from scinfl.privacy import Key, attacks
from scinfl.tl._compare._methods import Method, method_of

_MAX_FEATURES_TO_MATCH = 300  # matching takes the cube of that


@dataclass(frozen=True)
class Split:
    """Rows to train on, of the attacker, and to test on; no group is in two of them."""

    train: np.ndarray
    attacker: np.ndarray
    test: np.ndarray

    @classmethod
    def draw(cls, adata: AnnData, group_key: str | None, size: float, with_attacker: bool, seed: int) -> Split:  # noqa: FBT001
        """Draw a split."""
        groups = np.arange(adata.n_obs) if group_key is None else adata.obs[group_key].astype(str).to_numpy()
        rows = np.arange(adata.n_obs)
        rest, test = next(GroupShuffleSplit(1, test_size=size, random_state=seed).split(rows, groups=groups))
        if not with_attacker:
            return cls(rest, rest[:0], test)
        splitter = GroupShuffleSplit(1, test_size=size / (1 - size), random_state=seed)
        train, attacker = next(splitter.split(rest, groups=groups[rest]))
        return cls(rest[train], np.random.default_rng(seed).permutation(rest[attacker]), test)


@dataclass
class Job:
    """One seed: the same rows for all methods."""

    adata: AnnData
    split: Split
    setup: dict[str, Any]
    site_key: str
    init: dict[str, Any]
    train: dict[str, Any]
    train_private: dict[str, Any]
    delta: float
    attacker_samples: Sequence[int]
    n_keys: int
    seed: int
    _from_scratch: dict[tuple[Any, ...], float] = field(default_factory=dict)

    def run(self, name: str) -> list[dict[str, Any]]:
        """Rows of the table for one method."""
        test = self.adata[self.split.test].copy()
        true = test.obs[self.setup["labels_key"]].astype(str).to_numpy()
        method = method_of(name)
        if name == "majority":
            labels = self.adata.obs[self.setup["labels_key"]].astype(str).iloc[self.split.train]
            return self._utility(test, true, np.full(len(true), labels.mode()[0], dtype=object))
        if name == "local-only":
            return self._local_only(test, true)
        assert method is not None  # noqa: S101
        key = Key.generate() if method.needs_key else None
        watcher = attacks.Watcher()
        train = self.adata[self.split.train].copy()
        model = self._fit(train, method, key, watcher=watcher, pooled=method.pooled)
        rows = self._utility(test, true, model.predict(test, soft=True))
        history = model.history
        assert history is not None  # noqa: S101
        rows += [
            _row("seconds", float(history["seconds"].median())),
            _row("bytes", 0.0 if method.pooled else float((history["bytes_sent"] / history["n_sites"]).median())),
        ]
        if "epsilon" in history:
            rows.append(_row("epsilon", float(history["epsilon"].iloc[-1])))
        if model.is_personal:
            return rows
        rows.append(_row("membership advantage", self._membership(model, train, test)))
        if key is not None and method.watched and len(self.split.attacker) and test.n_vars <= _MAX_FEATURES_TO_MATCH:
            rows.append(_row("key recovered by the server", self._watch(model, watcher, key)))
        return rows + self._attack(model, test, true, keyed=key is not None)

    def _fit(
        self, data: AnnData, method: Method, key: Key | None, *, pooled: bool, watcher: attacks.Watcher | None = None
    ) -> Classifier:
        Classifier.setup_anndata(data, **self.setup, site_key=None if pooled else self.site_key)
        model = Classifier(data, **{**self.init, "rng": self.seed, **method.init})
        arguments = {**self.train, "rng": self.seed, "progress": False, **method.train}
        protections: list[Any] = []
        if method.noise is not None:
            arguments |= self.train_private
            n_rounds = arguments.setdefault("n_rounds", signature(model.train).parameters["n_rounds"].default)
            protections.append(method.noise(n_rounds, self.delta))
        if method.sums is not None and key is not None:
            protections.append(method.sums(key))
        if watcher is not None:
            protections.append(watcher)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", WeakNoiseWarning)  # the table shows what it does
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
                model = self._fit(part, Method("nothing"), None, pooled=True)
                predicted[mine] = model.predict(test[mine])
        return self._utility(test, true, predicted)

    def _watch(self, model: Classifier, watcher: attacks.Watcher, key: Key) -> float:
        """Share of the features that the server matches to the columns of the first layer, with public samples."""
        layer = keyed_layers(model.module)[first := model.first_layer]
        seen = watcher.mean(f"{first}.weight", (layer.out_features, layer.in_features))
        public = _tensor(self.adata[self.split.attacker], self.setup["layer"]).numpy()
        order = np.argsort(key.coordinates(f"{first}/permutation", (layer.in_features,)), kind="stable")
        return float((attacks.match_features(seen, public, rng=self.seed) == order).mean())

    def _membership(self, model: Classifier, train: AnnData, test: AnnData) -> float:
        """Advantage of a threshold at the mean training loss."""
        losses = []
        for part in (train, test):
            codes = self._codes(model, part)
            x, y = _tensor(part, self.setup["layer"])[codes >= 0], torch.from_numpy(codes[codes >= 0])
            losses.append(np.logaddexp(0, -attacks.confidence(model.module, x, y)))
        threshold = losses[0].mean()
        return float((losses[0] <= threshold).mean() - (losses[1] <= threshold).mean())

    def _codes(self, model: Classifier, part: AnnData) -> np.ndarray:
        labels = part.obs[self.setup["labels_key"]].astype(str)
        return pd.Categorical(labels, categories=model.labels).codes.astype(np.int64)

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
        own = self.adata[self.split.attacker]
        x, y = _tensor(own, self.setup["layer"]), torch.from_numpy(self._codes(model, own))
        stealing: list[Callable[..., float]] = [attacks.fine_tune, attacks.fit_scales, attacks.fit_key]
        for n in self.attacker_samples:
            some, few = x[:n], y[:n]
            shape = (n, *(tuple(parameter.shape) for parameter in network.parameters() if parameter.requires_grad))
            if shape not in self._from_scratch:  # the same for all methods with networks of the same shape
                self._from_scratch[shape] = attacks.train_from_scratch(network, some, few, score, rng=self.seed)
            rows.append(_row(f"from scratch, {n} labelled samples", self._from_scratch[shape]))
            if keyed:
                best = max(attack(network, some, few, score, rng=self.seed) for attack in stealing)
                rows.append(_row(f"model stealing, {n} labelled samples", best))
        return rows


def _row(metric: str, value: float, *, label: str = "all", site: str = "all") -> dict[str, Any]:
    return {"metric": metric, "label": label, "site": site, "value": value}


def _tensor(adata: AnnData, layer: str | None) -> torch.Tensor:
    return torch.from_numpy(adata.to_df(layer).to_numpy(np.float32, copy=True))
