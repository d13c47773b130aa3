"""A complete example on bundled cells, for ``scinfl demo``."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
import torch
from anndata import AnnData
from sklearn.metrics import balanced_accuracy_score, f1_score
from sklearn.model_selection import train_test_split
from torch import nn

from scinfl import datasets, pl, pp, tl
from scinfl._checks import new_path
from scinfl.model import Classifier
from scinfl.model.base import ModelView
from scinfl.privacy import Key
from scinfl.privacy.attacks import removed_modules, wrong_keys

_LABELS = "bulk_labels"
_TABLE = "comparison.csv"
_LR = 2e-3  # 525 cells are few: smaller steps than the default vary less from run to run


def demo(
    out: Path, *, n_rounds: int = 20, rng: int = 0, overwrite: bool = False, progress: bool = True
) -> pd.DataFrame:
    """Train a keyed federation of five uneven sites on bundled cells and compare right, wrong and no key.

    Training without a key starts from the same weights, so that only the key differs. A quarter of the cells is held
    out for testing and is used neither in training nor for any choice. Returns balanced accuracy and macro-F1 on the
    held-out cells, by model and key.
    """
    new_path(out, overwrite=overwrite)
    if out.exists() and not (out / _TABLE).is_file():
        msg = f"Expected the folder of an earlier demo to overwrite at '{out}', found something else. Name another."
        raise FileExistsError(msg)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        folder.chmod(0o755)
        table = _run(folder, n_rounds, rng, progress)
        if out.exists():
            shutil.rmtree(out)
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return table


def _run(folder: Path, n_rounds: int, rng: int, progress: bool) -> pd.DataFrame:  # noqa: FBT001
    adata = datasets.pbmc()
    rows = np.arange(adata.n_obs)
    train, test = train_test_split(rows, test_size=0.25, random_state=rng, stratify=adata.obs[_LABELS])
    cells = adata[train].copy()
    pp.split_sites(cells, n_sites=5, by=_LABELS, alpha=0.5, rng=rng)

    key = Key.generate("demo")
    key.save(folder / "consortium.key")
    Classifier.setup_anndata(cells, labels_key=_LABELS, site_key="site")
    plain, model = Classifier(cells, key_scheme=None, rng=rng), Classifier(cells, rng=rng)
    plain.module.load_state_dict(ModelView(model).start_of(key).state_dict())
    plain.train(n_rounds, lr=_LR, rng=rng, progress=progress)
    model.train(n_rounds, lr=_LR, key=key, rng=rng, progress=progress)
    model.save(folder / "model")

    table = _compare(adata[test], cells, plain, model)
    table.to_csv(folder / _TABLE)
    tl.annotate(adata, model)
    tl.embed(adata, model)
    adata.obs["held_out"] = np.isin(rows, test)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.pp.neighbors(adata, use_rep="X_infl", key_added="infl")
        sc.tl.umap(adata, neighbors_key="infl", random_state=rng)
    adata.write_h5ad(folder / "cells.h5ad")
    _draw(folder, adata, adata[test], model)
    return table


def _compare(test: AnnData, cells: AnnData, plain: Classifier, model: Classifier) -> pd.DataFrame:
    true = test.obs[_LABELS].astype(str).to_numpy()
    labels = np.array(model.labels)
    x = torch.from_numpy(np.asarray(test.X, dtype=np.float32))

    def predicted(network: nn.Module) -> np.ndarray:
        with torch.inference_mode():
            return labels[network(x).argmax(1).numpy()]

    def balanced(network: nn.Module) -> float:
        return balanced_accuracy_score(true, predicted(network))

    def macro_f1(network: nn.Module) -> float:
        return f1_score(true, predicted(network), average="macro")

    majority = np.full(len(true), cells.obs[_LABELS].astype(str).mode()[0])
    wrong = {score: wrong_keys(model.module, score) for score in (balanced, macro_f1)}
    fresh = [ModelView(model).untrained(number).eval() for number in range(50)]
    untrained = {score: np.array([score(network) for network in fresh]) for score in (balanced, macro_f1)}
    rows = {
        "majority label": (balanced_accuracy_score(true, majority), f1_score(true, majority, average="macro")),
        "federated, no key": (balanced(plain.module), macro_f1(plain.module)),
        "keyed, right key": (balanced(model.module), macro_f1(model.module)),
        "keyed, wrong keys (mean of 50)": (wrong[balanced].mean(), wrong[macro_f1].mean()),
        "keyed, wrong keys (best of 50)": (wrong[balanced].max(), wrong[macro_f1].max()),
        "untrained networks (mean of 50)": (untrained[balanced].mean(), untrained[macro_f1].mean()),
        "untrained networks (best of 50)": (untrained[balanced].max(), untrained[macro_f1].max()),
        "keyed, modules removed": (
            removed_modules(model.module, balanced),
            removed_modules(model.module, macro_f1),
        ),
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["balanced accuracy", "macro-F1"]).round(3)


def _draw(folder: Path, adata: AnnData, test: AnnData, model: Classifier) -> None:
    with mpl.rc_context({"figure.dpi": 150}):
        pl.history(model, sites=True)
        plt.savefig(folder / "history.png", bbox_inches="tight")
        pl.sites(model)
        plt.savefig(folder / "sites.png", bbox_inches="tight")
        pl.confusion(test, _LABELS)
        plt.savefig(folder / "confusion.png", bbox_inches="tight")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            figure = sc.pl.umap(adata, color=[_LABELS, "infl_label"], wspace=0.6, show=False, return_fig=True)
        figure.savefig(folder / "umap.png", bbox_inches="tight")
        plt.close("all")
