"""Simple rules, and which of them are trusted."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from scinfl.model.gears._prior import Prior, pack_priors, unpack_priors
from scinfl.model.gears._rules import RULES, Rules, Weights, _convex

GENES = [f"G{number:02d}" for number in range(12)]
N = 30
NONE = np.zeros(0, int)


def rules_of(changes, *, groups=None):
    conditions = tuple(changes)
    similarity = np.eye(len(GENES))
    if groups is not None:
        similarity = np.maximum(similarity, 0.9 * np.equal.outer(groups, groups))
    places = {gene: place for place, gene in enumerate(GENES)}
    values = np.stack([changes[genes] for genes in conditions])
    return Rules(conditions, values, places, similarity, {gene: column for column, gene in enumerate(GENES)})


def screen(*, respond, rng=0, n_pairs=30, noise=0.05):
    """Changes of single genes and of pairs; ``respond`` makes a pair's change of those of its genes."""
    generator = np.random.default_rng(rng)
    single = generator.normal(size=(len(GENES), N))
    changes = {(gene,): own for gene, own in zip(GENES, single, strict=True)}
    pairs = list(combinations(range(len(GENES)), 2))
    for index in generator.choice(len(pairs), n_pairs, replace=False):
        a, b = pairs[index]
        changes[GENES[a], GENES[b]] = respond(single[a], single[b])
    return {genes: change + noise * generator.normal(size=N) for genes, change in changes.items()}


def shares(weights, kind):
    return dict(zip(RULES[kind], weights[kind].rules, strict=True))


def additive(a, b):
    return a + b


def strongest(a, b):
    return np.where(np.abs(a) > np.abs(b), a, b)


def error_of(rules, weights, truth, sets):
    return np.mean([np.square(rules.predict(genes, weights) - truth[genes]).mean() for genes in sets])


def test_the_weights_are_shares():
    weights = rules_of(screen(respond=strongest)).fit()
    for kind, names in RULES.items():
        assert len(weights[kind].rules) == len(names)
        assert weights[kind].rules.min() >= 0
        assert weights[kind].rules.sum() == pytest.approx(1)


def test_sums_are_kept_where_pairs_are_sums():
    whole = screen(respond=additive, n_pairs=60)
    held = [genes for genes in whole if len(genes) > 1][:20]
    rules = rules_of({genes: change for genes, change in whole.items() if genes not in held})
    weights = rules.fit()
    sums = np.mean([np.square(whole[a,] + whole[b,] - whole[a, b]).mean() for a, b in held])
    assert error_of(rules, weights, whole, held) < 1.05 * sums


@pytest.mark.parametrize("rng", range(3))
def test_an_interaction_is_found_where_pairs_are_not_sums(rng):
    whole = screen(respond=strongest, n_pairs=60, rng=rng)
    held = [genes for genes in whole if len(genes) > 1][:20]
    rules = rules_of({genes: change for genes, change in whole.items() if genes not in held})
    weights = rules.fit()
    sums = np.mean([np.square(whole[a,] + whole[b,] - whole[a, b]).mean() for a, b in held])
    assert shares(weights, "seen")["strongest"] > 0.8
    assert error_of(rules, weights, whole, held) < 0.2 * sums


def test_genes_that_are_alike_predict_each_other():
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(4), 3)
    common = generator.normal(size=(4, N))
    changes = {(gene,): common[g] + 0.2 * generator.normal(size=N) for gene, g in zip(GENES, groups, strict=True)}
    truth = {(GENES[0],): changes.pop((GENES[0],))}
    known, unknown = rules_of(changes, groups=groups), rules_of(changes)
    mean = np.square(np.mean(list(changes.values()), 0) - truth[GENES[0],]).mean()
    assert error_of(known, known.fit(), truth, truth) < 0.5 * mean
    assert error_of(unknown, unknown.fit(), truth, truth) < 1.05 * mean


def test_with_few_conditions_nothing_is_known_and_the_default_answers():
    changes = {(gene,): np.full(N, float(number)) for number, gene in enumerate(GENES[:4])}
    rules = rules_of(changes)
    weights = rules.fit()
    for kind in RULES:
        assert weights[kind].rules.tolist() == np.eye(len(RULES[kind]))[0].tolist()
        assert np.isnan(weights[kind].error).all()
    np.testing.assert_allclose(rules.predict((GENES[0], GENES[1]), weights), 1.0)
    np.testing.assert_allclose(rules.predict(("G11",), weights), 1.5)
    np.testing.assert_allclose(rules.predict((GENES[3], "G11"), weights), 4.5)


@pytest.mark.parametrize("kind", list(RULES))
def test_what_is_left_out_has_no_part_in_its_prediction(kind):
    changes = screen(respond=strongest)
    rules = rules_of(changes)
    row, hidden = next(iter(rules._left_out(kind)))
    before = rules.experts(rules.conditions[row], kind, hidden)
    others = {genes: change for genes, change in changes.items() if rules._row[genes] not in set(hidden.tolist())}
    fewer = rules_of(others)
    np.testing.assert_allclose(before, fewer.experts(rules.conditions[row], kind, NONE), atol=1e-8)


