"""Offsets hide every parameter, and change nothing for who has the key."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import nn

from scinfl.nn import (
    Table,
    WeightedBatchNorm,
    add_offsets,
    hidden,
    keyed,
    keyed_layers,
    lock,
    new_model_id,
    set_key,
    set_model_id,
    unkeyed,
    unlock,
    with_plain_norms,
)
from scinfl.privacy import Key

ID = "0" * 32


class Network(nn.Module):
    """Every kind of module that has parameters in the models of scinfl."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(9, 8), nn.LayerNorm(8), nn.Linear(8, 3, bias=False)
        self.batch, self.rows = nn.BatchNorm1d(8), WeightedBatchNorm(8)
        self.table = Table([f"gene_{k}" for k in range(8)], 8, max_norm=1.0)
        self.readout = Table([f"gene_{k}" for k in range(3)], 2, std=[0.5, 0.1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.norm(self.first(x)) @ self.table())
        return self.last(self.rows(self.batch(h))) @ self.readout()


def make(key, model_id=ID, *, dtype=torch.float32, **options):
    """A plain network, and the keyed one that holds the same, locked."""
    torch.manual_seed(0)
    plain = Network().to(dtype).eval()
    with torch.no_grad():
        for module in (plain.norm, plain.batch, plain.rows):
            module.weight.add_(0.1 * torch.randn(8))
            module.bias.add_(0.1 * torch.randn(8))
    plain.table()  # shortens nothing in evaluation
    network = keyed(copy.deepcopy(plain), generator=torch.Generator().manual_seed(1), **options).to(dtype).eval()
    set_key(network, key.coordinates)
    state = lock(network, network.state_dict())
    set_model_id(network, model_id)
    set_key(network, key.coordinates)
    network.load_state_dict(add_offsets(network, state))
    return plain, network


@pytest.mark.parametrize("options", [{}, {"train_meta": True}], ids=["frozen", "trained meta"])
def test_every_shared_parameter_is_hidden_and_the_right_key_computes_the_same(key, options):
    plain, network = make(key, **options)
    x = torch.randn(50, 9)
    torch.testing.assert_close(network(x), plain(x), rtol=0, atol=1e-6)
    stored = dict(network.named_parameters())
    shared = {name for name, p in stored.items() if p.requires_grad}
    offsets = {f"{name}.{what}": o for name, module in hidden(network).items() for what, o in module.offsets().items()}
    assert shared == set(offsets)
    bare = add_offsets(network, stored, sign=-1)
    for name in shared:
        spread = (bare[name] - (1 if "weight" in name and bare[name].ndim == 1 else 0)).square().mean().sqrt()
        assert offsets[name].square().mean().sqrt() > 100 * spread, name
    wrong = copy.deepcopy(network)
    set_key(wrong, Key.generate().coordinates)
    assert (wrong(x) - plain(x)).abs().mean() > 5 * plain(x).abs().mean()
    assert (unkeyed(copy.deepcopy(network))(x) - plain(x)).abs().mean() > 5 * plain(x).abs().mean()


def reach(spread):
    return 2.0 ** (10 + np.ceil(np.log2(spread)))


def folded_back(values, limit):
    """Numbers modulo an interval around zero, by the definition."""
    return (values + limit) % (2 * limit) - limit


def test_what_is_stored_is_the_formula_of_the_docstring(key):
    plain, network = make(key)
    layer = network.first
    limit = reach(1 / np.sqrt(3 * 9))
    offset = limit * key.coordinates(f"first/offset of weight/{ID}/(8, 9)", (8, 9))
    np.testing.assert_allclose(layer.offsets()["weight"].numpy(), offset, rtol=0, atol=limit * 2**-51)
    x = torch.randn(4, 9)
    order = layer._read_units().permutation
    s_in, s_out, shift = layer._read()
    weight = torch.from_numpy(folded_back(layer._parameters["weight"].detach().numpy() - offset, limit))
    offset = limit * key.coordinates(f"first/offset of bias/{ID}/(8,)", (8,))
    bias = torch.from_numpy(folded_back(layer._parameters["bias"].detach().numpy() - offset, limit))
    y = s_out * ((s_in * x[:, order]) @ weight.T) + bias + shift
    torch.testing.assert_close(layer(x), y.float())

    scale = reach(0.1) * key.coordinates(f"norm/offset of weight/{ID}/(8,)", (8,))
    stored = network.norm._parameters["weight"].detach().numpy()
    expected = folded_back(plain.norm.weight.detach().numpy() + scale, reach(0.1))
    np.testing.assert_allclose(stored, expected, rtol=0, atol=reach(0.1) * 2**-50)

    position = np.argsort(key.coordinates("table/rows", (8, 13), network.table.row_names)[:, 0], kind="stable")
    rows = key.coordinates(f"table/offset of weight/{ID}/(8,)", (8, 8), network.table.row_names)
    limit = reach(1 / np.sqrt(8))
    np.testing.assert_allclose(network.table.offsets()["weight"], limit * rows[position], rtol=0, atol=limit * 2**-51)


@pytest.mark.parametrize("size", [0.0, 1e-6, 1.0, 30.0, 900.0])
def test_a_stored_parameter_is_uniform_whatever_it_hides(key, size):
    """One-time pad: the same distribution for a parameter of zeros and for one that training took far."""
    layer = keyed(nn.Linear(100, 50))
    spread = 1 / np.sqrt(3 * 100)
    with torch.no_grad():
        layer.weight.copy_(size * spread * torch.sign(torch.randn(50, 1)))  # rank one
    set_model_id(layer, ID)
    set_key(layer, key.coordinates)
    limit = reach(spread)
    stored = add_offsets(layer, layer.state_dict())["weight"].numpy()
    assert np.abs(stored).max() <= limit
    assert kstest(stored.ravel(), "uniform", args=(-limit, 2 * limit)).pvalue > 1e-4
    assert kstest(stored.sum(0) * np.sqrt(3 / 50) / limit, "norm").pvalue > 1e-4  # nothing common to a column


def test_the_mean_of_many_files_shows_nothing(key):
    """Four hundred versions under one key: with offsets 30 times as large as the weights, their mean shows these."""
    layer = keyed(nn.Linear(40, 30))
    set_key(layer, key.coordinates)
    plain = layer.weight.detach().clone()
    mean, n_files = torch.zeros(30, 40, dtype=torch.float64), 400
    for _ in range(n_files):
        set_model_id(layer, new_model_id())
        set_key(layer, key.coordinates)
        mean += add_offsets(layer, {"weight": plain})["weight"] / n_files
    limit = reach(1 / np.sqrt(3 * 40))
    assert kstest((mean * np.sqrt(3 * n_files) / limit).ravel(), "norm").pvalue > 1e-4
    assert abs(np.corrcoef(mean.ravel(), plain.ravel())[0, 1]) < 5 / np.sqrt(1200)


def test_labels_of_offsets_name_the_shape(key):
    """Else a wider layer of the same name would begin with the stream of a narrower one."""
    offsets = []
    for n_outputs in (5, 8):
        layer = keyed(nn.Linear(4, n_outputs))
        set_model_id(layer, ID)
        set_key(layer, key.coordinates)
        offsets.append(layer.offsets()["weight"].ravel()[:20])
    assert abs(np.corrcoef(*offsets)[0, 1]) < 0.9
    assert not torch.equal(*offsets)


def test_a_parameter_beyond_what_can_be_stored_is_cut_off_with_a_warning(key):
    layer = keyed(nn.Linear(3, 2))
    set_model_id(layer, ID)
    set_key(layer, key.coordinates)
    weight = torch.tensor([[1.0, -1e6, 0.5], [1e6, 0.0, 2.0]])
    with pytest.warns(UserWarning, match="parameter 'weight' to stay below 1,024 times.*lower learning rate"):
        hides = add_offsets(layer, {"weight": weight})
    limit = reach(1 / 3)
    found = add_offsets(layer, hides, sign=-1)["weight"]
    torch.testing.assert_close(found, weight.clamp(-limit, limit).float())


def test_in_network_and_boundary_forms_are_equal_and_lock_and_unlock_inverse(key):
    plain, network = make(key, dtype=torch.float64)
    state = {name: p for name, p in network.named_parameters() if p.requires_grad}
    opened = unlock(network, state)
    for name, value in plain.named_parameters():
        torch.testing.assert_close(opened[name], value, rtol=0, atol=1e-11)
    again = lock(network, opened)
    for name, value in state.items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=1e-11)
    x = torch.randn(20, 9, dtype=torch.float64)
    torch.testing.assert_close(network(x), plain(x), rtol=0, atol=1e-11)
    weight, bias = network.first.folded()
    torch.testing.assert_close(weight, plain.first.weight, rtol=0, atol=1e-11)
    torch.testing.assert_close(bias, plain.first.bias, rtol=0, atol=1e-11)


