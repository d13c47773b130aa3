"""Noise on whole updates: how far it reaches, how much there is, and what it is worth."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest

from scinfl.federation import FedAvg, Journal, Update, simulate
from scinfl.model import Classifier
from scinfl.privacy import KeyedSum
from scinfl.privacy.dp._accounting import gaussian_epsilon
from scinfl.privacy.dp._update_dp import UpdateDP

few = pytest.mark.filterwarnings("ignore:Noise on the updates of:UserWarning")


def make_start(n=300):
    generator = np.random.default_rng(0)
    return {"w": generator.normal(size=(n, 4)).astype(np.float32), "b": generator.normal(size=n)}


def make_update(start, length, *, site="a", round=1, rng=1):
    """An update that lies so far from the start."""
    generator = np.random.default_rng(rng)
    change = {name: generator.normal(size=array.shape) for name, array in start.items()}
    norm = math.sqrt(sum(np.square(array).sum() for array in change.values()))
    state = {name: (start[name] + length / norm * change[name]).astype(start[name].dtype) for name in start}
    return Update(site, round, state, 10, 10.0, {"loss": 1.0})


def announced(sites, protection):
    """Sites without validation that say when they start a round, as those of a model do."""
    for site in sites:
        fit, site.n_validation = site.fit, 0

        def announce(round, state, name=site.name, fit=fit):
            protection.begin_round(name, round, state)
            return fit(round, state)

        site.fit = announce
    return sites


def changes(update, start):
    return np.concatenate([np.ravel(update.state[name] - start[name]) for name in start])


def test_a_short_update_passes_and_a_long_one_ends_at_the_norm():
    start = make_start()
    for length, expected in ((0.5, 0.5), (40.0, 2.0)):
        protection = UpdateDP(max_norm=2.0, noise_multiplier=0.0)
        protection.begin_round("a", 1, start)
        update = make_update(start, length)
        encoded = protection.encode(update)
        assert np.linalg.norm(changes(encoded, start)) == pytest.approx(expected, rel=1e-4)
        np.testing.assert_allclose(
            changes(encoded, start), changes(update, start) * expected / length, rtol=1e-3, atol=1e-6
        )
        assert {name: array.dtype for name, array in encoded.state.items()} == {"w": np.float32, "b": np.float64}
        assert encoded.metrics == {}
        assert encoded.weight == 10.0


@pytest.mark.parametrize(("noise_multiplier", "max_norm"), [(0.5, 2.0), (3.0, 0.1)])
def test_the_noise_has_the_deviation_that_is_accounted_for(noise_multiplier, max_norm):
    start = make_start(20_000)
    protection, clean = (UpdateDP(max_norm=max_norm, noise_multiplier=n) for n in (noise_multiplier, 0.0))
    update = make_update(start, 5.0)
    for each in (protection, clean):
        each.begin_round("a", 1, start)
    noise = changes(protection.encode(update), start) - changes(clean.encode(update), start)
    assert noise.std() == pytest.approx(noise_multiplier * max_norm, rel=0.02)
    assert abs(noise.mean()) < 6 * noise_multiplier * max_norm / math.sqrt(noise.size)


def test_an_update_that_is_sent_again_carries_the_same_noise_and_another_round_new_noise():
    start = make_start()
    protection = UpdateDP(max_norm=1.0, noise_multiplier=1.0)
    protection.begin_round("a", 1, start)
    update = make_update(start, 1.0)
    first, again = protection.encode(update), protection.encode(update)
    np.testing.assert_array_equal(first.state["w"], again.state["w"])
    protection.begin_round("a", 1, start)
    assert not np.array_equal(first.state["w"], protection.encode(replace(update)).state["w"])
    assert protection._account.spent("a") == {(0.5, 1.0): 2}


def test_the_rounds_of_a_site_are_one_gaussian_with_the_sensitivity_of_a_replaced_site():
    protection = UpdateDP(max_norm=1.0, noise_multiplier=6.0, delta=1e-4)
    assert protection.epsilon() == protection.epsilon("a") == 0
    for number in range(1, 10):
        protection.begin_round("a", number, {})
        if number % 3 == 0:
            protection.begin_round("b", number, {})
    assert protection.epsilon("a") == pytest.approx(gaussian_epsilon(6.0 / 2 / 3, 1e-4))
    assert protection.epsilon("b") == pytest.approx(gaussian_epsilon(6.0 / 2 / math.sqrt(3), 1e-4))
    assert protection.epsilon() == protection.epsilon("a")


def test_other_sums_pass_as_they_are():
    update = Update("a", 0, {"mean": np.ones(3)}, 10, purpose="means")
    assert UpdateDP(max_norm=1e-3, noise_multiplier=1.0).encode(update) is update


@few
def test_it_goes_before_keyed_sums_and_their_repeats(toy_sites, key, tmp_path):
    start = {"w": np.zeros(50)}
    private, sums = UpdateDP(max_norm=1.0, noise_multiplier=0.1), KeyedSum(key, bits=32, bound=0.03125)
    seen = []
    mask = sums.encode

    def encode(update):
        seen.append(update)
        return mask(update)

    sums.encode = encode
    journal, sites = Journal(tmp_path), announced(toy_sites, private)
    run = simulate(sites, start, FedAvg(), [private, sums], n_rounds=2, progress=False, journal=journal)
    own = [update for update in seen if update.round == 1 and update.site == "a"]
    assert len(own) > 1  # the bound is far too small
    assert all(np.array_equal(update.state["w"], own[0].state["w"]) for update in own)
    assert all("train_loss" not in record for record in run.history)
    assert run.history[-1]["epsilon"] == pytest.approx(gaussian_epsilon(0.05 / math.sqrt(2), 1e-5))
    assert [event["charge"]["site"] for event in journal.events() if event["event"] == "privacy"] == [*"abc", *"abc"]
    with pytest.raises(ValueError, match=r"last protection|before the protection that masks"):
        simulate(toy_sites, start, FedAvg(), [KeyedSum(key), private], n_rounds=1, progress=False)


def test_a_mask_is_not_taken_for_an_update(key):
    private, sums = UpdateDP(max_norm=1.0, noise_multiplier=1.0), KeyedSum(key, min_sites=2)
    sums.agree("training", {"a": 10.0, "b": 10.0})
    private.begin_round("a", 1, {"w": np.zeros(3)})
    with pytest.raises(ValueError, match="before the protection that masks"):
        private.encode(sums.encode(Update("a", 1, {"w": np.ones(3)}, 10, 10.0)))


def test_few_sites_are_warned_of_and_many_are_not():
    protection = UpdateDP(max_norm=1.0, noise_multiplier=1.0)
    with pytest.warns(UserWarning, match="5 sites is weak or useless"):
        protection.open_account(n_sites=5, n_rounds=1, journal=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        protection.open_account(n_sites=500, n_rounds=1, journal=None)


@few
def test_validation_without_noise_must_be_allowed(cells):
    Classifier.setup_anndata(cells, "label", site_key="site")
    for allowed in (False, True):
        model = Classifier(cells, n_hidden=8, key_scheme=None)
        private = UpdateDP(max_norm=1.0, noise_multiplier=0.01, unnoised_validation=allowed)
        if allowed:
            model.train(1, protections=[private], progress=False)
            assert "validation_loss" in model.history
        else:
            with pytest.raises(ValueError, match=r"UpdateDP\(unnoised_validation=True\)"):
                model.train(1, protections=[private], progress=False)


@few
def test_a_model_still_learns_where_the_noise_is_small_and_not_where_it_is_honest(cells, key):
    Classifier.setup_anndata(cells, "label", site_key="site")
    right = {}
    for noise_multiplier in (0.003, 3.0):
        model = Classifier(cells, n_hidden=24)
        private = UpdateDP(max_norm=3.0, noise_multiplier=noise_multiplier)
        model.train(5, key=key, protections=[private, KeyedSum(key)], validation_size=0, progress=False)
        right[noise_multiplier] = (model.predict() == cells.obs["label"].astype(str)).mean()
        assert model.history["epsilon"].iloc[-1] == private.epsilon()
    assert right[0.003] > 0.9
    assert right[3.0] < 0.7


@few
def test_spots_take_it_with_a_warning():
    from tests.model.spamosaic.test_model import make_model, make_sections

    model = make_model(make_sections(60), key_scheme=None)
    private = UpdateDP(max_norm=1.0, noise_multiplier=2.0)
    with pytest.warns(UserWarning, match="agreed on before training without noise"):
        model.train(1, protections=[private], validation_size=0, progress=False)
    assert model.history["epsilon"].iloc[-1] == pytest.approx(gaussian_epsilon(1.0, 1e-5))


def test_bad_use_is_refused():
    protection = UpdateDP(max_norm=1.0, noise_multiplier=1.0)
    with pytest.raises(RuntimeError, match="begin_round"):
        protection.encode(make_update(make_start(), 1.0))
    protection.begin_round("a", 1, {"w": np.zeros(2)})
    with pytest.raises(ValueError, match="found NaN or infinity at site 'a'"):
        protection.encode(Update("a", 1, {"w": np.array([np.nan, 0.0])}, 10))
    for arguments, name in (
        ({"max_norm": 0, "noise_multiplier": 1}, "max_norm"),
        ({"max_norm": 1, "noise_multiplier": -1}, "noise_multiplier"),
        ({"max_norm": 1, "noise_multiplier": 1, "delta": 1}, "delta"),
    ):
        with pytest.raises(ValueError, match=name):
            UpdateDP(**arguments)
    assert repr(protection) == "UpdateDP(max_norm=1, noise_multiplier=1, delta=1e-05)"
