"""Parts of a network that only some sites have."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scinfl.federation import (
    FedAdam,
    FedAvg,
    FedAvgM,
    FedProx,
    Median,
    OwnedParts,
    TrimmedMean,
    Update,
    mean_of,
    simulate,
)
from scinfl.privacy import KeyedSum

PARTS = {"rna": ["encoders.rna.", "decoders.rna."], "adt": ["encoders.adt."]}
OWNERS = {"a": ("rna", "adt"), "b": ("rna",), "c": ("adt",), "d": ()}
SIZES = {"a": 30, "b": 10, "c": 50, "d": 7}
NAMES = ("encoders.rna.0.weight", "decoders.rna.bias", "encoders.adt.0.weight", "shared")


def owner_of(name):
    return next((part for part, beginnings in PARTS.items() if name.startswith(tuple(beginnings))), None)


def start_state(dtype=np.float64):
    generator = np.random.default_rng(0)
    return {name: generator.normal(size=(3, 2)).astype(dtype) for name in NAMES}


class Site:
    """Moves what it has to a place of its own and sends the rest back."""

    n_validation = 0

    def __init__(self, name, strategy):
        self.name, self.n_obs, self._strategy = name, SIZES[name], strategy
        self._aim = {n: np.random.default_rng([ord(name), i]).normal(size=(3, 2)) for i, n in enumerate(NAMES)}

    def fit(self, round, state):
        moved = {
            name: ((array + self._aim[name]) / 2).astype(array.dtype)
            if owner_of(name) in (None, *OWNERS[self.name])
            else array.copy()
            for name, array in state.items()
        }
        metrics = {"loss": 1.0, **self._strategy.shares(OWNERS[self.name])}
        return Update(self.name, round, moved, self.n_obs, self._strategy.weight(self.n_obs), metrics)

    def evaluate(self, round, state):
        return None

    def local_state(self):
        return {}

    def load_local_state(self, state):
        pass


def naive_mean(state, sent, weights):
    """Each array over the sites that have it; as it was where nobody does."""
    mean = {}
    for name, old in state.items():
        owners = [site for site in sent if owner_of(name) in (None, *OWNERS[site])]
        total = sum(weights[site] for site in owners)
        mean[name] = sum(weights[site] * sent[site][name] for site in owners) / total if owners else old
    return mean


@pytest.mark.parametrize("members", ["abcd", "abc", "bc", "ab", "bd", "cd", "d"])
@pytest.mark.parametrize("weights", ["n_obs", "uniform"])
def test_the_mean_of_a_part_is_that_over_its_owners(weights, members):
    strategy, state = OwnedParts(FedAvg(weights), PARTS), start_state()
    updates = [Site(name, strategy).fit(1, state) for name in members]
    found, _ = strategy.apply(state, strategy.reduce(updates), {})
    sent = {update.site: update.state for update in updates}
    expected = naive_mean(state, sent, {u.site: u.weight for u in updates})
    assert found.keys() == state.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("members", ["abcd", "bcd", "bd"])
def test_nothing_changes_when_the_server_is_blind(members, key):
    strategy, state = OwnedParts(FedAvg(), PARTS), start_state()
    updates = [Site(name, strategy).fit(1, state) for name in members]
    masked = mean_of(updates, [KeyedSum(key, min_sites=2)])
    found, _ = strategy.apply(state, masked, {})
    expected = naive_mean(state, {u.site: u.state for u in updates}, SIZES)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=1e-7)
    if members == "bd":
        np.testing.assert_array_equal(found["encoders.adt.0.weight"], state["encoders.adt.0.weight"])


def test_single_precision_stays_and_is_as_exact_as_it_can_be(key):
    strategy, state = OwnedParts(FedAvg(), PARTS), start_state(np.float32)
    updates = [Site(name, strategy).fit(1, state) for name in "abcd"]
    expected = naive_mean(state, {u.site: u.state for u in updates}, SIZES)
    for mean in (strategy.reduce(updates), mean_of(updates, [KeyedSum(key)])):
        found, _ = strategy.apply(state, mean, {})
        for name, array in expected.items():
            assert found[name].dtype == np.float32
            np.testing.assert_allclose(found[name], array, atol=2e-6)


@pytest.mark.parametrize("inner", [FedAvg(), FedAvgM(), FedAdam(), FedProx(proximal=0.1)], ids=repr)
def test_the_wrapped_strategy_sees_the_mean_over_owners(inner):
    strategy, state = OwnedParts(inner, PARTS), start_state()
    memory = expected_memory = {}
    expected = state
    for number in (1, 2, 3):
        sites = [Site(name, strategy) for name in "abcd"]
        updates = [site.fit(number, state) for site in sites]
        other = {site.name: site.fit(number, expected).state for site in sites}
        pooled = Update("", number, naive_mean(expected, other, SIZES), 97, 97.0)
        state, memory = strategy.apply(state, strategy.reduce(updates), memory)
        expected, expected_memory = inner.apply(expected, pooled, expected_memory)
    for name, array in expected.items():
        np.testing.assert_allclose(state[name], array, atol=1e-10)
    assert strategy.proximal == getattr(inner, "proximal", 0.0)


def test_a_run_with_some_sites_a_round_is_the_same_in_the_open_and_masked(key):
    def run(protections):
        strategy = OwnedParts(FedAvg(), PARTS)
        sites = [Site(name, strategy) for name in "abcd"]
        return simulate(
            sites, start_state(), strategy, protections, n_rounds=6, fraction=0.5, min_sites=2, rng=3, progress=False
        )

    plain, masked = run(()), run([KeyedSum(key, min_sites=2)])
    assert {record["n_sites"] for record in plain.history} == {2}
    for name, array in plain.state.items():
        np.testing.assert_allclose(masked.state[name], array, atol=1e-6)
        assert np.abs(array - start_state()[name]).max() > 0.1


def test_a_part_that_nobody_has_is_left_as_it_was():
    strategy, state = OwnedParts(FedAvg(), PARTS), start_state()
    updates = [Site("d", strategy).fit(1, state)]
    found, _ = strategy.apply(state, strategy.reduce(updates), {})
    for name in NAMES[:3]:
        np.testing.assert_array_equal(found[name], state[name])
    assert not np.array_equal(found["shared"], state["shared"])


def test_sites_say_what_they_have():
    strategy = OwnedParts(FedAvg(), PARTS)
    assert strategy.shares(["adt"]) == {"has_rna": 0.0, "has_adt": 1.0}
    assert repr(strategy) == "OwnedParts(FedAvg(weights='n_obs'), ['adt', 'rna'])"


@pytest.mark.parametrize("inner", [Median(), TrimmedMean()], ids=repr)
def test_strategies_that_compare_sites_are_refused(inner):
    name = type(inner).__name__
    with pytest.raises(ValueError, match=rf"different modalities, found {name}: it would compare trained parts"):
        OwnedParts(inner, PARTS)


def test_a_mean_that_does_not_say_who_has_what_is_refused():
    strategy, state = OwnedParts(FedAvg(), PARTS), start_state()
    mean = strategy.reduce([Site(name, strategy).fit(1, state) for name in "abcd"])
    with pytest.raises(
        ValueError, match=r"report which sites have 'rna', found none: a protection removed their metrics"
    ):
        strategy.apply(state, replace(mean, metrics={}), {})
