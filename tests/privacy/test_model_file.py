"""What files of scvi-tools hold of cells."""

from __future__ import annotations

import pickle
import zipfile

import pytest
import scvi
import torch

from scinfl.cli import main
from scinfl.privacy import inspect_model_file

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    adata = scvi.data.synthetic_iid(batch_size=30)
    scvi.model.SCANVI.setup_anndata(adata, labels_key="labels", unlabeled_category="unknown", batch_key="batch")
    scvi.model.SCANVI(adata, n_hidden=4).save(folder / "scanvi")
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    model = scvi.model.SCVI(adata, n_hidden=4)
    model.module.register_parameter("pseudoinputs", torch.nn.Parameter(torch.zeros(5, 100)))
    model.save(folder / "scvi")
    return folder


def findings(path):
    return inspect_model_file(path).set_index("entry")["finding"].to_dict()


def test_the_label_of_every_training_cell_is_found(saved):
    found = findings(saved / "scanvi")
    assert found["attr_dict.labels_"] == "one value for each of 60 training cells"
    assert any("names of labels" in finding for finding in found.values())


def test_cells_in_the_weights_are_found_and_other_weights_are_not(saved):
    found = findings(saved / "scvi" / "model.pt")
    assert found["model_state_dict.pseudoinputs"] == "values that are made of cells"
    assert "attr_dict.labels_" not in found
    assert sum(name.startswith("model_state_dict") for name in found) == 1


class _Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a file ran something",))


def test_nothing_that_a_file_names_is_run(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps({"attr_dict": {"labels_": _Bomb()}}))
    assert inspect_model_file(tmp_path).empty


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="found none"):
        inspect_model_file(tmp_path)
    (tmp_path / "model.pt").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="torch saved"):
        inspect_model_file(tmp_path)


def test_the_command_lists_what_was_found(saved, capsys):
    assert main(["audit", str(saved / "scanvi")]) == 0
    assert "attr_dict.labels_" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["cut", "no description", "garbage", "a list", "a tensor", "weights alone"])
def test_files_of_which_nothing_can_be_said_are_refused_and_not_called_clean(change, saved, tmp_path):
    path, whole = tmp_path / "odd.pt", next(iter(saved.rglob("*model.pt"))).read_bytes()
    if change == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif change in ("no description", "garbage"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("odd/data.pkl" if change == "garbage" else "odd/version", b"\x80garbage")
    else:
        content = {"a list": [1], "a tensor": torch.ones(3), "weights alone": {"weight": torch.ones(3)}}
        torch.save(content[change], path)
    with pytest.raises(ValueError, match=r"that (torch|scvi-tools) saved"):
        inspect_model_file(path)
