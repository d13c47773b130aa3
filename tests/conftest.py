"""Shared fixtures: small cells with a known signal, and the real data where they are."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from scinfl.federation import Update

mpl.use("agg")

ROOT = Path(__file__).parents[1]


def make_cells(
    n_cells: int = 360, n_genes: int = 30, n_labels: int = 4, n_sites: int = 3, *, noise: float = 1.0, rng: int = 0
) -> ad.AnnData:
    """Cells around one centre a label, dealt out to sites."""
    generator = np.random.default_rng(rng)
    labels = generator.integers(n_labels, size=n_cells)
    centres = generator.normal(0, 1.5, (n_labels, n_genes))
    X = (centres[labels] + generator.normal(0, noise, (n_cells, n_genes))).astype(np.float32)
    obs = pd.DataFrame(
        {
            "label": pd.Categorical.from_codes(labels, [f"type_{i}" for i in range(n_labels)]),
            "site": pd.Categorical.from_codes(np.arange(n_cells) % n_sites, [f"hospital_{i}" for i in range(n_sites)]),
            "donor": [f"donor_{i // 6}" for i in range(n_cells)],
        },
        index=[f"cell_{i}" for i in range(n_cells)],
    )
    return ad.AnnData(X, obs, pd.DataFrame(index=[f"gene_{i}" for i in range(n_genes)]))


@pytest.fixture
def cells() -> ad.AnnData:
    return make_cells()


@pytest.fixture
def key():
    from scinfl.privacy import Key

    """A key that is the same in every run: initial weights follow it."""
    return Key(bytes(range(32)), federation="test-federation")


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """Path of a real data set; skips the test where it is absent."""
    folder = Path(os.environ.get("SCINFL_SHARED", ROOT.parent / "shared"))

    def find(name: str) -> Path:
        path = folder / "data" / name
        if not path.is_file():
            pytest.skip(f"no '{name}' in '{folder}/data'; set SCINFL_SHARED")
        return path

    return find


class ToySite:
    """Moves the shared number halfway towards its own, and remembers how often."""

    def __init__(self, name: str, target: float, n_obs: int, n_validation: int = 2) -> None:
        self.name, self.n_obs, self.target, self.n_validation = name, n_obs, target, n_validation
        self.n_fits = 0

    def fit(self, round, state):
        self.n_fits += 1
        value = (state["w"] + self.target) / 2
        return Update(self.name, round, {"w": value}, self.n_obs, float(self.n_obs), {"loss": float(self.target)})

    def evaluate(self, round, state):
        if self.n_validation == 0:
            return None
        loss = float(np.abs(state["w"] - self.target).mean())
        n = self.n_validation
        return Update(self.name, round, {}, n, float(n), {"loss": loss}, purpose="evaluation")

    def local_state(self):
        return {"n_fits": np.array(self.n_fits)}

    def load_local_state(self, state):
        self.n_fits = int(state["n_fits"])


@pytest.fixture
def toy_sites():
    return [ToySite("a", 1.0, 10), ToySite("b", 2.0, 30), ToySite("c", 6.0, 20)]
