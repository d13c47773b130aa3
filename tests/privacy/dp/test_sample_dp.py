"""Private training: what is clipped, how much noise, what was spent, and what an auditor finds."""

from __future__ import annotations

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats
from tests.conftest import make_cells
from torch import nn
from torch.nn import functional as F

from scinfl import nn as keyed_nn
from scinfl.federation import FedProx, Journal
from scinfl.model import Classifier
from scinfl.model.base._cells import Cells
from scinfl.model.base._keyed_network import _Opener
from scinfl.model.base._local_training import LocalSite, LocalTraining, SharedNetwork
from scinfl.module import ClassifierModule
from scinfl.privacy import KeyedSum
from scinfl.privacy.dp import _sample_dp as module_under_test
from scinfl.privacy.dp._per_unit import PoissonBatch, clipped_sum
from scinfl.privacy.dp._sample_dp import SampleDP
from scinfl.privacy.dp._update_dp import UpdateDP

CPU = torch.device("cpu")
OPEN = {"progress": False, "validation_size": 0.0}


def make_network(scheme=None, key=None, *, dropout=0.0, **options):
    torch.manual_seed(0)
    network = ClassifierModule(12, 3, n_hidden=8, dropout=dropout, input_dropout=dropout)
    if scheme == "projected":
        keyed_nn.keyed(keyed_nn.projected(network, "encoder.1"))
    elif scheme is not None:
        keyed_nn.keyed(network, scheme, **options)
    if scheme is not None:
        keyed_nn.set_key(network, key.coordinates)
    return network


def make_rows(n=17, rng=0):
    generator = torch.Generator().manual_seed(rng)
    return torch.randn(n, 12, generator=generator), torch.randint(3, (n,), generator=generator)


def make_train(n=40, groups=None):
    x, codes = make_rows(n)
    return Cells(x.numpy(), np.arange(n), codes.numpy(), CPU, groups)


def make_model(cells, key=None, *, group_key=None, scheme="coordinate", **options):
    Classifier.setup_anndata(cells, "label", site_key="site", group_key=group_key)
    return Classifier(cells, n_hidden=8, n_layers=1, key_scheme=scheme if key else None, **options)


def naive_sum(network, batch, unit, max_norm):
    """One unit after the other, each by an ordinary backward pass."""
    total = {name: torch.zeros_like(p) for name, p in network.named_parameters() if p.requires_grad}
    for one in np.unique(unit):
        network.zero_grad()
        network.loss(tuple(tensor[unit == one] for tensor in batch)).backward()
        gradients = {name: p.grad for name, p in network.named_parameters() if p.requires_grad}
        norm = torch.cat([g.flatten() for g in gradients.values()]).norm()
        for name, g in gradients.items():
            total[name] += g * min(1.0, max_norm / float(norm))
    return total


# ---- clipping


@pytest.mark.parametrize("max_norm", [0.4, 100.0])
@pytest.mark.parametrize("unit", [np.arange(17), np.array([0, 2, 2, 1, 0, 5, 5, 5, 1, 7, 7, 0, 2, 1, 8, 8, 8])])
@pytest.mark.parametrize(
    ("scheme", "options"),
    [
        (None, {}),
        ("coordinate", {}),
        ("coordinate", {"train_meta": True}),
        ("permuted", {}),
        ("pooled", {}),
        ("projected", {}),
    ],
)
def test_clipped_sums_are_those_of_a_loop(scheme, options, unit, max_norm, key, monkeypatch):
    monkeypatch.setattr("scinfl.privacy.dp._per_unit._ROWS", 4)  # several blocks
    network, batch = make_network(scheme, key, **options), make_rows()
    before = dict(network.named_parameters())
    found, expected = clipped_sum(network, batch, unit, max_norm), naive_sum(network, batch, unit, max_norm)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=2e-6)
    assert all(p is before[name] for name, p in network.named_parameters())
    network(batch[0])  # nothing of the transformation is left in a keyed layer


