"""A loss of moments is the loss of the cells."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scinfl.model.gears._moments import Moments
from scinfl.module import Targets, change_loss
from scinfl.module._gears_loss import SUMS, scores

N_GENES = 7


def make_cells(dtype=np.float64):
    """Controls, then three conditions; gene 0 is silent in the first of them, gene 1 in all but controls."""
    generator = np.random.default_rng(0)
    X = generator.gamma(2.0, 0.5, (40, N_GENES)) * (generator.random((40, N_GENES)) < 0.7)
    rows = [np.arange(9, 20), np.arange(20, 34), np.arange(34, 40)]
    X[rows[0], 0] = 0
    X[9:, 1] = 0
    return X.astype(dtype), np.arange(9), rows


def make_targets(dtype=np.float64, *, prior=0.0, weight=(1.0, 1.0, 1.0, 1.0)) -> Targets:
    X, controls, rows = make_cells(dtype)
    moments = Moments.of(X, [np.array([], int), *rows], [controls] * 4)
    arrays = {name: getattr(moments, name) for name in ("mean", "variance", "third", "fourth", "top")}
    return Targets(
        **{name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()},
        retained=torch.from_numpy(moments.expressed),
        prior=torch.full((4, N_GENES), prior, dtype=torch.float64),
        number=torch.tensor([5, 0, 2, 3]),
        weight=torch.tensor(weight, dtype=torch.float64),
    )


def make_change(rng=1, dtype=torch.float64):
    return torch.randn(4, N_GENES, generator=torch.Generator().manual_seed(rng), dtype=dtype).requires_grad_()


def over_cells(change, error, dtype=np.float64, weight=(1.0, 1.0, 1.0, 1.0)):
    """Mean over conditions of the mean over genes and cells of a cell's error; every cell meets every control."""
    X, controls, rows = make_cells(dtype)
    X = torch.from_numpy(X.astype(np.float64))
    result = [error(change[0], 0).mean()]  # controls are their own targets: x + δ - x
    for number, own in enumerate(rows, start=1):
        x, y = X[controls][:, None], X[own][None]
        errors = error(x + change[number] - y, number)
        result.append(errors[..., X[own].mean(0) != 0].mean())
    return sum(w * one for w, one in zip(weight, result, strict=True)) / sum(weight)


POWERS = {"quartic": 4, "squared": 2}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("loss", POWERS)
def test_the_loss_and_its_gradient_are_those_of_all_cells(loss, dtype):
    change = make_change()
    value = change_loss(change, make_targets(dtype), loss=loss)
    expected = over_cells(change, lambda e, _: e ** POWERS[loss], dtype)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    got, wanted = (torch.autograd.grad(one, change)[0] for one in (value, expected))
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


def test_the_published_loss_is_the_default():
    change, targets = make_change(), make_targets()
    assert change_loss(change, targets) == change_loss(change, targets, loss="quartic")


def test_the_change_that_is_scored_is_what_is_added_to_the_prior():
    change = make_change()
    value = change_loss(change - 0.3, make_targets(prior=0.3))
    torch.testing.assert_close(value, change_loss(change, make_targets()), rtol=1e-12, atol=0)


def test_a_change_in_single_precision_is_compared_in_double():
    change = make_change(dtype=torch.float32)
    value = change_loss(change, make_targets())
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, change_loss(change.detach().double(), make_targets()))
    value.backward()
    assert change.grad.dtype == torch.float32


def test_genes_that_are_silent_in_a_condition_do_not_count():
    targets, change = make_targets(), make_change()
    assert targets.retained.sum(1).tolist() == [7, 5, 6, 6]
    change_loss(change, targets).backward()
    assert (change.grad == 0).equal(~targets.retained)


def test_a_condition_without_expressed_genes_costs_nothing():
    targets = make_targets()
    silent = Targets(**{**targets.__dict__, "retained": torch.zeros_like(targets.retained)})
    assert change_loss(make_change(), silent) == 0


def test_each_condition_counts_the_same_whatever_its_number_of_cells():
    change, targets = make_change(), make_targets()
    single = [change_loss(change[[row]], targets[torch.tensor([row])]) for row in range(4)]
    torch.testing.assert_close(change_loss(change, targets), torch.stack(single).mean())


def test_weights_of_conditions_are_those_of_their_mean():
    change, weight = make_change(), (1.0, 0.25, 0.5, 0.0)
    value = change_loss(change, make_targets(weight=weight))
    torch.testing.assert_close(value, over_cells(change, lambda e, _: e**4, weight=weight), rtol=1e-9, atol=0)
    value.backward()
    assert (change.grad[3] == 0).all()


def test_rows_of_targets_are_taken_together():
    targets = make_targets()
    chosen = targets[torch.tensor([2, 0])]
    assert (len(targets), len(chosen)) == (4, 2)
    for name in targets.__dataclass_fields__:
        assert torch.equal(getattr(chosen, name), getattr(targets, name)[[2, 0]])


# ---- uncertainty


