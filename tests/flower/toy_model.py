"""A model of eight numbers in place of a network, so that a game of thousands of messages takes seconds.

It sends all kinds of sums: one before training, weights, updates and validation metrics.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np

from scinfl.federation import Journal, Update, mean_of

N = 8
LARGE_ROUND = 2
"""Round in which a site has a number beyond the first bound."""


class ToyTask:
    """The data of one site: how many rows it has, and its name."""

    def __init__(self, data, job, settings):
        self.data, self.site, self._job = data, settings.site, job
        self.features, self.scale = ["one"], ["other"]

    def facts(self):
        return {"labels": [self.site]}

    def join(self, facts):
        pass

    def shown(self, facts):
        return {}

    def least(self, facts):
        return self._job.min_sites

    def describe(self, facts):
        return f"{len(facts)} sites"

    def digest(self, facts, model):
        return json.dumps(facts, sort_keys=True)

    def make_model(self, facts):
        return ToyModel(self.site, self.data.n_obs, validates=not self._job.noise)


class ToySite:
    """Moves the shared numbers towards its own."""

    metric_names = ("loss",)

    def __init__(self, name, n_obs, protections, *, validates):
        self.name, self.n_obs, self.n_validation = name, n_obs, 3 * validates
        self._protections, self.n_fits = protections, 0
        self.target = numbers_of(name)

    def fit(self, number, state):
        for protection in self._protections:
            protection.begin_round(self.name, number, state)
        self.n_fits += 1
        value = (state["w"] + self.target) / 2
        if number == LARGE_ROUND and self.name.endswith("1"):
            value = value + 1e5
        return Update(self.name, number, {"w": value}, self.n_obs, float(self.n_obs))

    def evaluate(self, number, state):
        if not self.n_validation:
            return None
        loss = float(np.abs(state["w"] - self.target).mean())
        return Update(self.name, number, {}, 3, 3.0, {"loss": loss}, purpose="evaluation")

    def local_state(self):
        return {"n_fits": np.array(self.n_fits)}

    def load_local_state(self, state):
        self.n_fits = int(state["n_fits"])


class ToyModel:
    """Trains as the models of this package do."""

    is_personal = False

    def __init__(self, site, n_obs, *, validates):
        self._site, self._n_obs, self._validates = site, n_obs, validates

    def train(self, *, strategy, protections, remote, journal, run, n_rounds, **others):
        del others
        own = Update(self._site, 1, {"m": numbers_of(self._site)}, self._n_obs, float(self._n_obs), purpose="means")
        start = mean_of([own], protections[-1:]).state["m"]
        site = ToySite(self._site, self._n_obs, protections, validates=self._validates)
        remote.engine(
            [site],
            {"w": start + numbers_of(run)},
            strategy,
            protections,
            n_rounds=n_rounds,
            journal=Journal(journal),
            settings={"run": run},
        )

    def save(self, path, **others):
        del others
        path.mkdir(exist_ok=True)


def numbers_of(text):
    """Numbers that follow from a text."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).normal(size=N)