def test_a_parameter_at_two_places_gets_the_gradient_of_both():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight

        def loss(self, batch):
            return F.cross_entropy(self.second(torch.tanh(self.first(batch[0]))), batch[1])

    network, batch = Tied(), (torch.randn(6, 4), torch.randint(4, (6,)))
    found, expected = clipped_sum(network, batch, np.arange(6), 0.1), naive_sum(network, batch, np.arange(6), 0.1)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_no_unit_exceeds_the_norm_whatever_its_values():
    network = make_network()
    x, codes = make_rows(3)
    for bad in (1e30, math.inf, math.nan):
        x[1] = bad
        total = clipped_sum(network, (x, codes), np.arange(3), 0.5)
        rest = clipped_sum(network, (x[[0, 2]], codes[[0, 2]]), np.arange(2), 0.5)
        difference = torch.cat([(total[name] - rest[name]).flatten() for name in total]).norm()
        assert difference <= 0.5 * (1 + 1e-5)


def test_every_row_has_its_own_dropout_and_no_seed_repeats_it():
    network, protection = make_network(dropout=0.5), SampleDP(noise_multiplier=0)
    x, codes = make_rows(1)
    rows = PoissonBatch(x.expand(2, -1), (codes.expand(2),), np.arange(2), 2.0, 0.0)
    gradients = []
    for _ in range(6):
        torch.manual_seed(0)
        state = torch.get_rng_state()
        protection.on_step(network, rows)
        assert torch.equal(torch.get_rng_state(), state)
        gradients.append(network.head.weight.grad.clone())
    assert not all(torch.allclose(gradients[0], other) for other in gradients[1:])  # any two may be alike by chance
    alone = PoissonBatch(x, (codes,), np.arange(1), 1.0, 0.0)
    norms = []
    for _ in range(40):
        protection.on_step(network, rows)
        both = network.head.weight.grad.norm()
        protection.on_step(network, alone)
        if network.head.weight.grad.any():  # dropout may take all units
            norms.append(both / network.head.weight.grad.norm())
    assert np.std(norms) > 1e-3  # two copies of a row do not move together


# ---- noise and draws


@pytest.mark.parametrize(("noise_multiplier", "max_norm"), [(1.5, 0.2), (0.3, 4.0)])
def test_the_noise_has_the_deviation_that_is_accounted_for(noise_multiplier, max_norm):
    network = ClassifierModule(200, 3, n_hidden=400)
    x, codes = torch.randn(5, 200), torch.randint(3, (5,))
    protection = SampleDP(noise_multiplier=noise_multiplier, max_norm=max_norm)
    network.eval()
    protection.on_step(network, PoissonBatch(x, (codes,), np.arange(5), 7.0, noise_multiplier))
    clean = clipped_sum(network, (x, codes), np.arange(5), max_norm)
    noise = torch.cat([(p.grad * 7 - clean[name]).flatten() for name, p in network.named_parameters()])
    assert len(noise) > 80_000
    assert float(noise.std()) == pytest.approx(noise_multiplier * max_norm, rel=0.015)
    assert abs(float(noise.mean())) < 6 * noise_multiplier * max_norm / math.sqrt(len(noise))


def test_a_step_without_any_unit_is_noise_alone():
    network = make_network()
    x, codes = make_rows(0)
    assert math.isnan(SampleDP(noise_multiplier=2).on_step(network, PoissonBatch(x, (codes,), np.arange(0), 4.0, 2.0)))
    noise = torch.cat([p.grad.flatten() for p in network.parameters()])
    assert 0.4 < float(noise.std()) < 0.6


def test_units_are_drawn_by_themselves_and_patients_whole():
    groups = np.repeat([f"patient_{i}" for i in range(50)], [1, 2] * 25)[np.random.default_rng(0).permutation(75)]
    train, protection = make_train(75, groups), SampleDP(noise_multiplier=1.0)
    drawn = list(protection.batches("a", train, batch_size=5, epochs=40))
    assert len(drawn) == 400
    counts = np.zeros(50)
    for batch in drawn:
        assert batch.n_expected == pytest.approx(5)
        for one in np.unique(batch.unit):
            counts[one] += 1
            assert (batch.unit == one).sum() == (np.unique(groups, return_inverse=True)[1] == one).sum()
    sizes = np.array([len(np.unique(batch.unit)) for batch in drawn])
    assert stats.chisquare(counts).pvalue > 1e-6
    assert sizes.mean() == pytest.approx(5, abs=0.7)
    assert 0.6 < sizes.var() / (50 * 0.1 * 0.9) < 1.5  # binomial, where shuffled batches are all alike
    assert protection._account.spent("a") == {(1.0, 0.1): 400}