def test_what_was_hidden_once_comes_out_to_the_last_bit_under_any_id(key):
    plain, network = make(key)
    first = add_offsets(network, network.state_dict(), sign=-1)
    for name, value in unlock(network, dict(network.named_parameters())).items():
        spread = 1.0 if "norm" in name or value.ndim == 1 else float(value.std())
        error = value - dict(plain.named_parameters())[name] if name in dict(plain.named_parameters()) else value * 0
        assert error.abs().max() < 1e-6 * spread, name
    state = first
    for _ in range(3):
        set_model_id(network, new_model_id())
        set_key(network, key.coordinates)
        state = add_offsets(network, add_offsets(network, state), sign=-1)
    assert all(torch.equal(state[name], value) for name, value in first.items())


def test_what_is_behind_offsets_is_stored_in_double_and_computed_with_in_single_precision(key):
    _, network = make(key)
    hides = [f"{name}.{what}" for name, module in hidden(network).items() for what in module.offsets()]
    stored = dict(network.named_parameters())
    assert {stored[name].dtype for name in hides} == {torch.float64}
    x = torch.randn(5, 9)
    for form in (network, copy.deepcopy(network), unkeyed(copy.deepcopy(network))):  # with the key, without, stripped
        with torch.inference_mode():
            assert form(x).dtype == torch.float32
    assert {p.dtype for p in unkeyed(copy.deepcopy(network)).parameters()} == {torch.float32}
    assert network.double()(x.double()).dtype == torch.float64
    set_model_id(network, None)
    assert {p.dtype for p in network.float().parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_change_of_precision_does_not_cut_what_is_stored(key, dtype):
    _, network = make(key)
    x = torch.randn(5, 9)
    before = network(x)
    network.to(dtype)
    assert {network.first.weight.dtype, network.norm._parameters["weight"].dtype} == {torch.float64}
    tolerance = 0 if dtype == torch.float32 else 1e-3  # of the meta learner
    torch.testing.assert_close(network.float()(x), before, rtol=0, atol=tolerance)


def test_what_predictions_keep_of_the_key_follows_the_parameters_and_goes_with_the_key(key):
    plain, network = make(key)
    x = torch.randn(5, 9)
    with torch.inference_mode():
        torch.testing.assert_close(network(x), plain(x), rtol=0, atol=1e-6)
    kept = network.first._kept[1][0]
    torch.testing.assert_close(kept, plain.first.weight, rtol=0, atol=1e-7)
    assert all(module._kept is None for module in hidden(copy.deepcopy(network)).values())
    assert not any(kept.numpy().tobytes()[:32] in text for text in (pickle.dumps(network), repr(network).encode()))
    with torch.no_grad():
        before = network(x)
        network.first.weight.add_(1.0)
        assert not torch.allclose(network(x), before)
    for module in hidden(network).values():
        module.clear_coordinates()
        assert module._kept is None


def test_two_versions_under_one_key_share_no_offset(key):
    _, first = make(key)
    _, second = make(key, new_model_id())
    for name, module in hidden(first).items():
        for what, offset in module.offsets().items():
            other = second.get_submodule(name).offsets()[what]
            if offset.numel() > 20:
                assert abs(np.corrcoef(offset.ravel(), other.ravel())[0, 1]) < 5 / np.sqrt(offset.numel())
    a, b = (n.first._parameters["weight"] for n in (first, second))
    plain = first.first.folded()[0]
    assert (a - b).std() > 10 * plain.std()


def test_rows_of_a_table_keep_their_offsets_in_any_order(key):
    names = [f"gene_{k}" for k in range(20)]
    stored = []
    for order in (np.arange(20), np.random.default_rng(0).permutation(20)):
        network = nn.ModuleDict({"t": Table([names[k] for k in order], 4)})
        table = keyed(network, generator=torch.Generator().manual_seed(1))
        set_model_id(table, ID)
        set_key(table, key.coordinates)
        rows = torch.arange(20.0)[torch.from_numpy(order)][:, None].expand(20, 4)
        stored.append(lock(table, {"t.weight": rows})["t.weight"])
    torch.testing.assert_close(*stored)


def test_a_network_that_is_trained_with_the_key_inside_holds_no_offsets(key):
    plain, network = make(key, train_meta=True)
    inside = with_plain_norms(copy.deepcopy(network))
    set_model_id(inside, None)
    inside.load_state_dict(add_offsets(network, network.state_dict(), sign=-1))
    set_key(inside, key.coordinates)
    assert not any(module.offsets() for module in hidden(inside).values())
    x = torch.randn(20, 9)
    torch.testing.assert_close(inside(x), plain(x), rtol=0, atol=1e-5)
    assert type(inside.norm) is nn.LayerNorm
    assert set(inside.state_dict()) == set(network.state_dict())


@pytest.mark.filterwarnings("ignore")
def test_offsets_are_in_no_state_pickle_copy_or_text(key):
    _, network = make(key)
    network(torch.randn(3, 9))
    file = io.BytesIO()
    torch.save(network, file)
    texts = [pickle.dumps(network), file.getvalue(), pickle.dumps(network.state_dict()), repr(network).encode()]
    for module in hidden(network).values():
        for offset in module.offsets().values():
            for form in (offset.float(), offset.double()):
                assert not any(form.numpy().ravel()[:8].tobytes() in text for text in texts)
    twin = copy.deepcopy(network)
    assert all(module._offsets is module._offsets_like is None for module in hidden(twin).values())
    assert twin.norm.model_id == ID  # public, so that a copy needs the key alone
    set_key(twin, key.coordinates)
    x = torch.randn(5, 9)
    torch.testing.assert_close(twin(x), network(x))
    assert not any(layer.is_set for layer in keyed_layers(pickle.loads(pickle.dumps(network))).values())


def test_training_a_table_inside_the_network_shortens_plain_rows(key):
    plain, network = make(key)
    with torch.no_grad():
        plain.table.weight.mul_(4)
        network.table.weight.copy_(network.table.lock(plain.table.weight)[0])
    torch.testing.assert_close(network.train().table(), plain.train().table(), rtol=0, atol=1e-4)
    torch.testing.assert_close(unlock(network, dict(network.named_parameters()))["table.weight"], plain.table.weight,
                               rtol=0, atol=1e-4)  # fmt: skip


def test_without_an_id_there_are_no_offsets(key):
    network = keyed(Network())
    set_key(network, key.coordinates)
    assert not any(module.offsets() for module in hidden(network).values())