@pytest.mark.parametrize("loss", POWERS)
def test_gaussian_uncertainty_is_the_negative_log_likelihood_of_the_cells(loss):
    change, spread = make_change(), make_change(2)
    value = change_loss(change, make_targets(), spread=spread, uncertainty="gaussian", loss=loss)
    variance = torch.exp(spread)

    def error(e, row):
        normal = torch.distributions.Normal(0.0, variance[row].sqrt())
        return -normal.log_prob(e) - 0.5 * np.log(2 * np.pi)

    expected = over_cells(change, error)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    got, wanted = (torch.autograd.grad(one, [change, spread]) for one in (value, expected))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)


def test_published_uncertainty_is_that_of_the_cells():
    change, spread = make_change(), make_change(2)
    value = change_loss(change, make_targets(), spread=spread, uncertainty="published", uncertainty_weight=0.7)
    expected = over_cells(change, lambda e, row: e**4 + 0.7 * torch.exp(-spread[row]) * e**4)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    got, wanted = (torch.autograd.grad(one, [change, spread]) for one in (value, expected))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)


def test_without_a_predicted_spread_uncertainty_changes_nothing():
    change, targets = make_change(), make_targets()
    assert change_loss(change, targets, uncertainty="gaussian") == change_loss(change, targets)


# ---- direction


def test_the_direction_term_is_its_formula_and_unlike_the_published_one_it_has_a_gradient():
    change, targets = make_change(), make_targets(prior=0.1)
    plain = change_loss(change, targets)
    with_direction = change_loss(change, targets, direction_weight=2.0, direction_scale=0.5)
    term = 2 * (torch.sign(targets.mean) - torch.tanh((change + 0.1) / 0.5)).square()
    expected = torch.stack([row[kept].mean() for row, kept in zip(term, targets.retained, strict=True)]).mean()
    torch.testing.assert_close(with_direction - plain, expected, rtol=1e-9, atol=0)
    gradient = torch.autograd.grad(with_direction - plain, change)[0]
    assert (gradient[targets.retained] != 0).all()
    # the term alone pulls the change towards the sign of the truth
    pulled = (targets.mean != 0) & targets.retained
    assert torch.equal(torch.sign(-gradient[pulled]), torch.sign(targets.mean[pulled]))


def test_a_smaller_width_makes_a_sharper_direction():
    change, targets = make_change(), make_targets()
    truth = targets.mean.clone().requires_grad_()
    sharp, soft = (
        change_loss(truth, targets, direction_weight=1.0, direction_scale=scale) - change_loss(truth, targets)
        for scale in (0.01, 1.0)
    )
    assert sharp < soft
    assert change_loss(change, targets, direction_weight=0.0) == change_loss(change, targets)


# ---- scores


def naive_scores(change, targets):
    """Condition by condition."""
    result = {"mse": 0.0, "mse_de": 0.0, "pearson_delta": 0.0}
    for row in range(len(targets)):
        own, truth, prior = (t[row].numpy() for t in (change, targets.mean, targets.prior))
        top = [gene for gene in targets.top[row].tolist() if gene >= 0] or list(range(N_GENES))
        error, missed = (own + prior - truth) ** 2, truth - prior
        weight, number = float(targets.weight[row]), int(targets.number[row])
        result["mse"] += weight * error.mean()
        result["mse_de"] += weight * error[top].mean()
        result["pearson_delta"] += weight * np.corrcoef(own + prior, truth)[0, 1] if truth.std() > 0 else 0.0
        result[f"agreement_{number}"] = weight * (own * missed)[top].mean()
        result[f"power_{number}"] = weight * (own**2)[top].mean()
        result[f"missed_{number}"] = weight * (missed**2)[top].mean()
    return result


@pytest.mark.parametrize("weight", [(1.0, 1.0, 1.0, 1.0), (1.0, 0.25, 0.5, 0.8)])
@pytest.mark.parametrize("prior", [0.0, 0.2])
def test_scores_are_weighted_sums_over_conditions(prior, weight):
    targets, change = make_targets(prior=prior, weight=weight), make_change().detach()
    targets = Targets(**{**targets.__dict__, "top": targets.top.clone()})
    targets.top[1, 3:] = -1  # fewer than there are genes
    found = scores(change, targets)
    assert found == pytest.approx(naive_scores(change, targets), rel=1e-10)
    assert all(type(value) is float for value in found.values())


def test_scores_of_parts_add_up():
    targets, change = make_targets(), make_change().detach()
    parts = [scores(change[rows], targets[rows]) for rows in (torch.tensor([0, 3]), torch.tensor([1, 2]))]
    whole = scores(change, targets)
    assert whole == pytest.approx({name: parts[0].get(name, 0) + parts[1].get(name, 0) for name in whole})


def test_the_best_shrinkage_follows_from_the_sums():
    targets, change = make_targets(prior=0.2), make_change().detach()
    sums = scores(change, targets)
    agreement, power, missed = (sum(sums[f"{what}_{number}"] for number in (0, 3)) for what in SUMS)

    def error(share):
        return missed - 2 * share * agreement + share**2 * power

    best = agreement / power
    rows = torch.tensor([1, 3])  # numbers 0 and 3
    assert error(best) == pytest.approx(scores(best * change[rows], targets[rows])["mse_de"])
    assert error(best) < min(error(best - 0.1), error(best + 0.1), error(0), error(1))


def test_a_constant_change_correlates_with_nothing():
    targets = make_targets()
    assert scores(torch.zeros(4, N_GENES), targets)["pearson_delta"] == 0