def test_rows_are_guarded_where_that_is_said_and_a_large_batch_takes_everybody():
    train = make_train(20, np.repeat(["a", "b"], 10))
    for unit, n_units in (("row", 20), ("group", 2), (None, 2)):
        protection = SampleDP(noise_multiplier=1.0, unit=unit)
        batches = list(protection.batches("a", train, batch_size=32, epochs=3))
        assert [len(np.unique(batch.unit)) for batch in batches] == [n_units] * 3
        assert [len(batch.x) for batch in batches] == [20] * 3
    assert protection._account.spent("a") == {(1.0, 1.0): 3}


# ---- training


def test_a_lock_at_the_boundary_changes_nothing(key):
    network = make_network()
    keyed = make_network("coordinate", key)
    locked = keyed_nn.lock(keyed, network.state_dict())
    results = []
    for lock, open_state, state in (
        (dict, None, network.state_dict()),
        (partial(keyed_nn.lock, keyed), _Opener(keyed), locked),
    ):
        shared = SharedNetwork(copy.deepcopy(network), *([] if open_state is None else [open_state]))
        site = LocalSite(
            "a",
            shared,
            {name for name, _ in network.named_parameters()},
            make_train(),
            make_train(0),
            LocalTraining(2, 64, 0.01, 0.01, 0),
            FedProx(proximal=0.1),
            lock=lock,
            protections=[SampleDP(noise_multiplier=0.0, delta=1e-3)],  # everybody in every step: nothing random
        )
        plain = {name: tensor.numpy() for name, tensor in state.items() if "meta" not in name}
        results.append(site.fit(1, plain).state)
    opened = keyed_nn.unlock(keyed, {name: torch.from_numpy(array) for name, array in results[1].items()})
    for name, array in results[0].items():
        np.testing.assert_allclose(opened[name], array, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("scheme", "options"),
    [("coordinate", {}), ("coordinate", {"train_meta": True}), ("permuted", {}), ("pooled", {})],
)
def test_keyed_models_train_privately_under_keyed_sums(cells, key, scheme, options):
    model = make_model(cells, key, scheme=scheme, **options)
    private = SampleDP(noise_multiplier=0.05, delta=1e-3)
    model.train(6, key=key, protections=[private, KeyedSum(key)], lr=0.05, batch_size=60, **OPEN)
    assert (model.predict(cells) == cells.obs["label"].astype(str)).mean() > 0.8
    assert "train_loss" not in model.history
    assert "loss" not in model.site_history


def test_epsilon_is_that_of_opacus_over_the_whole_run_of_each_site():
    from opacus.accountants import RDPAccountant

    cells = make_cells(300)
    cells.obs["site"] = np.repeat(["big", "middle", "small"], [160, 100, 40])
    model, private = make_model(cells), SampleDP(noise_multiplier=0.9, delta=1e-3)
    model.train(4, local_epochs=2, batch_size=16, fraction=0.6, protections=[private], **OPEN)
    rounds = model.site_history.groupby("site").size()
    assert rounds.sum() == 8
    expected = {}
    for site, n in {"big": 160, "middle": 100, "small": 40}.items():
        accountant, steps = RDPAccountant(), 2 * round(n / 16) * int(rounds.get(site, 0))
        accountant.history = [(0.9, 16 / n, steps)] if steps else []
        expected[site] = accountant.get_epsilon(1e-3) if steps else 0.0
        assert private.epsilon(site) == pytest.approx(expected[site], rel=0.01)
        if steps:
            assert model.site_history["epsilon"].xs(site, level="site").iloc[-1] == private.epsilon(site)
    assert model.history["epsilon"].iloc[-1] == private.epsilon() == pytest.approx(max(expected.values()), rel=0.01)
    assert model.history["epsilon"].is_monotonic_increasing


def test_a_target_is_spent_by_every_site_and_never_exceeded(cells):
    cells.obs["site"] = np.repeat(["big", "same", "small"], [160, 160, 40])
    model, private = make_model(cells), SampleDP(target_epsilon=5, delta=1e-3)
    model.train(3, batch_size=40, protections=[private], **OPEN)
    for site in ("big", "same", "small"):
        assert 4.9 < private.epsilon(site) <= 5
    with pytest.raises(ValueError, match="budget of 5 that lasts for another round"):
        model.train(1, batch_size=40, protections=[private], **OPEN)
    with pytest.raises(RuntimeError, match="open_account"):
        next(SampleDP(target_epsilon=5).batches("a", make_train(), 4, 1))


