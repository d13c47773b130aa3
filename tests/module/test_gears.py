"""The network of GEARS against the published one, its shortcuts against the long way, and its key."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from scinfl.model.gears._cell_gears import translated
from scinfl.module import Conditions, GEARSModule, Targets, change_loss
from scinfl.module import _gears as gears
from scinfl.module._gears_loss import scores
from scinfl.nn import CoordinateTable, WeightedBatchNorm, clear_key, keyed, keyed_layers, lock, set_key

# What cell-gears 0.1.2 computed with random parameters and graphs: 9 genes, 5 of them perturbed, d = 4.
REFERENCE = np.load(Path(__file__).parent / "cell_gears_reference.npz")
MEMBERS = [(0,), (1, 2), (), (0, 3), (0,), (4,), (1, 2)]
UNIQUE, COUNTS, PLACES = [*MEMBERS[:4], (4,)], [2, 2, 1, 1, 1], [0, 1, 2, 3, 0, 4, 1]
NETWORKS = {
    "plain": {},
    "deep": {"n_ontology_layers": 2, "n_coexpression_layers": 2, "uncertainty": "published"},
}


def reference_module(tag, *, compat=True) -> GEARSModule:
    prefix = f"{tag}/state/"
    state = {name.removeprefix(prefix): torch.tensor(REFERENCE[name]) for name in REFERENCE if name.startswith(prefix)}
    graphs = {name: state.pop(name) for name in list(state) if name.startswith("G_")}
    module = GEARSModule(
        [f"gene_{i}" for i in range(9)], [f"gene_{i}" for i in range(5)], n_hidden=4, compat=compat, **NETWORKS[tag]
    )
    module.load_state_dict(translated(state))
    module.set_graph("coexpression", graphs["G_coexpress"], graphs["G_coexpress_weight"])
    module.set_graph("ontology", graphs["G_go"], graphs["G_go_weight"])
    return module


def make_module(n_genes=60, n_perturbed=20, *, n_hidden=16, rng=0, **options) -> GEARSModule:
    torch.manual_seed(rng)
    genes = [f"gene_{i}" for i in range(n_genes)]
    module = GEARSModule(genes, genes[:n_perturbed], n_hidden=n_hidden, **options)
    for norm in (m for m in module.modules() if isinstance(m, WeightedBatchNorm)):
        torch.nn.init.normal_(norm.weight, 1.0, 0.2)
        torch.nn.init.normal_(norm.bias, 0.0, 0.3)
    for name, n, n_edges in (("coexpression", n_genes, 200), ("ontology", n_perturbed, 40)):
        module.set_graph(name, torch.randint(n, (2, n_edges)), torch.rand(n_edges))
    return module


def make_members(n=15, n_perturbed=20):
    generator = np.random.default_rng(1)
    return [(), *(tuple(generator.choice(n_perturbed, 1 + i % 3, replace=False).tolist()) for i in range(n - 1))]


def evaluated(module):
    """With running statistics, as after training."""
    module.set_agreed(Conditions.of(make_members(), covariates=[[0] * len(module.covariate_embedding)] * 15))
    module.refresh()
    return module.eval()


def buffers(module):
    return {name: value for name, value in module.state_dict().items() if "running" in name}


def assert_close_states(one, other, *, rtol=1e-5, atol=1e-6):
    assert set(one) == set(other)
    for name, value in one.items():
        torch.testing.assert_close(
            value, other[name], rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


# ---- the published network


@pytest.mark.parametrize("tag", NETWORKS)
def test_in_evaluation_it_computes_what_the_published_network_computes(tag):
    module = reference_module(tag).eval()
    with torch.no_grad():
        change, spread = module.change_and_spread(Conditions.of(MEMBERS))
    np.testing.assert_allclose(change.numpy(), REFERENCE[f"{tag}/eval"], rtol=0, atol=1e-5)
    assert (spread is None) == (tag == "plain")
    if spread is not None:
        np.testing.assert_allclose(spread.numpy(), REFERENCE[f"{tag}/logvar"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("tag", NETWORKS)
def test_in_training_it_computes_what_the_published_network_computes(tag):
    change = reference_module(tag).train()(Conditions.of(MEMBERS))
    np.testing.assert_allclose(change.detach().numpy(), REFERENCE[f"{tag}/train"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("tag", NETWORKS)
def test_the_quirk_of_the_published_network_matters(tag):
    """Only the first graph of a batch sees the co-expression; without `compat` all do."""
    with torch.no_grad():
        change = reference_module(tag, compat=False).eval()(Conditions.of(MEMBERS)).numpy()
    np.testing.assert_allclose(change[0], REFERENCE[f"{tag}/eval"][0], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(change[0], change[4])  # the same perturbation, wherever it is
    assert np.abs(change[4] - REFERENCE[f"{tag}/eval"][4]).max() > 1e-4


@pytest.mark.parametrize("compat", [True, False])
@pytest.mark.parametrize("tag", NETWORKS)
def test_a_weighted_condition_is_so_many_equal_ones(tag, compat):
    if compat:  # the first of a batch is not like its repetitions
        unique, counts, places = MEMBERS[:6], [1, 2, 1, 1, 1, 1], [0, 1, 2, 3, 4, 5, 1]
    else:
        unique, counts, places = UNIQUE, COUNTS, PLACES
    module, twin = (reference_module(tag, compat=compat) for _ in range(2))
    repeated, expected_spread = module.change_and_spread(Conditions.of(MEMBERS))
    change, spread = twin.change_and_spread(Conditions.of(unique, weight=counts))
    torch.testing.assert_close(change[places], repeated, rtol=1e-4, atol=1e-5)
    if spread is not None:
        torch.testing.assert_close(spread[places], expected_spread, rtol=1e-4, atol=1e-5)
    assert_close_states(buffers(twin), buffers(module))
    error = torch.linspace(-1, 1, repeated.numel()).view_as(repeated)
    summed = torch.zeros_like(change).index_add(0, torch.tensor(places), error)
    (repeated * error).sum().backward()
    (change * summed).sum().backward()
    for name, parameter in module.named_parameters():
        if parameter.grad is not None and not name.endswith("linears.1.bias"):
            scale = parameter.grad.abs().max().clamp_min(0.1)
            torch.testing.assert_close(twin.get_parameter(name).grad / scale, parameter.grad / scale, rtol=0, atol=1e-4)


# ---- shortcuts


def generic(module):
    """The same network, one of whose layers cannot be folded, so that it takes the long way."""
    return keyed(copy.deepcopy(module), "permuted", layers=["pair_mlp.linears.0"])


@pytest.mark.parametrize("tag", NETWORKS)
def test_the_fused_way_is_the_long_way(tag, monkeypatch):
    module = reference_module(tag, compat=False).double()
    long, conditions = generic(module), Conditions.of(UNIQUE, weight=COUNTS)
    fused, error = [], torch.linspace(-1, 1, 45, dtype=torch.float64).view(5, 9)
    decode_pairs = gears.decode_pairs
    monkeypatch.setattr(gears, "decode_pairs", lambda *arguments: fused.append(1) or decode_pairs(*arguments))
    results = []
    for network in (module, long):
        results.append(network(conditions))
        (results[-1] * error).sum().backward()
        assert fused == [1]
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)
    assert_close_states(buffers(module), buffers(long), rtol=1e-9, atol=1e-10)
    for name, parameter in module.named_parameters():
        expected = long.get_parameter(name).grad
        if name.startswith("pair_mlp.linears") and name.endswith("bias"):  # cancels in the normalisation
            assert parameter.grad is None
            assert expected.abs().max() < 1e-10
        elif expected is None:  # the uncertainty has no part in the change
            assert name.startswith("uncertainty_mlp")
        else:
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-8, atol=1e-10)
    module.eval(), long.eval()
    torch.testing.assert_close(module(conditions), long(conditions), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("uncertainty", [None, "gaussian", "published"])
@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("make", [lambda module: module, generic], ids=["fused", "long way"])
def test_chunks_of_the_prediction_do_not_change_it(make, compat, uncertainty, monkeypatch):
    module = make(make_module(uncertainty=uncertainty, compat=compat)).eval()
    conditions = Conditions.of(make_members())
    whole, spread = module.change_and_spread(conditions)
    monkeypatch.setattr(gears, "_PAIRS", 4 * module.n_genes)
    change, spread_again = module.change_and_spread(conditions)
    torch.testing.assert_close(change, whole, rtol=1e-5, atol=1e-5)
    if uncertainty:
        torch.testing.assert_close(spread_again, spread, rtol=1e-5, atol=1e-5)
    alone = torch.cat([module(Conditions.of([members])) for members in make_members()])
    if not compat:
        torch.testing.assert_close(alone, whole, rtol=1e-5, atol=1e-5)


def test_evaluation_leaves_running_statistics_alone():
    module = make_module().eval()
    before = copy.deepcopy(buffers(module))
    module(Conditions.of(make_members()))
    assert_close_states(buffers(module), before, rtol=0, atol=0)


@pytest.mark.parametrize("uncertainty", [None, "gaussian", "published"])
def test_gradients_reach_every_parameter(uncertainty):
    module = make_module(uncertainty=uncertainty, covariates={"line": ["a", "b"]})
    members = make_members()
    change, spread = module.change_and_spread(Conditions.of(members, covariates=[[i % 2] for i in range(len(members))]))
    loss = change.square().sum() if spread is None else (change.square() * torch.exp(-spread) + spread.square()).sum()
    loss.backward()
    without = {name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()}
    assert without <= {f"pair_mlp.linears.{number}.bias" for number in (0, 1)}  # a normalisation is behind them


# ---- conditions


def test_controls_have_no_perturbation():
    module = evaluated(make_module())
    conditions = Conditions.of([(), (1,), (), (1, 2)])
    u = module._perturbations(conditions)
    assert (u[[0, 2]] == 0).all()
    assert (u[[1, 3]] != 0).any(1).all()
    before = module(conditions)
    with torch.no_grad():
        module.perturbation_embedding.weight.neg_()
    after = module(conditions)
    torch.testing.assert_close(after[[0, 2]], before[[0, 2]], rtol=1e-5, atol=1e-5)
    assert (after - before)[[1, 3]].abs().max() > 0.1


def test_the_order_of_perturbed_genes_is_of_no_account_and_their_number_is_free():
    module = evaluated(make_module())
    change = module(Conditions.of([(1, 2, 3, 4), (4, 1, 3, 2), (1, 2, 3)]))
    torch.testing.assert_close(change[0], change[1], rtol=1e-5, atol=1e-5)
    assert (change[0] - change[2]).abs().max() > 0.1


@pytest.mark.parametrize("members", [[()], [(), ()], [(3,)], [(), (3,)]])
@pytest.mark.parametrize("compat", [True, False])
def test_batches_of_controls_alone_or_of_one_perturbation_are_finite(members, compat):
    module = make_module(uncertainty="published", compat=compat)
    change, spread = module.change_and_spread(Conditions.of(members))
    assert torch.isfinite(change).all()
    assert torch.isfinite(spread).all()
    (change.sum() + spread.sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)
    assert all(torch.isfinite(value).all() for value in buffers(module).values())


def test_a_lone_perturbation_of_a_batch_is_normalised_to_the_shift_as_published():
    module = make_module()
    u = module._perturbations(Conditions.of([(), (3, 4), ()]))
    torch.testing.assert_close(u[1], module.perturbation_mlp.norms[1].bias)


def test_levels_of_covariates_shift_the_perturbation_also_of_controls():
    module = evaluated(make_module(covariates={"line": ["a", "b"], "dose": ["low", "mid", "high"]}))
    assert [table.row_names for table in module.covariate_embedding] == [
        ["line=a", "line=b"],
        ["dose=low", "dose=mid", "dose=high"],
    ]
    levels = [[0, 0], [1, 0], [1, 2], [0, 0], [1, 2]]
    conditions = Conditions.of([(3,), (3,), (3,), (), ()], covariates=levels)
    u = module._perturbations(conditions)
    line, dose = (table.weight for table in module.covariate_embedding)
    torch.testing.assert_close(u[1] - u[0], line[1] - line[0])
    torch.testing.assert_close(u[2] - u[1], dose[2] - dose[0])
    torch.testing.assert_close(u[3], line[0] + dose[0])
    change = module(conditions)
    for one, other in ((0, 1), (1, 2), (3, 4)):
        assert (change[one] - change[other]).abs().max() > 0.01
    assert not make_module().covariate_embedding


def test_conditions_are_flat_lists_of_genes():
    conditions = Conditions.of([(4, 1), (), (2,)], covariates=[[0, 1], [1, 1], [2, 0]])
    assert conditions.genes.tolist() == [4, 1, 2]
    assert conditions.rows.tolist() == [0, 0, 2]
    assert conditions.covariates.tolist() == [[0, 1], [1, 1], [2, 0]]
    assert conditions.weight.tolist() == [1, 1, 1]
    assert len(conditions) == 3
    plain = Conditions.of([(), ()], weight=[2, 0.5])
    assert plain.covariates.shape == (2, 0)
    assert plain.weight.tolist() == [2, 0.5]
    assert plain.genes.dtype == plain.rows.dtype == torch.long
    moved = conditions.to(torch.device("meta"))
    assert moved.genes.device.type == moved.weight.device.type == "meta"


def test_embeddings_stay_within_the_unit_ball():
    module = make_module()
    with torch.no_grad():
        module.gene_embedding.weight.mul_(10)
    module(Conditions.of(make_members()))
    for table in (module.gene_embedding, module.gene_position, module.perturbation_embedding):
        assert table.weight.norm(dim=1).max() <= 1 + 1e-6
    assert module.readout.weight.norm(dim=1).max() > 0


# ---- training


def make_targets(n, n_genes=60):
    generator = torch.Generator().manual_seed(5)

    def normal():
        return torch.randn(n, n_genes, generator=generator, dtype=torch.float64)

    return Targets(
        mean=normal(), variance=normal().square(), third=normal(), fourth=normal().square() + 1,
        retained=normal() > -1, prior=normal(), top=torch.randint(n_genes, (n, 20), generator=generator),
        number=torch.arange(n), weight=torch.rand(n, generator=generator, dtype=torch.float64),
    )  # fmt: skip


@pytest.mark.parametrize("uncertainty", [None, "gaussian", "published"])
def test_the_loss_of_a_batch_is_that_of_its_change(uncertainty):
    module, conditions, targets = make_module(uncertainty=uncertainty), Conditions.of(make_members()), make_targets(15)
    change, spread = module.change_and_spread(conditions)
    options = {"loss": "squared", "direction_weight": 0.3, "uncertainty_weight": 0.5}
    expected = change_loss(change, targets, spread=spread, uncertainty=uncertainty, **options)
    torch.testing.assert_close(module.loss((conditions, targets), **options), expected)


def test_scores_of_batches_are_weighted_means_over_their_conditions():
    module, targets, members = make_module().eval(), make_targets(15), make_members()
    whole = scores(module(Conditions.of(members)).detach(), targets)
    expected = {name: value / float(targets.weight.sum()) for name, value in whole.items()}
    parts = [
        (Conditions.of([members[i] for i in rows]), targets[torch.tensor(list(rows))])
        for rows in (range(7), range(7, 15))
    ]
    assert module.evaluate(parts) == pytest.approx(expected, rel=1e-4)


def test_training_lowers_the_loss():
    module, conditions, targets = make_module(), Conditions.of(make_members()), make_targets(15)
    targets = Targets(**{**targets.__dict__, "variance": 0 * targets.variance, "prior": 0 * targets.prior})
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = module.loss((conditions, targets), loss="squared")
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


# ---- running statistics


def trained_on(module, members, rng):
    torch.manual_seed(rng)
    for _ in range(3):
        module.train()(Conditions.of(members, weight=(torch.rand(len(members)) + 0.5).tolist()))
    return module


@pytest.mark.parametrize("compat", [True, False])
def test_refreshed_statistics_follow_from_parameters_and_agreed_conditions_alone(compat):
    one = make_module(uncertainty="published", compat=compat)
    for table in (one.gene_embedding, one.gene_position, one.perturbation_embedding):
        torch.nn.init.uniform_(table.weight, -0.1, 0.1)  # nothing to shorten
    other, agreed = copy.deepcopy(one), Conditions.of(make_members())
    for module, members in ((one, make_members(5)), (other, [(7,), (8, 9)])):
        trained_on(module, members, len(members))
        module.set_agreed(agreed)
    assert not torch.allclose(one.base_norm.running_mean, other.base_norm.running_mean)
    one.refresh(), other.refresh()
    assert_close_states(buffers(one), buffers(other), rtol=0, atol=0)
    once = copy.deepcopy(buffers(one))
    one.refresh()
    assert_close_states(buffers(one), once, rtol=0, atol=0)
    one.set_agreed(Conditions.of(make_members(5)))
    one.refresh()
    assert not torch.allclose(buffers(one)["base_norm.running_mean"], once["base_norm.running_mean"])


def test_refreshed_statistics_make_evaluation_what_training_on_the_agreed_conditions_was():
    module, agreed = make_module(n_genes=300), Conditions.of(make_members(40))
    module.set_agreed(agreed)
    module.refresh()
    module.train()
    in_training = copy.deepcopy(module)(agreed)
    in_evaluation = module.eval()(agreed)
    # but for n / (n - 1) in running variances
    assert torch.corrcoef(torch.stack([in_training.ravel(), in_evaluation.ravel()]))[0, 1] > 0.999


@pytest.mark.parametrize("training", [True, False])
def test_refreshing_leaves_parameters_momenta_and_mode(training):
    module = make_module(rng=1).train(training)
    for table in (module.gene_embedding, module.gene_position, module.perturbation_embedding):
        torch.nn.init.uniform_(table.weight, -0.1, 0.1)  # nothing to shorten
    parameters = {name: p.detach().clone() for name, p in module.named_parameters()}
    module.set_agreed(Conditions.of(make_members()))
    module.refresh()
    assert module.training is module.base_norm.training is training
    assert {m.momentum for m in module.modules() if isinstance(m, WeightedBatchNorm)} == {0.1}
    assert_close_states(dict(module.named_parameters()), parameters, rtol=0, atol=0)
    assert all(p.grad is None for p in module.parameters())


def test_without_agreed_conditions_there_is_nothing_to_refresh():
    module = make_module()
    before = copy.deepcopy(buffers(module))
    module.refresh()
    assert_close_states(buffers(module), before, rtol=0, atol=0)


# ---- keys


def keyed_twin(module, key):
    """A network with the key inside that holds the locked state of a plain one."""
    twin = keyed(copy.deepcopy(module), generator=torch.Generator().manual_seed(2))
    set_key(twin, key.coordinates)
    state = {**twin.state_dict(), **module.state_dict()}
    twin.load_state_dict(lock(twin, state))
    return twin


def correlation(one, other):
    return float(torch.corrcoef(torch.stack([one.ravel(), other.ravel()]))[0, 1])


def test_tables_and_layers_are_keyed_all():
    twin = keyed(make_module(covariates={"line": ["a", "b"]}, uncertainty="gaussian"))
    layers = keyed_layers(twin)
    weights = {name.removesuffix(".weight") for name, p in twin.named_parameters() if name.endswith(".weight")}
    norms = {name for name, module in twin.named_modules() if isinstance(module, WeightedBatchNorm)}
    assert weights - norms == set(layers)
    assert sum(isinstance(layer, CoordinateTable) for layer in layers.values()) == 6


@pytest.mark.parametrize("options", [{}, {"uncertainty": "published", "covariates": {"line": ["a", "b"]}}], ids=str)
def test_with_its_key_the_network_computes_what_the_plain_one_computes(key, options):
    module, members = make_module(**options), make_members()
    levels = [[i % 2] for i in range(len(members))] if "covariates" in options else None
    conditions = Conditions.of(members, covariates=levels)
    module.set_agreed(conditions)
    twin = keyed_twin(module, key)
    torch.testing.assert_close(twin(conditions), module(conditions), rtol=1e-4, atol=1e-4)
    for network in (module, twin):
        network.refresh()
        network.eval()
    expected, spread = module.change_and_spread(conditions)
    change, spread_of_twin = twin.change_and_spread(conditions)
    torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-4)
    if spread is not None:
        torch.testing.assert_close(spread_of_twin, spread, rtol=1e-4, atol=1e-4)


def test_with_a_wrong_key_or_none_it_computes_something_else(key):
    from scinfl.privacy import Key

    module, conditions = make_module(), Conditions.of(make_members())
    module.set_agreed(conditions)
    twin = keyed_twin(module, key)
    for network in (module, twin):
        network.refresh()
        network.eval()
    right = module(conditions).detach()
    assert correlation(twin(conditions).detach(), right) > 0.9999
    for number in range(5):
        set_key(twin, Key(bytes(range(100 + number, 132 + number)), federation="guess").coordinates)
        twin.refresh()
        wrong = twin(conditions).detach()
        assert abs(correlation(wrong, right)) < 0.3
        assert (wrong - right).norm() > 0.7 * right.norm()
    clear_key(twin)
    twin.refresh()
    stripped = twin(conditions).detach()
    assert abs(correlation(stripped, right)) < 0.3
    assert (stripped - right).norm() > 0.7 * right.norm()


def test_the_fused_way_takes_the_key_along(key, monkeypatch):
    """Gradients of the locked weights are those of the long way through the keyed layers."""
    twin, conditions = keyed_twin(make_module().double(), key).double(), Conditions.of(make_members())
    set_key(twin, key.coordinates)
    long = copy.deepcopy(twin)
    set_key(long, key.coordinates)
    error = torch.randn(15, 60, dtype=torch.float64)
    result = twin(conditions)
    (result * error).sum().backward()
    monkeypatch.setattr(gears, "folded", lambda layer: None)
    expected = long(conditions)
    (expected * error).sum().backward()
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)
    for name, parameter in long.named_parameters():
        got = twin.get_parameter(name).grad
        if parameter.grad is not None and got is not None:
            torch.testing.assert_close(got, parameter.grad, rtol=1e-7, atol=1e-9)
    assert twin.pair_mlp.linears[0].weight.grad.abs().max() > 0
