"""Every protection with every model and engine: it works, or says why not and what does."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import anndata as ad
import numpy as np
import pytest
from tests.conftest import make_cells
from tests.federation.test_payload import alike
from tests.model.gears.test_model import make_model as make_gears
from tests.model.gears.test_model import make_screen
from tests.model.scvi.test_scvi_models import make_counts
from tests.model.spamosaic.test_model import make_model as make_spamosaic
from tests.model.spamosaic.test_model import make_sections

import scinfl as si
from scinfl.federation import Journal, Median, TrimmedMean, Update, mean_of
from scinfl.model import Classifier, SpaMosaic, from_scvi
from scinfl.model.base import ModelView
from scinfl.privacy import (
    HomomorphicSum,
    Identity,
    Key,
    KeyedSum,
    PairwiseSum,
    SampleDP,
    Shuffle,
    TamperedSumError,
    UpdateDP,
)
from scinfl.privacy.aggregation import Aggregator

pytestmark = [
    pytest.mark.filterwarnings("ignore:Left out:UserWarning"),
    pytest.mark.filterwarnings("ignore:Noise on the updates of:UserWarning"),
    pytest.mark.filterwarnings("ignore:Noise on updates guards updates alone:UserWarning"),
]

DOCS = Path(__file__).parents[2] / "docs" / "protections.md"
ROUNDS = {"n_rounds": 2, "progress": False}


def classifier() -> tuple[Any, dict[str, Any]]:
    cells = make_cells()
    Classifier.setup_anndata(cells, "label", site_key="site")
    return Classifier(cells, n_hidden=16), ROUNDS


make_screen, make_sections = cache(make_screen), cache(make_sections)


def gears(**options) -> tuple[Any, dict[str, Any]]:
    return make_gears(make_screen(), **options), {**ROUNDS, "local_epochs": 1, "loss": "squared"}


def spamosaic() -> tuple[Any, dict[str, Any]]:
    return make_spamosaic(make_sections(60)), ROUNDS


def scvi() -> tuple[Any, dict[str, Any]]:
    return from_scvi("SCVI", make_counts(), site_key="site", n_hidden=16, n_latent=4), ROUNDS


MODELS = {"Classifier": classifier, "GEARS": gears, "SpaMosaic": spamosaic, "scvi-tools": scvi}


class Guard(NamedTuple):
    """A protection, and what it needs of a training; messages by model where there is none."""

    make: Callable[[Key], Any]
    options: Mapping[str, Any] = MappingProxyType({})
    refused: Mapping[str, str] = MappingProxyType({})


def blurring(kind: Any) -> Callable[[Key], Any]:
    return lambda _: kind(max_norm=1.0, noise_multiplier=4.0, delta=1e-4)


INSTEAD = r"mean change of every perturbation.*Use `SampleDP`.*share='meta'"
GUARDS = {
    "KeyedSum(key)": Guard(KeyedSum),
    "PairwiseSum()": Guard(lambda _: PairwiseSum()),
    "PairwiseSum(key)": Guard(PairwiseSum),
    "HomomorphicSum()": Guard(lambda _: HomomorphicSum()),
    "SampleDP(…)": Guard(
        lambda _: SampleDP(noise_multiplier=2.0, max_norm=8.0, delta=1e-4),
        {"validation_size": 0.0},
        {"SpaMosaic": r"hold those of its neighbours.*Guard whole sites with `UpdateDP`"},
    ),
    "UpdateDP(…)": Guard(
        blurring(UpdateDP), {"validation_size": 0.0}, {"GEARS": f"SampleDP.*found UpdateDP.*{INSTEAD}"}
    ),
    "Shuffle(…)": Guard(
        blurring(Shuffle),
        {"validation_size": 0.0},
        {
            "GEARS": f"SampleDP.*found Shuffle.*{INSTEAD}",
            "SpaMosaic": r"sums of named sites.*Use `UpdateDP` with a `KeyedSum`",
            "scvi-tools": r"found Shuffle: the columns.*Use `UpdateDP` with a `KeyedSum`",
        },
    ),
}
SUMS = [name for name in GUARDS if "Sum" in name]
PAIRS = [(guard, model) for guard in GUARDS for model in MODELS]


@pytest.mark.parametrize(("guard", "model"), PAIRS)
def test_every_pair_trains_or_says_what_to_use_instead(guard, model, key):
    make, options, refused = GUARDS[guard]
    trained, arguments = MODELS[model]()
    protection = make(key)
    arguments = {**arguments, **options, "protections": [protection], "key": key}
    if model in refused:
        with pytest.raises(ValueError, match=refused[model]):
            trained.train(**arguments)
        assert not trained.is_trained_
        assert trained.payload.empty  # nothing had left before
        return
    trained.train(**arguments)
    assert len(trained.history) == 2
    if guard in SUMS:
        assert trained.payload["masked"].all()
        assert "epsilon" not in trained.history
    else:
        assert 0 < trained.history["epsilon"].iloc[-1] == protection.epsilon() < math.inf


@pytest.mark.parametrize("guard", SUMS)
@pytest.mark.parametrize("model", MODELS)
def test_sums_hide_all_that_leaves_and_change_nothing_else(guard, model, key):
    keyed, arguments = MODELS[model]()
    keyed.train(**arguments, protections=[GUARDS[guard].make(key)], key=key)
    plain, arguments = MODELS[model]()
    plain.train(**arguments, protections=(), key=key)
    assert not plain.payload["masked"].any()
    metrics = [name for name in plain.history if name.startswith(("train", "validation"))]
    np.testing.assert_allclose(keyed.history[metrics], plain.history[metrics], rtol=1e-3)
    if guard != "HomomorphicSum()":  # Adam turns the last bits of a gradient near 0 into a whole step
        expected = ModelView(plain).state_without_offsets
        for name, found in ModelView(keyed).state_without_offsets.items():
            np.testing.assert_allclose(found.numpy(), expected[name].numpy(), atol=2e-3, err_msg=name)


@pytest.mark.parametrize(
    ("guard", "model"),
    [pair for pair in PAIRS if pair[0] in ("SampleDP(…)", "UpdateDP(…)") and pair[1] not in GUARDS[pair[0]].refused],
)
def test_noise_goes_under_masks(guard, model, key):
    make, options, _ = GUARDS[guard]
    trained, arguments = MODELS[model]()
    private = make(key)
    trained.train(**arguments, **options, protections=[private, PairwiseSum(key)], key=key)
    assert trained.payload["masked"].all()
    assert private.epsilon() > 0


@pytest.mark.parametrize(
    "make",
    [KeyedSum, lambda key: KeyedSum(key, bits=32), lambda key: PairwiseSum(key, bits=32), lambda _: HomomorphicSum()],
)
@pytest.mark.parametrize("model", MODELS)
def test_a_dry_run_knows_the_bytes_of_every_sum(make, model, key):
    trained, arguments = MODELS[model]()
    trained.train(**arguments, protections=[make(key)], key=key, dry_run=True)
    planned = trained._payload
    trained.train(**arguments, protections=[make(key)], key=key)
    found, expected = alike(planned), alike(trained._payload)
    assert found.drop(columns="bytes").equals(expected.drop(columns="bytes"))
    exact = not isinstance(make(key), HomomorphicSum)  # its ciphertexts are compressed as they come out
    np.testing.assert_allclose(found["bytes"], expected["bytes"], rtol=0 if exact else 0.05)


def test_updates_of_perturbations_may_be_blurred_where_nothing_else_leaves(key):
    for kind in (UpdateDP, Shuffle):
        model, arguments = gears(train_meta=True)
        private = kind(max_norm=1.0, noise_multiplier=4.0, unnoised_validation=True)
        model.train(**arguments, share="meta", protections=[private], key=key)
        assert set(model.payload["purpose"]) == {"training", "evaluation"}
        assert model.history["epsilon"].iloc[-1] == private.epsilon()


def test_noise_on_spots_says_what_it_leaves_open(key):
    model, arguments = spamosaic()
    private = UpdateDP(max_norm=1.0, noise_multiplier=4.0)
    with pytest.warns(UserWarning, match="before training without noise, and the column 'epsilon' .* does not count"):
        model.train(**arguments, protections=[private], validation_size=0, key=key)
    masked = model.payload.groupby("purpose")["masked"].all()
    assert not masked["training"]
    assert masked.drop("training").all()  # the key guards what comes before training


def test_modalities_that_only_some_sites_have_cannot_hide_behind_noise(key):
    mosaic = si.datasets.mosaic_simulated(5, n_spots=60)
    SpaMosaic.setup_mudata(mosaic, section_key="section", site_key="site")
    model = SpaMosaic(mosaic, n_components=6, n_hidden=8)
    with pytest.raises(ValueError, match=r"same modalities at all sites.*Use a `KeyedSum`"):
        model.train(**ROUNDS, protections=[UpdateDP(max_norm=1.0, noise_multiplier=1.0)], validation_size=0, key=key)


# ---- engines


APART = {  # in the words of a job
    "KeyedSum(key)": "",
    "PairwiseSum(key)": 'sum = "pairwise"',
    "SampleDP(…)": '[[protections]]\nclass = "SampleDP"\nnoise_multiplier = 2.0\ndelta = 1e-4',
    "UpdateDP(…)": '[[protections]]\nclass = "UpdateDP"\nmax_norm = 1.0\nnoise_multiplier = 4.0\ndelta = 1e-4',
}


class TestFlower:
    """Sites on machines of their own."""

    @pytest.fixture(autouse=True)
    def _needs_flower(self):
        pytest.importorskip("flwr")

    @pytest.mark.filterwarnings("ignore:Noise on the updates of")
    @pytest.mark.parametrize("guard", APART)
    def test_a_classifier_trains_under_what_a_job_can_say_and_is_sealed(self, tmp_path, key, guard):
        from tests.flower.conftest import SITES, LocalFederation, job_text

        cells, settings = make_cells(), APART[guard]
        cells.obs["site"] = cells.obs["site"].astype(str)
        job = job_text(n_rounds=2, more="" if guard in SUMS else f"validation_size = 0.0\n{settings}")
        federation = LocalFederation(
            tmp_path, cells, key, job.replace("deadline", f"{settings}\ndeadline") if guard in SUMS else job
        )
        federation.run()
        assert not federation.errors
        saved = federation.kit(SITES[0]) / "model"
        assert json.loads((saved / "model.json").read_text())["weights"]["sealed"]
        trained = federation.model(SITES[0])
        assert len(trained.history) == 2
        assert ("epsilon" in trained.history) == (guard not in SUMS)

    @pytest.mark.parametrize("guard", [name for name in GUARDS if name not in APART])
    def test_other_protections_cannot_be_said(self, guard):
        from tests.flower.conftest import job_text

        from scinfl.flower import Job

        name = guard.partition("(")[0]
        for more, match in (
            (f'\n[[protections]]\nclass = "{name}"', r"class in \[\[protections\]\]"),
            (f'protections = ["{guard}"]', "write `sum` in"),
        ):
            with pytest.raises(ValueError, match=match):
                Job.parse(job_text(more=more))


@pytest.mark.parametrize("model", MODELS)
def test_every_model_is_saved_sealed(model, key, tmp_path):
    trained, arguments = MODELS[model]()
    trained.train(**arguments, key=key)
    trained.save(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "model.json").read_text())["weights"]["sealed"]
    loaded = type(trained).load(tmp_path / "run")
    assert loaded.is_locked
    with pytest.raises(ValueError, match="Use the key of this model"):
        loaded.unlock(Key.generate())
    loaded.unlock(key)
    assert not loaded.is_locked


def test_the_documented_table_is_the_one_that_was_tried():
    found = {}
    for line in DOCS.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == len(MODELS) + 2 and (name := re.fullmatch(r"`(.+)`", cells[0])):
            found[name[1]] = [cell.split(" ")[0].rstrip(",:") for cell in cells[1:]]
    expected = {
        name: [
            *("no" if model in guard.refused else "yes" for model in MODELS),
            "yes" if name in APART else "no",
        ]
        for name, guard in GUARDS.items()
    }
    assert found == {**expected, "Seal(key)": ["yes"] * 5}


# ---- misuse


def two_sites() -> ad.AnnData:
    return make_cells(n_sites=2)


@pytest.mark.parametrize(
    ("data", "options", "make", "message"),
    [
        (two_sites, {}, lambda key: [PairwiseSum(key)], r"at least 3 sites in a round.*found 2 of 2. Let more sites"),
        (two_sites, {}, lambda key: [KeyedSum(key)], r"at least 3 sites in a round"),
        (make_cells, {"fraction": 0.5}, lambda key: [PairwiseSum(key)], r"found 2 of 3. Raise `fraction`"),
        (make_cells, {"strategy": Median()}, lambda key: [KeyedSum(key)], r"no protections with Median.*Use FedAvg"),
        (make_cells, {"strategy": TrimmedMean()}, lambda _: [PairwiseSum()], r"no protections with TrimmedMean"),
        (make_cells, {"strategy": Median()}, lambda _: [HomomorphicSum()], r"which a masked sum hides"),
        (make_cells, {}, lambda key: [KeyedSum(key), PairwiseSum()], r"one protection that sums.*`PairwiseSum\(key\)`"),
        (make_cells, {}, lambda key: [KeyedSum(key), HomomorphicSum()], r"at most one protection that sums"),
        (
            make_cells,
            {"validation_size": 0},
            lambda key: [KeyedSum(key), UpdateDP(max_norm=1.0, noise_multiplier=1.0)],
            r"KeyedSum to be the last protection, found UpdateDP after it.*Put KeyedSum last",
        ),
        (
            make_cells,
            {"validation_size": 0},
            lambda key: [Shuffle(max_norm=1.0, noise_multiplier=1.0), KeyedSum(key)],
            r"Use `Shuffle` without a protection that masks, or `UpdateDP` with it",
        ),
        (
            make_cells,
            {"validation_size": 0},
            lambda _: [SampleDP(noise_multiplier=1.0), UpdateDP(max_norm=1.0, noise_multiplier=1.0)],
            r"one protection with a privacy budget, found 2.*choose one",
        ),
        (make_cells, {}, lambda _: [SampleDP(noise_multiplier=1.0)], r"no validation rows.*with `validation_size=0`"),
    ],
)  # fmt: skip
def test_misuse_is_refused_before_anything_is_learnt(data, options, make, message, key):
    cells = data()
    Classifier.setup_anndata(cells, "label", site_key="site")
    model = Classifier(cells, n_hidden=16)
    with pytest.raises(ValueError, match=message):
        model.train(**ROUNDS, **options, protections=make(key), key=key)
    assert not model.is_trained_


def updates() -> list[Update]:
    return [Update(site, 1, {"w": np.ones(20)}, 1, 1.0) for site in "abc"]


@pytest.mark.parametrize("kind", [KeyedSum, PairwiseSum])
def test_sites_with_keys_of_different_versions_or_fingerprints_get_no_sum(kind):
    identities = {site: Identity.generate(site) for site in "abc"}
    pinned = {site: identity.public for site, identity in identities.items()}
    key = Key.generate("lung")
    for other, message in (
        (Key.generate("lung", version=2), "current key|same version of the key"),
        (Key.generate("lung"), "another: a term was changed|same version of the key"),
    ):
        keys = {"a": key, "b": key, "c": other}
        options = {"run": "run", "identities": identities, **({"pinned": pinned} if kind is PairwiseSum else {})}
        guards = {site: kind(keys[site], **options) for site in keys}
        with pytest.raises((ValueError, TamperedSumError), match=message):
            sum_of(guards, pinned)


def sum_of(guards, pinned):
    """What sites in processes of their own do with one round."""
    if isinstance(guards["a"], PairwiseSum):
        ads = [guard.site(site).advertise("training", 1, 1) for site, guard in guards.items()]
        guards["a"].site("a").receive(ads)
        return
    for guard in guards.values():
        guard.expect(3.0, updates()[0])
    encoded = [guards[update.site].encode(update) for update in updates()]
    combined = Aggregator(pinned).combine(encoded)
    guards["a"].decode(combined, encoded)


def test_a_shuffled_sum_before_training_is_refused():
    guard = Shuffle(max_norm=1.0, noise_multiplier=1.0)
    with pytest.raises(ValueError, match=r"updates of training to shuffle, found 'means'.*`KeyedSum`"):
        mean_of([Update(site, 0, {"mean": np.ones(2)}, 1, purpose="means") for site in "abc"], [guard])


# ---- a run is resumed with the protections that it began with


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (SampleDP(noise_multiplier=2.0, delta=1e-4), SampleDP(noise_multiplier=1.0, delta=1e-4)),
        (SampleDP(noise_multiplier=2.0, delta=1e-4), SampleDP(noise_multiplier=2.0, delta=1e-4, max_norm=0.5)),
        (
            UpdateDP(max_norm=1.0, noise_multiplier=2.0, delta=1e-4),
            UpdateDP(max_norm=2.0, noise_multiplier=2.0, delta=1e-4),
        ),
    ],
    ids=["noise", "norm of rows", "norm of updates"],
)
def test_a_run_is_not_resumed_with_another_noise(before, after, key, tmp_path):
    cells = make_cells()
    Classifier.setup_anndata(cells, "label", site_key="site")
    options = {"key": key, "validation_size": 0, "journal": tmp_path, "progress": False}
    Classifier(cells, n_hidden=16).train(1, protections=[before, KeyedSum(key)], **options)
    with pytest.raises(ValueError, match=r"other settings: \['protections'\]"):
        Classifier(cells, n_hidden=16).train(2, protections=[after, KeyedSum(key)], **options)
    again = Classifier(cells, n_hidden=16)
    again.train(2, protections=[before, KeyedSum(key)], **options)
    assert len(again.history) == 2
    text = (tmp_path / "audit.jsonl").read_text()
    assert repr(before) in text
    assert Journal(tmp_path).verify()


def test_protections_that_tell_nothing_of_themselves_may_be_resumed(key, tmp_path):
    cells = make_cells()
    Classifier.setup_anndata(cells, "label", site_key="site")
    for n_rounds in (1, 2):
        model = Classifier(cells, n_hidden=16)
        watching = si.privacy.attacks.Watcher()
        model.train(n_rounds, key=key, protections=[KeyedSum(key), watching], journal=tmp_path, progress=False)
        assert list(watching.seen) == [n_rounds]
    assert len(model.history) == 2


@pytest.mark.parametrize("guard", GUARDS)
def test_no_protection_shows_a_secret(guard, key):
    shown = repr(GUARDS[guard].make(key))
    assert shown.startswith(guard.split("(")[0])
    assert key._secret.hex() not in shown
    assert "object at" not in shown