def test_one_object_is_one_budget(cells):
    model, private = make_model(cells), SampleDP(noise_multiplier=2.0, delta=1e-3)
    model.train(2, protections=[private], **OPEN)
    once = private.epsilon()
    make_model(cells).train(2, protections=[private], **OPEN)
    assert private.epsilon() > 1.2 * once


def test_a_round_that_is_cut_off_is_charged_again(cells, tmp_path, monkeypatch):
    fit, n_fits = LocalSite.fit, 0

    def cut_off(site, round, state):
        nonlocal n_fits
        update = fit(site, round, state)
        n_fits += 1
        if n_fits == 5:  # two of three sites have trained in the second round
            raise KeyboardInterrupt
        return update

    monkeypatch.setattr(LocalSite, "fit", cut_off)
    options = {"batch_size": 30, "local_epochs": 1, "journal": tmp_path, **OPEN}
    with pytest.raises(KeyboardInterrupt):
        make_model(cells).train(3, protections=[SampleDP(noise_multiplier=2.0, delta=1e-3)], **options)
    monkeypatch.setattr(LocalSite, "fit", fit)
    model, private = make_model(cells), SampleDP(noise_multiplier=2.0, delta=1e-3)
    model.train(3, protections=[private], **options)
    attempts = {site: sum(private._account.spent(site).values()) / 4 for site in private._account.sites}
    assert attempts == {"hospital_0": 4, "hospital_1": 4, "hospital_2": 3}
    assert model.history["epsilon"].iloc[-1] == private.epsilon("hospital_0") > private.epsilon("hospital_2")
    assert Journal(tmp_path).verify()


@pytest.mark.parametrize("noise_multiplier", [1.0, 0.0])
def test_a_saved_model_says_what_it_cost(cells, tmp_path, noise_multiplier):
    model = make_model(cells)
    model.train(2, protections=[SampleDP(noise_multiplier=noise_multiplier, delta=1e-3)], **OPEN)
    model.save(tmp_path / "model")
    assert Classifier.load(tmp_path / "model").history["epsilon"].tolist() == model.history["epsilon"].tolist()
    assert math.isinf(model.history["epsilon"].iloc[-1]) == (noise_multiplier == 0)


def test_a_dry_run_costs_nothing(cells):
    model, private = make_model(cells), SampleDP(noise_multiplier=1.0, delta=1e-3)
    model.train(2, protections=[private], dry_run=True, **OPEN)
    assert private.epsilon() == 0


# ---- what is refused


def test_what_lets_rows_mix_is_refused_with_the_cure(cells):
    private = [SampleDP(noise_multiplier=1.0, delta=1e-3)]
    with pytest.warns(UserWarning, match="batch normalisation"):
        batch = make_model(cells, norm="batch")
    with pytest.raises(ValueError, match="norm='layer'"):
        batch.train(1, protections=private, **OPEN)
    with pytest.raises(ValueError, match="class_weight=None"):
        make_model(cells).train(1, protections=private, class_weight="balanced", **OPEN)
    with pytest.raises(ValueError, match="group_key"):
        make_model(cells).train(1, protections=[SampleDP(noise_multiplier=1, delta=1e-3, unit="group")], **OPEN)
    assert private[0].epsilon() == 0  # refused before anything was spent


def test_validation_without_noise_must_be_allowed(cells):
    with pytest.raises(ValueError, match="validation_size=0"):
        make_model(cells).train(1, protections=[SampleDP(noise_multiplier=1, delta=1e-3)], progress=False)
    allowed = SampleDP(noise_multiplier=1, delta=1e-3, unnoised_validation=True)
    model = make_model(cells)
    model.train(1, protections=[allowed], progress=False)
    assert "validation_loss" in model.history


def test_patients_are_guarded_where_the_model_knows_them(cells):
    model, private = make_model(cells, group_key="donor"), SampleDP(noise_multiplier=1.0, delta=1e-3)
    model.train(1, local_epochs=1, batch_size=10, protections=[private], **OPEN)
    assert private._account.spent("hospital_0") == {(1.0, 1 / 6): 6}  # 60 donors have cells there


