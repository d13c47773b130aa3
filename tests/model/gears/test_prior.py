"""What is known of a perturbation without a network."""

from __future__ import annotations

import numpy as np
import pytest

from scinfl.model.gears._prior import PRIORS, Prior, pack_priors, unpack_priors

CONDITIONS = (("A",), ("A", "B"), ("B",), ("C",), ("C", "D"))
CHANGES = np.random.default_rng(0).normal(size=(5, 6))
A, AB, B, C, CD = CHANGES
SINGLES = (A + B + C) / 3


def make_prior(kind="additive", conditions=CONDITIONS, changes=CHANGES):
    return Prior(kind, conditions, changes, {"single": 0.4, "combination": 0.8})


def predict(genes, *, leave_out=False, **options):
    return make_prior(**options).predict([genes], leave_out=leave_out)[0]


def close(one, other):
    np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


def test_combinations_are_the_sums_of_their_single_perturbations():
    close(predict(("A", "C")), A + C)
    close(predict(("A", "B", "C")), A + B + C)


def test_a_gene_that_was_never_perturbed_alone_has_the_mean_of_those_that_were():
    close(predict(("X",)), SINGLES)
    close(predict(("D",)), SINGLES)  # seen, but in a combination only
    close(predict(("A", "D")), A + SINGLES)
    close(predict(("X", "Y")), 2 * SINGLES)


def test_what_was_measured_is_predicted_as_measured():
    for genes, change in zip(CONDITIONS, CHANGES, strict=True):
        close(predict(genes), change)


def test_a_condition_left_out_is_predicted_from_the_others():
    close(predict(("A", "B"), leave_out=True), A + B)
    close(predict(("C", "D"), leave_out=True), C + SINGLES)
    close(predict(("A",), leave_out=True), (B + C) / 2)
    close(predict(("X",), leave_out=True), SINGLES)
    close(predict(("A", "C"), leave_out=True), A + C)


@pytest.mark.parametrize("genes", CONDITIONS, ids=str)
@pytest.mark.parametrize("kind", ["additive", "mean"])
def test_a_condition_left_out_has_no_part_in_its_prior(genes, kind):
    changed = CHANGES.copy()
    changed[CONDITIONS.index(genes)] = 1e6
    close(predict(genes, leave_out=True, kind=kind), predict(genes, leave_out=True, kind=kind, changes=changed))


def test_the_mean_is_that_of_all_conditions_but_the_one_in_question():
    for genes in (("X",), ("A", "C"), ("X", "Y")):
        close(predict(genes, kind="mean"), CHANGES.mean(0))
    close(predict(("A",), kind="mean", leave_out=True), (AB + B + C + CD) / 4)
    close(predict(("A", "B"), kind="mean", leave_out=True), (A + B + C + CD) / 4)


def test_without_a_prior_nothing_changes():
    assert not predict(("A",), kind=None).any()
    assert not predict(("A", "X"), kind=None, leave_out=True).any()
    assert PRIORS == ("fitted", "additive", "mean", None)


@pytest.mark.parametrize("kind", PRIORS)
@pytest.mark.parametrize("leave_out", [True, False])
def test_controls_and_priors_without_conditions_change_nothing(kind, leave_out):
    assert not predict((), kind=kind, leave_out=leave_out).any()
    empty = predict(("A",), kind=kind, leave_out=leave_out, conditions=(), changes=np.zeros((0, 6)))
    np.testing.assert_array_equal(empty, np.zeros(6))
    lone = predict(("A",), kind=kind, leave_out=True, conditions=(("A",),), changes=CHANGES[:1])
    np.testing.assert_array_equal(lone, np.zeros(6))


def test_where_no_gene_was_perturbed_alone_combinations_are_used():
    options = {"conditions": (("A", "B"), ("C", "D")), "changes": CHANGES[[1, 4]]}
    close(predict(("A",), **options), (AB + CD) / 2)
    close(predict(("A", "X"), **options), AB + CD)
    close(predict(("A", "B"), leave_out=True, **options), 2 * CD)


def test_many_are_predicted_at_once_and_lists_are_as_good_as_tuples():
    found = make_prior().predict([["A", "C"], (), ["A"]], leave_out=False)
    close(found, np.stack([A + C, np.zeros(6), A]))
    assert make_prior().predict([], leave_out=False).shape == (0, 6)


def test_only_the_additive_prior_repeats_what_was_measured():
    assert make_prior().is_measured(("A",))
    assert make_prior().is_measured(["C", "D"])
    assert not make_prior().is_measured(("A", "C"))
    assert not make_prior().is_measured(())
    assert not make_prior("mean").is_measured(("A",))
    assert not make_prior(None).is_measured(("A",))


def test_predictions_can_be_changed_without_harm_to_the_prior():
    prior = make_prior()
    before = prior.changes.copy()
    found = prior.predict([("A",), ("A", "B")], leave_out=False)
    found += 1
    np.testing.assert_array_equal(prior.changes, before)


@pytest.mark.parametrize("changes", [CHANGES, CHANGES.astype(np.float32), np.asfortranarray(CHANGES)])
def test_priors_are_unpacked_as_they_were_packed(changes):
    priors = {
        "lung": make_prior(changes=changes),
        "größe/2 x": make_prior("mean", (("A",),), changes[:1]),
        "none": make_prior(None, (), changes[:0]),
    }
    found = unpack_priors(pack_priors(priors))
    assert list(found) == list(priors)
    for name, prior in priors.items():
        assert (found[name].kind, found[name].conditions) == (prior.kind, prior.conditions)
        assert found[name].shrinkage == prior.shrinkage
        assert found[name].changes.dtype == changes.dtype
        np.testing.assert_array_equal(found[name].changes, prior.changes)
    close(
        found["lung"].predict([("A", "X")], leave_out=False)[0],
        priors["lung"].predict([("A", "X")], leave_out=False)[0],
    )


def test_packed_priors_are_tensors_and_no_pickles():
    content = pack_priors({"lung": make_prior()})
    assert isinstance(content, bytes)
    assert unpack_priors(pack_priors({})) == {}
    with pytest.raises(Exception, match=r"header|deserializing"):
        unpack_priors(b"no tensors")
