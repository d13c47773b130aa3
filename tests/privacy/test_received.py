"""Sites look over what a server sends before they train on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.conftest import make_cells

from scinfl.federation import FedAdam, FedAvg, simulate
from scinfl.model import Classifier
from scinfl.model.base import RemoteContext
from scinfl.privacy import KeyedSum, UpdateDP, attacks, check_received


class Malicious(FedAvg):
    """Sends crafted weights from a round on, in place of the mean."""

    def __init__(self, crafted, after):
        super().__init__()
        self.crafted, self.after, self.n_rounds = crafted, after, 0

    def apply(self, state, mean, memory):
        self.n_rounds += 1
        if self.n_rounds < self.after:
            return super().apply(state, mean, memory)
        return {name: self.crafted[name].numpy() for name in state}, memory


def elsewhere(name="hospital_0"):
    """The other sites are on machines of their own, and their server makes the state."""
    return RemoteContext(name, [name], simulate)


def model_of(adata, **options):
    Classifier.setup_anndata(adata, "label", site_key="site")
    return Classifier(adata, **{"n_hidden": 32, "key_scheme": None, **options})


@pytest.mark.parametrize("after", [1, 3])
def test_a_site_refuses_crafted_weights_before_it_trains_on_them(cells, after):
    model = model_of(cells)
    watcher, strategy = attacks.Watcher(), Malicious(attacks.imprint(model.module, cells.X).state, after)
    with pytest.raises(ValueError, match=r"like those of the round before, found that .*'encoder.1.weight' repeat"):
        model.train(5, strategy=strategy, protections=[watcher], remote=elsewhere(), progress=False)
    assert sorted(watcher.seen) == list(range(1, after + 1))  # nothing was sent that such weights were trained to
    assert not model.is_trained_


def test_crafted_weights_are_noticed_through_the_noise_of_differential_privacy(cells):
    model = model_of(cells)
    strategy = Malicious(attacks.imprint(model.module, cells.X).state, 2)
    noise = UpdateDP(max_norm=1.0, noise_multiplier=0.5, delta=1e-3)
    with pytest.raises(ValueError, match="repeat another"), pytest.warns(UserWarning, match="Noise"):
        model.train(4, strategy=strategy, protections=[noise], validation_size=0, remote=elsewhere(), progress=False)


def test_honest_rounds_pass_even_with_large_steps_and_noise(cells):
    model_of(cells).train(6, protections=(), lr=0.1, strategy=FedAdam(lr=0.3), remote=elsewhere(), progress=False)
    noise = UpdateDP(max_norm=1.0, noise_multiplier=60.0, delta=1e-3)
    private = model_of(cells)
    with pytest.warns(UserWarning, match="Noise"):
        private.train(3, protections=[noise], validation_size=0, remote=elsewhere(), progress=False)
    assert max(float(parameter.detach().abs().max()) for parameter in private.module.parameters()) > 10


def test_sites_that_make_the_state_themselves_have_nothing_to_look_over(cells, key, monkeypatch):
    looked = []
    monkeypatch.setattr(
        "scinfl.model.base._local_training.check_received", lambda *args, **options: looked.append(args)
    )
    model_of(cells, key_scheme="coordinate").train(4, key=key, protections=[KeyedSum(key)], progress=False)
    model_of(cells).train(4, protections=(), progress=False)  # in this process
    assert looked == []
    model_of(cells).train(4, protections=(), remote=elsewhere(), progress=False)
    assert len(looked) == 3  # once per round; the start is agreed


def test_a_large_weight_is_looked_at_in_part_and_refused_all_the_same():
    generator = np.random.default_rng(0)
    before = {"table": generator.normal(size=(3000, 20)), "layer.weight": generator.normal(size=(600, 50))}
    honest = {name: array + 0.1 * generator.normal(size=array.shape) for name, array in before.items()}
    check_received(honest, before)
    crafted = {**honest, "layer.weight": honest["layer.weight"].copy()}
    crafted["layer.weight"][:300] = crafted["layer.weight"][0] * generator.normal(size=(300, 1))
    with pytest.raises(ValueError, match=r"% of the rows of 'layer.weight' repeat another"):
        check_received(crafted, before)
    one = np.outer(generator.normal(size=3000), generator.normal(size=20))
    flat = {**honest, "table": one + 1e-2 * before["table"]}
    with pytest.raises(ValueError, match="'table' has an effective rank of 1"):
        check_received(flat, before)


def test_the_effective_rank_is_that_of_the_singular_values():
    from scinfl.privacy._received import _effective_rank, _products

    for shape in ((40, 90), (90, 40)):
        weight = np.random.default_rng(0).normal(size=shape)
        sizes = np.linalg.svd(weight, compute_uv=False)
        assert _effective_rank(_products(weight)) == pytest.approx(sizes.sum() ** 2 / np.square(sizes).sum())


def test_a_trained_network_that_a_server_hands_back_is_not_refused():
    adata = make_cells(200, 12)
    model = model_of(adata)
    model.train(2, protections=(), remote=elsewhere(), progress=False)
    model.train(4, protections=(), remote=elsewhere(), progress=False)  # goes on from the trained state
    assert torch.isfinite(next(model.module.parameters())).all()


def test_what_the_training_of_the_site_itself_did_is_no_craft():
    generator = np.random.default_rng(0)
    before = {"table": generator.normal(size=(40, 16))}
    trained = {"table": before["table"].copy()}
    trained["table"][:20] = trained["table"][0] * generator.uniform(0.5, 2, size=(20, 1))  # rows that decayed alike
    with pytest.raises(ValueError, match="repeat another"):
        check_received(trained, before)
    check_received(trained, before, own=trained)


def test_a_little_of_it_is_a_warning_with_the_numbers():
    generator = np.random.default_rng(0)
    before = {"table": generator.normal(size=(80, 16))}
    few = {"table": before["table"].copy()}
    few["table"][:10] = few["table"][0] * generator.uniform(0.5, 2, size=(10, 1))
    with pytest.warns(UserWarning, match=r"unusual parameters: .*1[0-9]% of the rows of 'table' repeat another"):
        check_received(few, before)


def test_rows_that_decayed_to_nothing_are_no_craft():
    generator = np.random.default_rng(0)
    before = {"decoder.weight": generator.normal(size=(30, 16))}
    after = {"decoder.weight": before["decoder.weight"].copy()}
    after["decoder.weight"][:10] = 1e-4 * after["decoder.weight"][0]
    check_received(after, before)
    after["decoder.weight"][:10] *= 1e3
    few = {"decoder.weight": before["decoder.weight"].copy()}
    few["decoder.weight"][:7] = after["decoder.weight"][:7]
    check_received(few, before)  # by chance
    with pytest.raises(ValueError, match="33% of the rows"):
        check_received(after, before)