def test_a_delta_that_could_show_a_unit_whole_is_refused(cells):
    with pytest.raises(ValueError, match="Lower `delta`"):
        make_model(cells).train(1, protections=[SampleDP(noise_multiplier=1, delta=0.01)], **OPEN)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either `noise_multiplier` or `target_epsilon`"),
        ({"noise_multiplier": 1, "target_epsilon": 1}, "either `noise_multiplier` or `target_epsilon`"),
        ({"noise_multiplier": -1}, "noise_multiplier"),
        ({"target_epsilon": 0}, "target_epsilon"),
        ({"noise_multiplier": 1, "max_norm": 0}, "max_norm"),
        ({"noise_multiplier": 1, "delta": 0}, "delta"),
        ({"noise_multiplier": 1, "unit": "cell"}, "unit"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SampleDP(**arguments)


@pytest.mark.filterwarnings("ignore:Noise on the updates")
def test_two_budgets_in_one_run_are_refused(cells):
    both = [SampleDP(noise_multiplier=1, delta=1e-3), UpdateDP(max_norm=1, noise_multiplier=1)]
    with pytest.raises(ValueError, match="one protection with a privacy budget"):
        make_model(cells).train(1, protections=both, **OPEN)


def test_spots_are_refused_and_the_message_says_why():
    from tests.model.spamosaic.test_model import make_model as make_sections_model
    from tests.model.spamosaic.test_model import make_sections

    model = make_sections_model(make_sections(60), key_scheme=None)
    with pytest.raises(ValueError, match=r"hold those of its neighbours.*UpdateDP"):
        model.train(1, protections=[SampleDP(noise_multiplier=1)], validation_size=0, progress=False)


def test_its_name_tells_the_settings_and_no_secret():
    assert repr(SampleDP(target_epsilon=3, delta=1e-3)) == (
        "SampleDP(target_epsilon=3, max_norm=1, delta=0.001, unit=None)"
    )


# ---- an audit


class Canaries(nn.Module):
    """Each row moves a column of its own, as far as clipping lets it."""

    def __init__(self, n):
        super().__init__()
        self.linear = nn.Linear(n, 2, bias=False)
        nn.init.zeros_(self.linear.weight)

    def loss(self, batch):
        return F.cross_entropy(self.linear(batch[0]), batch[1])


def audited_epsilon(protection, n=800, n_guesses=160, n_steps=6, rate=0.5, confidence=0.95):
    """Lower bound on epsilon from one run over rows that are in it by the toss of a coin (Steinke et al. 2023)."""
    generator = np.random.default_rng()
    inside = generator.random(n) < 0.5
    rows = np.flatnonzero(inside)
    x = 1e3 * np.eye(n, dtype=np.float32)
    train = Cells(x, rows, np.zeros(len(rows)), CPU)
    network, seen = Canaries(n), 0.0
    for batch in protection.batches("a", train, rate * len(rows), int(n_steps * rate)):
        protection.on_step(network, batch)
        seen = seen + (network.linear.weight.grad[1] - network.linear.weight.grad[0]).numpy() * batch.n_expected
    order = np.argsort(seen)
    chosen = np.concatenate([order[: n_guesses // 2], order[-n_guesses // 2 :]])
    guess = np.repeat([False, True], n_guesses // 2)
    right = int((guess == inside[chosen]).sum())

    def chance(epsilon):
        share = 1 / (1 + math.exp(-epsilon))
        known, fewer = stats.binom(n_guesses, share), np.arange(1, right + 1)
        slack = ((known.cdf(right - 1) - known.cdf(right - 1 - fewer)) / fewer).max()
        return known.sf(right - 1) + 2 * n * protection.delta * slack

    return max([0.0, *(epsilon for epsilon in np.linspace(0, 6, 121) if chance(epsilon) < 1 - confidence)])


def test_an_audit_finds_less_than_what_is_reported_and_more_than_nothing(monkeypatch):
    protection = SampleDP(noise_multiplier=1.2, delta=1e-6)
    found, reported = audited_epsilon(protection), protection.epsilon()
    assert 0.3 < found < reported
    # the same audit sees noise that is a tenth of what is claimed
    noise = module_under_test.gaussian_noise
    monkeypatch.setattr(module_under_test, "gaussian_noise", lambda shape, deviation: 0.1 * noise(shape, deviation))
    weak = SampleDP(noise_multiplier=4.0, delta=1e-6)
    assert audited_epsilon(weak) > weak.epsilon()
