"""Toy sites whose training is one line, so that a run can be computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from scinfl.federation import Update


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
        return Update(self.name, round, {}, self.n_validation, float(self.n_validation), {"loss": loss})

    def local_state(self):
        return {"n_fits": np.array(self.n_fits)}

    def load_local_state(self, state):
        self.n_fits = int(state["n_fits"])


@pytest.fixture
def toy_sites():
    return [ToySite("a", 1.0, 10), ToySite("b", 2.0, 30), ToySite("c", 6.0, 20)]
