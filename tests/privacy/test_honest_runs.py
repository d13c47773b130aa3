"""No honest run is refused: random trainings of data from several generators, where a server makes the state."""

from __future__ import annotations

import warnings
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from tests.conftest import make_cells
from tests.model.spamosaic.test_model import make_sections
from tests.privacy.test_received import elsewhere

import scinfl as si
from scinfl.model.base import ModelView
from scinfl.model.gears import condition_facts
from scinfl.privacy import Key

N_RUNS = 100  # of each model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def settings(draw: np.random.Generator) -> dict:
    key = Key.generate() if draw.random() < 0.5 else None
    chosen = {
        "key": key,
        "protections": (),
        "progress": False,
        "remote": elsewhere("all"),
        "rng": int(draw.integers(99)),
    }
    if draw.random() < 0.5:
        chosen["lr"] = float(10 ** draw.uniform(-4, -1.5))
    return chosen


def clusters(draw: np.random.Generator) -> ad.AnnData:
    return make_cells(
        int(draw.integers(60, 500)),
        int(draw.integers(8, 120)),
        int(draw.integers(2, 7)),
        3,
        rng=int(draw.integers(1e6)),
    )


def sparse_counts(draw: np.random.Generator) -> ad.AnnData:
    """Log-normalised counts of which most are zero, some features in all cells."""
    n, n_features, n_labels = int(draw.integers(60, 400)), int(draw.integers(20, 200)), int(draw.integers(2, 6))
    label = draw.integers(n_labels, size=n)
    rates = draw.gamma(0.3, 1.0, (n_labels, n_features))
    X = np.log1p(draw.poisson(rates[label] * draw.gamma(2, 1, (n, 1)))).astype(np.float32)
    obs = pd.DataFrame({"label": [f"type_{code}" for code in label]}, index=[f"c{i}" for i in range(n)])
    return ad.AnnData(sparse.csr_matrix(X), obs, pd.DataFrame(index=[f"g{i}" for i in range(n_features)]))


@pytest.mark.parametrize("number", range(N_RUNS))
def test_classifiers(number):
    draw = np.random.default_rng([1, number])
    adata = (clusters if number % 2 else sparse_counts)(draw)
    si.model.Classifier.setup_anndata(adata, "label")
    model = si.model.Classifier(adata, n_hidden=int(draw.choice([8, 32, 128])), n_layers=int(draw.integers(1, 4)))
    model.train(int(draw.integers(3, 12)), min_cells=1, **settings(draw))


@pytest.mark.parametrize("number", range(N_RUNS))
def test_models_of_perturbations(number):
    draw = np.random.default_rng([2, number])
    adata = si.datasets.perturbseq_simulated(
        int(draw.integers(30, 120)),
        n_singles=int(draw.integers(5, 14)),
        n_doubles=int(draw.integers(0, 10)),
        n_cells=int(draw.integers(5, 30)),
        n_controls=int(draw.integers(30, 150)),
        rng=int(draw.integers(1e6)),
    )
    adata = adata[:, np.asarray(adata.X.sum(0)).ravel() > 0].copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        si.model.GEARS.setup_anndata(adata)
        terms = adata.uns["gene_terms"] if draw.random() < 0.5 else None
        model = si.model.GEARS(adata, gene_ontology=terms, n_hidden=int(draw.choice([16, 64])))
        chosen = settings(draw)
        facts = {"all": condition_facts(adata, ModelView(model).setup, 2)}
        model.train(int(draw.integers(3, 10)), **{**chosen, "remote": replace(chosen["remote"], facts=facts)})


@pytest.mark.parametrize("number", range(N_RUNS))
def test_models_of_sections(number):
    draw = np.random.default_rng([3, number])
    adata = make_sections(int(draw.integers(40, 150)), int(draw.integers(1, 4)), int(draw.integers(12, 60)), number)
    si.model.SpaMosaic.setup_anndata(adata, "section")
    model = si.model.SpaMosaic(adata, n_hidden=int(draw.choice([16, 64])), n_latent=int(draw.choice([4, 16])))
    model.train(int(draw.integers(3, 12)), **{**settings(draw), "batch_size": 64})
