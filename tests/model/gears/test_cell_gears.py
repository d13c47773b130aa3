"""Files of parameters that cell-gears trained."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from scinfl.model.gears._cell_gears import read_cell_gears, translated
from scinfl.module import Conditions, GEARSModule

REFERENCE = np.load(Path(__file__).parents[2] / "module" / "cell_gears_reference.npz")
GENES, VOCABULARY = [f"gene_{i}" for i in range(9)], [f"gene_{i}" for i in range(5)]
MEMBERS = [(0,), (1, 2), (), (0, 3), (0,), (4,), (1, 2)]
GRAPHS = {"G_go": "ontology", "G_coexpress": "coexpression"}
N_LAYERS = {"plain": 1, "deep": 2}


def tensors_of(tag):
    prefix = f"{tag}/state/"
    return {name.removeprefix(prefix): torch.tensor(REFERENCE[name]) for name in REFERENCE if name.startswith(prefix)}


def write(path, tag="plain", names=None, drop=(), **others):
    """A file as the lines of the error message write it."""
    tensors = {name: value for name, value in {**tensors_of(tag), **others}.items() if name not in drop}
    lists = {"genes": GENES, "perturbations": VOCABULARY} if names is None else names
    save_file(tensors, path, {name: json.dumps(values) for name, values in lists.items()})
    return path


@pytest.mark.parametrize("tag", N_LAYERS)
def test_a_file_holds_all_that_a_network_of_the_same_predictions_needs(tag, tmp_path):
    found = read_cell_gears(write(tmp_path / "gears.safetensors", tag))
    assert (found.genes, found.vocabulary) == (GENES, VOCABULARY)
    n_layers = N_LAYERS[tag]
    assert found.sizes() == {"n_hidden": 4, "n_ontology_layers": n_layers, "n_coexpression_layers": n_layers}
    uncertainty = None if tag == "plain" else "published"
    module = GEARSModule(found.genes, found.vocabulary, **found.sizes(), uncertainty=uncertainty, compat=True).eval()
    module.load_state_dict(found.state)  # strict: no name is missing, and none is left over
    for name, (edges, weights) in found.graphs.items():
        module.set_graph(name, edges, weights)
    with torch.no_grad():
        change = module(Conditions.of(MEMBERS))
    np.testing.assert_allclose(change.numpy(), REFERENCE[f"{tag}/eval"], rtol=0, atol=1e-5)


def test_graphs_are_edges_and_weights_by_their_own_names(tmp_path):
    found = read_cell_gears(str(write(tmp_path / "gears.safetensors")))
    assert set(found.graphs) == set(GRAPHS.values())
    for old, new in GRAPHS.items():
        edges, weights = found.graphs[new]
        np.testing.assert_array_equal(edges.numpy(), REFERENCE[f"plain/state/{old}"])
        np.testing.assert_array_equal(weights.numpy(), REFERENCE[f"plain/state/{old}_weight"])
    assert not any(name.startswith("G_") for name in found.state)


def test_what_the_model_knows_of_itself(tmp_path):
    facts = read_cell_gears(write(tmp_path / "gears.safetensors")).facts()
    assert facts["genes"] == GENES
    assert facts["vocabulary"] == VOCABULARY
    assert facts["statistics_stored"]
    assert facts["agreed"] is None
    assert facts["covariates"] == {}


def test_read_outs_of_genes_are_joined_to_one_table_each():
    state, old = translated(drop_graphs(tensors_of("plain"))), tensors_of("plain")
    torch.testing.assert_close(state["readout.weight"][:, :4], old["indv_w1"][:, :, 0])
    torch.testing.assert_close(state["readout.weight"][:, 4], old["indv_b1"][:, 0])
    torch.testing.assert_close(state["cross_readout.weight"][:, :5], old["indv_w2"][0])
    torch.testing.assert_close(state["cross_readout.weight"][:, 5], old["indv_b2"][0])


def test_parameters_that_cell_gears_never_uses_are_dropped():
    old = drop_graphs(tensors_of("plain")) | {"pert_emb_lambda": torch.ones(1)}
    state = translated(old)
    assert not any(name.split(".")[0] in {"pert_w", "bn_pert_base_trans", "pert_emb_lambda"} for name in state)
    unused = sum(name.split(".")[0] in {"pert_w", "bn_pert_base_trans", "pert_emb_lambda"} for name in old)
    assert len(state) == len(old) - unused - 2  # four read-outs became two


def drop_graphs(tensors):
    return {name: value for name, value in tensors.items() if not name.startswith("G_")}


@pytest.mark.parametrize("name", ["config.pkl", "model.pt", "folder"])
def test_pickles_are_refused_before_they_are_opened(tmp_path, name):
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "exploded",)

    path = tmp_path / name
    if name == "folder":
        path.mkdir()
        path, content = path / "model.pt", pickle.dumps(Bomb())
        path.write_bytes(content)
        path = path.parent
    else:
        path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="scinfl never reads them") as error:
        read_cell_gears(path)
    assert "save_file" in str(error.value)
    assert not (tmp_path / "exploded").exists()


def test_the_lines_of_the_error_message_write_a_file_that_is_read(tmp_path, monkeypatch):
    class Network:
        def state_dict(self):
            return drop_graphs(tensors_of("deep"))

    class GearsModel:
        gene_list, pert_list, best_model = np.array(GENES), VOCABULARY, Network()
        config = {name: value for name, value in tensors_of("deep").items() if name.startswith("G_")}  # noqa: RUF012

    with pytest.raises(FileNotFoundError, match="found none") as error:
        read_cell_gears(tmp_path / "gears.safetensors")
    lines = str(error.value).split("\n\n")[1]
    monkeypatch.chdir(tmp_path)
    exec(lines, {"gears_model": GearsModel()})
    found = read_cell_gears(tmp_path / "gears.safetensors")
    expected = translated(drop_graphs(tensors_of("deep")))
    assert set(found.state) == set(expected)
    assert all(torch.equal(found.state[name], value) for name, value in expected.items())
    assert found.genes == GENES


@pytest.mark.parametrize(
    "options",
    [
        {"drop": ["indv_w1"]},
        {"drop": ["G_go"]},
        {"drop": ["G_coexpress_weight"]},
        {"names": {}},
        {"names": {"genes": GENES}},
        {"transformer.0.weight": torch.ones(2)},
    ],
    ids=str,
)
def test_other_files_of_tensors_are_refused(tmp_path, options):
    path = write(tmp_path / "gears.safetensors", **options)
    with pytest.raises(ValueError, match="Expected parameters of cell-gears"):
        read_cell_gears(path)


@pytest.mark.parametrize("content", [b"", b"no tensors", pickle.dumps({"a": 1})])
def test_files_without_tensors_are_refused(tmp_path, content):
    path = tmp_path / "gears.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="found another file"):
        read_cell_gears(path)
    save_file({"a": torch.ones(1)}, path, {"genes": "[", "perturbations": "[]"})
    with pytest.raises(ValueError, match="found another file"):
        read_cell_gears(path)
