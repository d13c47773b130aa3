"""Perturbations from noisy sums."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from tests.model.gears.test_model import make_model, make_screen

import scinfl as si
from scinfl.federation import Journal
from scinfl.model.base._local_training import LocalSite
from scinfl.model.gears._data import TRAIN, VALIDATION, Design, SiteCells
from scinfl.model.gears._private import released
from scinfl.privacy import Key, KeyedSum
from scinfl.privacy.dp._accounting import gaussian_epsilon, gaussian_noise_multiplier
from scinfl.privacy.dp._noisy_sums import noisy_sums
from scinfl.privacy.dp._sample_dp import SampleDP

pytestmark = [
    pytest.mark.filterwarnings("ignore:Left out:UserWarning"),
    pytest.mark.filterwarnings("ignore:Training without a key:UserWarning"),
]

QUICK = {"n_rounds": 2, "local_epochs": 1, "progress": False}
SITES = [f"site_{number}" for number in range(1, 5)]


@pytest.fixture(scope="module")
def screen():
    return make_screen()


def make_cells(n=60, n_genes=8):
    generator = np.random.default_rng(0)
    return generator.poisson(1.0, (n, n_genes)) * generator.gamma(1.0, 1.0, (n, 1))


def naive_sums(matrix, rows, max_norm):
    sums = np.zeros((len(rows), matrix.shape[1]))
    for number, own in enumerate(rows):
        for cell in matrix[own]:
            length = np.linalg.norm(cell)
            sums[number] += cell if length <= max_norm else cell * max_norm / length
    return sums


@pytest.mark.parametrize("convert", [np.array, np.float32, sparse.csr_matrix, sparse.csr_array])
@pytest.mark.parametrize("max_norm", [0.5, 1e3])
def test_sums_without_noise_are_those_of_clipped_cells(convert, max_norm, monkeypatch):
    monkeypatch.setattr("scinfl.privacy.dp._noisy_sums._ROWS", 7)
    cells, rows = make_cells(), [np.arange(20), np.array([], int), np.array([59, 21, 40])]
    sums, numbers = noisy_sums(convert(cells), rows, max_norm=max_norm, noise_multiplier=0.0)
    np.testing.assert_allclose(sums, naive_sums(cells, rows, max_norm), rtol=1e-5, atol=1e-6)
    assert numbers.tolist() == [20, 0, 3]


def test_noise_has_the_deviation_of_what_one_cell_can_change_at_most():
    cells = np.zeros((1, 4000))
    sums, _ = noisy_sums(cells, [np.array([0])] * 30, max_norm=2.0, noise_multiplier=1.5)
    # a cell of length C adds (C, C / 2): its length is C * sqrt(1.25)
    assert sums.std() == pytest.approx(1.5 * 2.0 * np.sqrt(1.25), rel=0.02)
    _, many = noisy_sums(cells[:, :1], [np.array([0])] * 5000, max_norm=2.0, noise_multiplier=1.5)
    assert many.std() == pytest.approx(1.5 * np.sqrt(1.25) / 0.5, rel=0.05)
    assert many.mean() == pytest.approx(1, abs=0.3)


def test_adding_a_cell_moves_all_that_is_released_by_no_more_than_that():
    cells = 100 * make_cells()
    rows = [np.arange(20), np.arange(20, 59)]
    before = noisy_sums(cells, rows, max_norm=0.7, noise_multiplier=0.0)
    after = noisy_sums(cells, [rows[0], np.append(rows[1], 59)], max_norm=0.7, noise_multiplier=0.0)
    moved = np.concatenate([(after[0] - before[0]).ravel(), 0.5 * 0.7 * (after[1] - before[1])])
    assert np.linalg.norm(moved) <= 0.7 * np.sqrt(1.25) * (1 + 1e-9)


def test_without_noise_and_clipping_the_sums_replace_the_cells(screen):
    model = make_model(screen)
    design = Design.of(screen, model._setup_args(), {}).with_validation(0.2, 0)
    matrix = model._matrix(screen)
    train, aside = ({name: SiteCells.of(design, part, name, 2) for name in SITES} for part in (TRAIN, VALIDATION))
    exact = SampleDP(noise_multiplier=0.0, max_norm=1e6)
    for sums, cells in zip(released(exact, matrix, train, aside, spend=False), (train, aside), strict=True):
        for name in SITES:
            found, expected = sums[name].moments(None), cells[name].moments(matrix)
            np.testing.assert_allclose(found.mean, expected.mean, atol=1e-9)
            np.testing.assert_array_equal(found.n_cells, expected.n_cells)
            assert sums[name].counts() == cells[name].counts()
            perturbed = [bool(condition.genes) for condition in sums[name].conditions]
            assert (found.top[perturbed] >= 0).all()
            assert (found.top[~np.array(perturbed, bool)] == -1).all()
    assert exact.epsilon() == 0


def test_training_spends_once_and_reports_it(screen, tmp_path):
    model, key = make_model(screen), Key.generate()
    private = SampleDP(target_epsilon=4.0, max_norm=8.0, delta=1e-4)
    model.train(key=key, protections=[private, KeyedSum(key)], journal=tmp_path, **QUICK)
    assert model.loss == "squared"
    assert private.epsilon() == pytest.approx(4.0, rel=1e-4)
    assert model.history["epsilon"].tolist() == [private.epsilon()] * 2
    assert "train_loss" in model.history  # of noisy sums, so it costs nothing
    charges = [event["charge"] for event in Journal(tmp_path).events() if event["event"] == "privacy"]
    assert sorted(charge["site"] for charge in charges) == SITES
    assert {charge["noise_multiplier"] for charge in charges} == {gaussian_noise_multiplier(4.0, 1e-4)}
    assert model.predict_change(["gene_1"] if "gene_1" in model.genes else model.genes[:1]).shape[1] == len(model.genes)
    with pytest.raises(ValueError, match="budget of 4"):
        model.train(key=key, protections=[private], **QUICK)


def test_a_run_that_was_cut_off_goes_on_within_its_budget(screen, tmp_path, monkeypatch):
    key, usual = Key.generate(), LocalSite.fit

    def train():
        model, private = make_model(screen), SampleDP(target_epsilon=4.0, max_norm=8.0, delta=1e-4)
        model.train(key=key, run="r", protections=[private, KeyedSum(key)], journal=tmp_path, **QUICK)
        return private.epsilon()

    def cut_off(site, number, state):
        if number == 2:
            raise KeyboardInterrupt
        return usual(site, number, state)

    monkeypatch.setattr(LocalSite, "fit", cut_off)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train()
    monkeypatch.setattr(LocalSite, "fit", usual)
    assert train() == pytest.approx(4.0, rel=1e-4)


def test_training_twice_costs_twice(screen):
    model, private = make_model(screen, key_scheme=None), SampleDP(noise_multiplier=3.0, max_norm=8.0, delta=1e-4)
    model.train(protections=[private], **QUICK)
    model.train(protections=[private], **QUICK)
    assert private.epsilon() == pytest.approx(gaussian_epsilon(3.0 / np.sqrt(2), 1e-4))


def test_little_noise_predicts_what_was_held_out_and_much_noise_does_not(screen):
    changes = {}
    for noise_multiplier in (1e-3, 3.0):
        model = make_model(screen, key_scheme=None)
        private = SampleDP(noise_multiplier=noise_multiplier, max_norm=15.0, delta=1e-4)
        model.train(8, lr=1e-2, local_epochs=3, protections=[private], progress=False)
        changes[f"noise {noise_multiplier}"] = model
    table = si.tl.score_perturbations(screen, changes)
    errors = table[table["metric"] == "mse_de"].groupby("method")["value"].mean()
    assert errors["noise 0.001"] < 0.6 * errors["no change"]
    assert errors["noise 3.0"] > 0.9 * errors["no change"]


def test_a_dry_run_costs_nothing(screen):
    model, private = make_model(screen, key_scheme=None), SampleDP(noise_multiplier=1.0, max_norm=8.0, delta=1e-4)
    model.train(protections=[private], dry_run=True, **QUICK)
    assert private.epsilon() == 0


@pytest.mark.parametrize(
    ("arguments", "options", "private", "message"),
    [
        ({"loss": "quartic"}, {}, {}, "loss='squared'"),
        ({}, {"uncertainty": "gaussian"}, {}, "uncertainty=None"),
        ({}, {}, {"unit": "group"}, "unit='row'"),
        ({}, {}, {"delta": 0.01}, r"SampleDP\(delta=\)` below one over"),
    ],
)
def test_what_needs_more_of_the_cells_is_refused(screen, arguments, options, private, message):
    protection = SampleDP(**{"noise_multiplier": 1.0, "delta": 1e-4, **private})
    with pytest.raises(ValueError, match=message):
        make_model(screen, key_scheme=None, **options).train(protections=[protection], **QUICK, **arguments)
    assert protection.epsilon() == 0


@pytest.mark.filterwarnings("ignore:No gene ontology:UserWarning")
def test_a_network_that_compares_genes_by_cells_is_refused(screen):
    model = make_model(screen, key_scheme=None, gene_ontology=None)
    with pytest.raises(ValueError, match="gene_ontology="):
        model.train(protections=[SampleDP(noise_multiplier=1.0, delta=1e-4)], **QUICK)
