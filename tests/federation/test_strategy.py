"""Averaging."""

from __future__ import annotations

import numpy as np
import pytest

from scinfl.federation import FedAvg, Update
from scinfl.federation.rounds import weighted_mean


def make_update(site, value, n_obs, *, dtype=np.float32, name="w", version=None, weight=None):
    state = {name: np.full((2, 3), value, dtype)}
    return Update(site, 1, state, n_obs, float(n_obs if weight is None else weight), {"loss": value}, version)


def test_fedavg_weights_sites_by_observations_or_not():
    updates = [make_update("a", 1.0, 10), make_update("b", 4.0, 30)]
    strategy = FedAvg()
    mean = strategy.reduce(updates)
    np.testing.assert_allclose(mean.state["w"], 3.25)
    assert mean.metrics["loss"] == pytest.approx(3.25)
    assert mean.n_obs == 40
    assert (strategy.weight(7), FedAvg("uniform").weight(7)) == (7.0, 1.0)


def test_the_mean_does_not_depend_on_the_order_of_arrival():
    generator = np.random.default_rng(0)
    updates = [
        Update(name, 1, {"w": generator.normal(size=1000).astype(np.float32)}, n, float(n))
        for name, n in zip("abcde", (3, 50, 7, 11, 13), strict=True)
    ]
    forward, backward = weighted_mean(updates), weighted_mean(updates[::-1])
    np.testing.assert_array_equal(forward.state["w"], backward.state["w"])
    assert forward.state["w"].dtype == np.float32


def test_names_that_no_site_sends_keep_their_value():
    state, memory = FedAvg().apply({"w": np.zeros(1), "kept": np.ones(1)}, make_update("", 2.0, 1), {})
    assert state["kept"] == 1
    assert (state["w"] == 2).all()
    assert memory == {}


def test_updates_that_do_not_fit_together_are_refused_by_site():
    good = make_update("a", 1.0, 10)
    with pytest.raises(ValueError, match="key version None, found 2 from site 'b'"):
        weighted_mean([good, make_update("b", 1.0, 10, version=2)])
    with pytest.raises(ValueError, match=r"others from site 'b': \['v', 'w'\]"):
        weighted_mean([good, make_update("b", 1.0, 10, name="v")])
    with pytest.raises(ValueError, match="NaN or infinity in 'w' from site 'b'"):
        weighted_mean([good, make_update("b", np.nan, 10)])
    with pytest.raises(ValueError, match="at least one"):
        weighted_mean([])
    with pytest.raises(ValueError, match="positive total weight"):
        weighted_mean([make_update("a", 1.0, 0)])
    with pytest.raises(ValueError, match="'n_obs' or 'uniform'"):
        FedAvg("equal")


def test_an_update_reports_its_payload_and_shows_no_value():
    update = make_update("a", 0.12345, 10)
    assert update.payload() == [("w", (2, 3), "float32", 24)]
    assert update.n_bytes == 24
    assert "0.12345" not in repr(update)