def test_the_kind_follows_from_what_was_perturbed_alone():
    rules = rules_of({("G00",): np.zeros(N), ("G01",): np.ones(N), ("G01", "G02"): np.ones(N)})
    assert [rules.kind(genes) for genes in (("G05",), ("G00", "G01"), ("G01", "G02"))] == ["single", "seen", "unseen"]


def test_genes_that_never_change_stay_as_they_are():
    changes = {genes: np.where(np.arange(N) < 5, 0.0, change) for genes, change in screen(respond=strongest).items()}
    rules = rules_of(changes)
    weights = rules.fit()
    for genes in (("G03",), ("G03", "G04")):
        assert not rules.predict(genes, weights, leave_out=True)[:5].any()
    assert (weights["single"].error[:5] == 0).all()


def test_the_error_covers_as_many_new_pairs_as_it_says():
    inside = []
    for rng in range(8):
        whole = screen(respond=strongest, n_pairs=60, rng=rng, noise=0.3)
        held = [genes for genes in whole if len(genes) > 1][:20]
        rules = rules_of({genes: change for genes, change in whole.items() if genes not in held})
        weights = rules.fit()
        left = [np.abs(rules.predict(genes, weights) - whole[genes]) for genes in held]
        inside.append(np.mean(np.stack(left) < weights["seen"].error))
    assert 0.62 < np.mean(inside) < 0.76


def test_a_fitted_prior_is_kept_with_its_weights():
    changes = screen(respond=strongest)
    prior = Prior(
        "fitted", tuple(changes), np.stack(list(changes.values())), {"single": 0.0, "combination": 0.0}, GENES
    )
    prior = prior.fit(lambda genes: np.eye(len(genes)))
    again = unpack_priors(pack_priors({"": prior}))[""]
    new = next(pair for pair in combinations(GENES, 2) if pair not in changes)
    for genes in (("G99",), new, ("G00", "G99")):
        one, other = (p.predict([genes], leave_out=False) for p in (prior, again))
        np.testing.assert_array_equal(one, other)
        assert np.isfinite(again.error([genes])).all()
    assert np.isnan(again.error([("G00",)])).all()  # measured
    assert again.genes == tuple(GENES)
    assert Prior("additive", prior.conditions, prior.changes, {}).error([new]) is None


def test_genes_whose_expression_changes_together_predict_each_other():
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(60, 3))  # a gene reads three programmes, and moves them when it is perturbed
    changes = {(f"G{gene:02d}",): scores @ own + 0.1 * generator.normal(size=60) for gene, own in enumerate(scores)}
    columns = {f"G{gene:02d}": gene for gene in range(60)}
    known = {genes: change for genes, change in changes.items() if columns[genes[0]] < 40}
    places = {gene: place for place, gene in enumerate(columns)}
    rules = Rules(tuple(known), np.stack(list(known.values())), places, np.eye(60), columns)
    weights = rules.fit()
    assert shares(weights, "single")["linear"] > 0.8
    new = [genes for genes in changes if genes not in known]
    assert error_of(rules, weights, changes, new) < 0.2 * np.mean([np.square(changes[genes]).mean() for genes in new])


def test_rules_that_came_after_a_file_was_written_have_no_weight():
    prior = Prior(
        "fitted", (("A",),), np.ones((1, N)), {}, (), 0.0, {"single": Weights(np.array([0.0, 1.0]), np.ones(N))}
    )
    again = unpack_priors(pack_priors({"": prior}))[""]
    assert again.weights["single"].rules.tolist() == [0, 1, *[0] * (len(RULES["single"]) - 2)]


def test_regressions_are_solved_once_and_answer_for_genes_that_were_never_perturbed(monkeypatch):
    changes = {genes: change for genes, change in screen(respond=additive).items() if GENES[0] not in genes}
    groups = np.arange(len(GENES)) // 3

    def alike(genes):
        own = [groups[GENES.index(gene)] for gene in genes]
        return np.maximum(np.eye(len(own)), 0.9 * np.equal.outer(own, own))

    whole = rules_of(changes, groups=groups)  # whose vocabulary has the gene that was never perturbed
    prior = Prior("fitted", whole.conditions, whole.changes, {"single": 1.0, "combination": 1.0}, GENES).fit(alike)
    solved, solve = [], np.linalg.inv
    monkeypatch.setattr(np.linalg, "inv", lambda matrix: (solved.append(matrix), solve(matrix))[1])
    new = next(pair for pair in combinations(GENES[1:], 2) if pair not in changes)
    wanted = [(GENES[0],), (GENES[0], GENES[5]), new]
    found = [prior.predict([genes], leave_out=False, alike=alike)[0] for genes in wanted]
    n_solved = len(solved)
    assert n_solved == 4  # two ridges of two regressions
    prior.predict(wanted, leave_out=True, alike=alike)
    assert len(solved) == n_solved
    for genes, change in zip(wanted, found, strict=True):
        np.testing.assert_allclose(change, whole.predict(genes, prior.weights), rtol=1e-9, atol=1e-12)


def test_convex_weights_minimise_the_error():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(50, 3))
    y = 0.7 * x[:, 0] + 0.3 * x[:, 2] + 0.01 * generator.normal(size=50)
    np.testing.assert_allclose(_convex(x.T @ x, x.T @ y), [0.7, 0, 0.3], atol=0.01)
    assert _convex(np.zeros((3, 3)), np.zeros(3)).sum() == pytest.approx(1)
