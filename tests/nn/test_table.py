"""Tables of rows that belong to names: what a key does to them, and what must not leave them."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from scinfl.nn import (
    CoordinateLinear,
    CoordinateTable,
    Table,
    at_boundary,
    clear_key,
    folded,
    keyed,
    keyed_layers,
    lock,
    set_key,
    unkeyed,
    unlock,
)

GENES = [f"gene_{i}" for i in range(40)]


class Network(nn.Module):
    """An embedding, a layer and a read-out."""

    def __init__(self, genes=GENES) -> None:
        super().__init__()
        self.embedding = Table(genes, 6, max_norm=1.0)
        self.layer = nn.Linear(6, 6)
        self.readout = Table(genes, 7, std=[*[0.3] * 6, 2.0])

    def forward(self):
        own = self.readout()
        return (torch.tanh(self.layer(self.embedding())) * own[:, :-1]).sum(1) + own[:, -1]


def make_network(genes=GENES, **options):
    torch.manual_seed(0)
    return keyed(Network(genes), generator=torch.Generator().manual_seed(1), **options)


def make_table(key, genes=GENES, n_columns=6, *, dtype=torch.float64, max_norm=None, **options) -> CoordinateTable:
    torch.manual_seed(0)
    table = Table(genes, n_columns, max_norm=max_norm)
    table = CoordinateTable(table, generator=torch.Generator().manual_seed(3), **options).to(dtype)
    table.set_coordinates(key.coordinates, "table")
    return table


def naive_reading(table, key, name="table"):
    """The formulas of the docstring, row by row."""
    theta = [p.detach().numpy().astype(float) for p in table.meta.parameters()]

    def meta(c):
        h = np.sin(30 * (theta[0] @ c + theta[1]))
        h = np.sin(30 * (theta[2] @ h + theta[3]))
        return theta[4] @ h + theta[5]

    def standardised(values):
        values = np.array(values)
        return (values - values.mean(0)) / values.std(0)

    n_rows, n_columns = table.weight.shape
    rows = key.coordinates(f"{name}/rows", (n_rows, 1 + n_columns + 4), table.row_names)
    at_rows = standardised([meta(c) for c in rows[:, 1 + n_columns :]])[:, 0]
    at_columns = standardised([meta(c) for c in key.coordinates(f"{name}/columns", (n_columns, 4))])[:, 1]
    magnitude = np.exp(0.25 * np.tanh(at_rows)[:, None] + 0.25 * np.tanh(at_columns))
    position = [int((rows[:, 0] < rows[g, 0]).sum()) for g in range(n_rows)]
    return position, np.where(rows[:, 1 : 1 + n_columns] < 0, -1, 1), magnitude


# ---- without a key


def test_a_table_is_its_parameter_in_the_order_of_its_names():
    table = Table(["a", "b", "c"], 4)
    assert table() is table.weight
    assert table.row_names == ["a", "b", "c"]
    assert repr(table) == "Table(3, 4)"


def test_initial_values_have_the_wanted_deviation_one_for_all_or_one_a_column():
    torch.manual_seed(0)
    names = list(map(str, range(4000)))
    torch.testing.assert_close(Table(names, 2, std=0.1).weight.std(0), torch.full((2,), 0.1), rtol=0.05, atol=0)
    by_column = torch.tensor([0.5, 3.0])
    torch.testing.assert_close(Table(names, 2, std=[0.5, 3.0]).weight.std(0), by_column, rtol=0.05, atol=0)


def test_long_rows_are_shortened_in_place_like_those_of_torchs_embedding():
    torch.manual_seed(0)
    table, twin = Table(GENES, 3, max_norm=1.0), nn.Embedding(40, 3, max_norm=1.0)
    with torch.no_grad():
        table.weight.mul_(0.6)
        twin.weight.copy_(table.weight)
    before = table.weight.detach().clone()
    error = torch.randn(40, 3)
    (table() * error).sum().backward()
    (twin(torch.arange(40)) * error).sum().backward()
    torch.testing.assert_close(table.weight, twin.weight, rtol=1e-6, atol=0)
    torch.testing.assert_close(table.weight.grad, twin.weight.grad)
    short = before.norm(dim=1) <= 1
    assert 5 < int(short.sum()) < 35
    assert torch.equal(table.weight[short], before[short])
    assert table.weight.norm(dim=1).max() <= 1


def test_rows_without_a_bound_are_left_as_long_as_they_are():
    table = Table(GENES, 3, std=10.0)
    before = table.weight.detach().clone()
    table()
    assert torch.equal(table.weight, before)


# ---- with a key


def test_the_rows_that_are_read_are_the_formula(key):
    table = make_table(key)
    position, signs, magnitude = naive_reading(table, key)
    expected = signs * magnitude * table.weight.detach().numpy()[position]
    np.testing.assert_allclose(table().detach().numpy(), expected, rtol=1e-6)
    assert sorted(position) == list(range(40))
    assert 0.35 < (signs > 0).mean() < 0.65
    assert np.exp(-0.5) <= magnitude.min() < 0.8
    assert 1.2 < magnitude.max() <= np.exp(0.5)


def test_the_keyed_table_reads_what_the_unlocked_plain_one_holds(key):
    table = make_table(key)
    plain, none = table.unlock(table.weight)
    assert none is None
    torch.testing.assert_close(table(), plain, rtol=1e-12, atol=1e-12)
    network = make_network()
    set_key(network, key.coordinates)
    twin = Network()
    twin.load_state_dict({n: v for n, v in unlock(network, network.state_dict()).items() if "meta" not in n})
    torch.testing.assert_close(network(), twin(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_lock_and_unlock_are_inverse(key, dtype, tolerance):
    table = make_table(key, dtype=dtype)
    weight = torch.randn(40, 6, dtype=dtype)
    for there, back in ((table.lock, table.unlock), (table.unlock, table.lock)):
        result, _ = back(there(weight)[0])
        assert result.dtype == dtype
        torch.testing.assert_close(result, weight, rtol=tolerance, atol=tolerance)


def test_averages_of_locked_tables_are_locked_averages(key):
    network = make_network()
    set_key(network, key.coordinates)
    names = [name for name in network.state_dict() if "meta" not in name]
    states = [{n: torch.randn_like(network.state_dict()[n]) for n in names} for _ in range(3)]
    shares = [0.2, 0.5, 0.3]
    locked = [lock(network, state) for state in states]
    mean = {n: sum(w * s[n] for w, s in zip(shares, states, strict=True)) for n in names}
    for name, value in lock(network, mean).items():
        expected = sum(w * s[name] for w, s in zip(shares, locked, strict=True))
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(locked[0]["readout.weight"], states[0]["readout.weight"])


def test_gradients_are_those_of_the_plain_table_in_other_coordinates(key):
    table = make_table(key)
    plain = table.unlock(table.weight)[0].requires_grad_()
    error = torch.randn(40, 6, dtype=torch.float64)
    (table().square() * error).sum().backward()
    (plain.square() * error).sum().backward()
    position, signs, magnitude = naive_reading(table, key)
    expected = np.empty((40, 6))
    expected[position] = signs * magnitude * plain.grad.numpy()
    np.testing.assert_allclose(table.weight.grad.numpy(), expected, rtol=1e-6)


def test_the_bound_on_the_norm_holds_for_the_rows_that_are_read(key):
    table = make_table(key, max_norm=1.0)
    with torch.no_grad():
        table.weight.mul_(0.5)
    plain = Table(GENES, 6, max_norm=1.0).double()
    plain.load_state_dict({"weight": table.unlock(table.weight)[0]})
    assert 5 < int((plain.weight.norm(dim=1) > 1).sum()) < 35
    torch.testing.assert_close(table(), plain(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(table.weight, table.lock(plain.weight)[0], rtol=1e-12, atol=1e-12)


def test_without_a_key_something_else_is_read_that_has_nothing_to_do_with_it(key):
    from scinfl.privacy import Key

    genes = [f"gene_{i}" for i in range(500)]
    table = make_table(key, genes, 12)
    right = table().detach().numpy().ravel()
    table.set_coordinates(Key(bytes(range(100, 132)), federation="guess").coordinates, "table")
    guessed = table().detach().numpy().ravel()
    table.clear_coordinates()
    stripped = table().detach().numpy().ravel()
    np.testing.assert_array_equal(stripped, table.weight.detach().numpy().ravel())
    for wrong in (guessed, stripped):
        assert abs(np.corrcoef(right, wrong)[0, 1]) < 0.05
        assert abs(np.corrcoef(np.abs(right), np.abs(wrong))[0, 1]) < 0.05


def test_a_stripped_table_with_a_bound_keeps_what_it_stores(key):
    table = make_table(key, max_norm=1.0)
    table.clear_coordinates()
    before = table.weight.detach().clone()
    read = table()
    assert torch.equal(table.weight, before)
    torch.testing.assert_close(read, nn.functional.normalize(before) * before.norm(dim=1, keepdim=True).clamp_max(1))


def test_sites_whose_genes_are_in_another_order_store_the_same_rows(key):
    one, shuffled = make_table(key), np.random.default_rng(0).permutation(40)
    other = make_table(key, [GENES[i] for i in shuffled])
    plain = torch.randn(40, 6, dtype=torch.float64)
    torch.testing.assert_close(one.lock(plain)[0], other.lock(plain[shuffled])[0], rtol=1e-12, atol=1e-12)


def test_in_other_company_a_gene_keeps_its_signs_and_its_place_among_the_others(key):
    both = make_table(key, [*(f"other_{i}" for i in range(25)), *reversed(GENES)])
    alone = make_table(key)
    position, signs, _ = naive_reading(alone, key)
    in_company, signs_in_company, _ = naive_reading(both, key)
    own = list(reversed(range(25, 65)))  # rows of GENES, in their order
    scale, scale_in_company = alone._read().scale.numpy(), both._read().scale.numpy()[own]
    np.testing.assert_array_equal(np.sign(scale), signs)
    np.testing.assert_array_equal(np.sign(scale_in_company), signs)
    np.testing.assert_array_equal(signs_in_company[own], signs)
    np.testing.assert_array_equal(alone._read().position.numpy(), position)
    np.testing.assert_array_equal(both._read().position.numpy(), in_company)
    np.testing.assert_array_equal(np.argsort(np.array(in_company)[own]), np.argsort(position))
    assert not np.allclose(np.abs(scale), np.abs(scale_in_company))  # magnitudes are standardised over the company
    assert np.corrcoef(np.log(np.abs(scale)).mean(1), np.log(np.abs(scale_in_company)).mean(1))[0, 1] > 0.8


# ---- in a network


def test_the_scheme_of_coordinates_keys_tables_and_gives_them_back(key):
    network, plain = make_network(), Network()
    kinds = {name: type(layer) for name, layer in keyed_layers(network).items()}
    assert kinds == {"embedding": CoordinateTable, "layer": CoordinateLinear, "readout": CoordinateTable}
    parameters = {name: parameter for name, parameter in network.named_parameters() if "meta" not in name}
    before = network()
    set_key(network, key.coordinates)
    with_key = network()
    assert not torch.allclose(before, with_key)
    effective = unlock(network, network.state_dict())
    network = unkeyed(network)
    assert not keyed_layers(network)
    assert set(network.state_dict()) == set(plain.state_dict())
    assert type(network.embedding) is type(network.readout) is Table
    assert network.embedding.row_names == GENES
    assert (network.embedding.max_norm, network.readout.max_norm) == (1.0, None)
    assert all(network.get_parameter(name) is parameter for name, parameter in parameters.items())
    torch.testing.assert_close(network.readout.std, plain.readout.std)
    network.load_state_dict({name: effective[name] for name in network.state_dict()})
    torch.testing.assert_close(network(), with_key, rtol=1e-4, atol=1e-5)
    again = keyed(network)
    assert {name: type(layer) for name, layer in keyed_layers(again).items()} == kinds


@pytest.mark.parametrize("scheme", ["permuted", "pooled"])
def test_the_published_schemes_leave_tables_alone(scheme):
    network = make_network(scheme=scheme)
    assert list(keyed_layers(network)) == ["layer"]
    assert type(network.embedding) is Table
    with pytest.raises(ValueError, match=r"among the linear layers .* found \['readout'\]"):
        make_network(scheme=scheme, layers=["readout"])


def test_tables_can_be_named_among_the_layers():
    network = make_network(layers=["readout"])
    assert list(keyed_layers(network)) == ["readout"]
    assert type(network.layer) is nn.Linear
    with pytest.raises(ValueError, match=r"'embedding', 'layer', 'readout'.* found \['nothing'\]"):
        make_network(layers=["nothing"])
    lone = keyed(Table(GENES, 3))
    assert isinstance(lone, CoordinateTable)
    assert type(unkeyed(lone)) is Table


def test_options_reach_the_table():
    table = make_network(magnitude=0.1, n_dims=2).readout
    assert (table.magnitude, table.n_dims) == (0.1, 2)
    assert table.meta.weight1.shape == (32, 2)


def test_a_table_cannot_be_folded_into_a_linear_map(key):
    assert folded(make_table(key)) is None
    assert folded(Table(GENES, 3)) is None


def test_coordinates_are_needed_to_lock(key):
    table = make_table(key)
    table.clear_coordinates()
    with pytest.raises(RuntimeError, match="set_key"):
        table.lock(table.weight)


def test_precision_follows_the_network(key):
    network = make_network()
    set_key(network, key.coordinates)
    single = network()
    double = network.double()()
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)


# ---- the meta learner, trained


def test_a_trained_read_out_gets_gradients_and_the_rest_of_theta_none(key):
    network = make_network(train_meta=True)
    set_key(network, key.coordinates)
    assert not network.readout.at_boundary
    assert not at_boundary(network)
    network().square().sum().backward()
    trained = {name for name, p in network.readout.named_parameters() if p.grad is not None}
    assert trained == {"weight", "meta.weight3", "meta.bias3"}
    assert network.readout.meta.weight3.grad.abs().max() > 0
    frozen = make_network()
    set_key(frozen, key.coordinates)
    assert frozen.readout.at_boundary
    frozen().square().sum().backward()
    assert {name for name, p in frozen.readout.named_parameters() if p.grad is not None} == {"weight"}


def test_a_trained_read_out_is_read_again_and_signs_stay(key):
    frozen, trained = make_table(key), make_table(key, train_meta=True)
    torch.testing.assert_close(trained(), frozen(), rtol=1e-12, atol=1e-12)
    signs = torch.sign(frozen._read().scale)
    with torch.no_grad():
        trained.meta.weight3.mul_(1000).add_(3 * torch.randn_like(trained.meta.weight3))
    assert not torch.allclose(trained(), frozen())
    torch.testing.assert_close(trained(), trained.unlock(trained.weight)[0], rtol=1e-12, atol=1e-12)
    assert torch.equal(torch.sign(trained._read().scale), signs)
    assert 0.1 < trained._read().scale.abs().log().std() < 0.4


# ---- what must not leave


def secret_chunks(network, key) -> list[bytes]:
    """Everything that is derived from the key in the tables of a network, as byte strings to look for."""
    chunks = []
    for name, layer in keyed_layers(network).items():
        if not isinstance(layer, CoordinateTable):
            continue
        layer.set_coordinates(key.coordinates, name)
        reading = layer._read()
        signs = torch.sign(reading.scale)
        values = [*layer._coordinates.values(), *reading, reading.scale.T, 1 / reading.scale, signs]
        for value in values:
            for form in (value.double(), value.float(), value.long(), value.to(torch.int8)):
                array = np.ascontiguousarray(form.numpy()).ravel()
                if len(np.unique(array)) > 1:  # rounded values are no secret
                    chunks.append(array[:24].tobytes())
    assert len(chunks) > 20
    return chunks


def test_no_coordinate_or_sign_is_in_states_pickles_texts_or_copies(key):
    network = make_network()
    clean, chunks = pickle.dumps(network), secret_chunks(network, key)
    set_key(network, key.coordinates)
    network()
    file = io.BytesIO()
    torch.save(network, file)
    texts = [pickle.dumps(network), file.getvalue(), pickle.dumps(network.state_dict()), repr(network).encode()]
    for text in texts:
        assert not any(chunk in text for chunk in chunks)
    assert len(texts[0]) == len(clean)
    assert "is_set=True" in repr(network.readout)
    assert not any(name in repr(network) for name in ("gene_0", "tensor"))
    for twin in (
        copy.deepcopy(network),
        nn.Sequential(copy.copy(network.readout)),
        pickle.loads(pickle.dumps(network)),
    ):
        assert not any(layer.is_set for layer in keyed_layers(twin).values())
        assert not any(layer._reading for layer in keyed_layers(twin).values())
        assert not any(chunk in pickle.dumps(twin) for chunk in chunks)
    parts = ("weight", *(f"meta.{m}{k}" for m in ("weight", "bias") for k in (1, 2, 3)))
    assert {name for name in network.state_dict() if "layer" not in name} == {
        f"{table}.{part}" for table in ("embedding", "readout") for part in parts
    }
    assert not list(network.buffers())


def test_the_search_finds_what_a_buffer_would_leak(key):
    network = make_network()
    chunks = secret_chunks(network, key)
    for leak in (
        network.readout._read().scale,
        torch.sign(network.readout._read().scale),
        network.readout._read().name,
    ):
        leaking = copy.deepcopy(network)
        leaking.register_buffer("leak", leak.clone(), persistent=False)
        assert any(chunk in pickle.dumps(leaking) for chunk in chunks)


def test_a_cleared_key_leaves_nothing_behind(key):
    network = make_network()
    set_key(network, key.coordinates)
    network()
    clear_key(network)
    assert network.readout._coordinates is None
    assert network.readout._reading is None
