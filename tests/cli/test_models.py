"""Commands for models of every class, on files of every kind."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest

import scinfl as si
from scinfl._data_files import write_data
from scinfl.cli import main
from scinfl.privacy import Key


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Key(bytes(range(32)), federation="lung").save("a.key")
    return tmp_path


def run(capsys, line):
    code = main(line.split())
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_classifier_from_zarr_to_zarr_equals_the_api(folder, cells, capsys):
    write_data(cells, Path("cells.zarr"))
    train = "train cells.zarr --labels label --site site --rounds 2 --hidden 8 --early-stopping 5 --key a.key"
    code, out, _ = run(capsys, f"{train} --out run --dry-run")
    assert code == 0
    assert "hospital_0: " in out
    assert "all sites: " in out
    assert "of which the server could read" in out
    assert run(capsys, f"{train} --out run")[0] == 0
    assert run(capsys, "predict run cells.zarr --key a.key --out labelled.zarr")[0] == 0
    assert run(capsys, "embed run cells.zarr --key a.key")[0] == 0
    model = si.model.Classifier.load("run")
    model.unlock(Key.load("a.key"))
    found, embedded = ad.read_zarr("labelled.zarr"), ad.read_zarr("cells_infl.zarr")
    assert found.obs["infl_label"].tolist() == model.predict(cells).tolist()
    np.testing.assert_array_equal(embedded.obsm["X_infl"], model.get_latent_representation(cells))
    assert run(capsys, "cluster cells_infl.zarr --clusters 3 --out domains.csv")[0] == 0
    assert pd.read_csv("domains.csv", index_col=0)["infl_domain"].nunique() == 3


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_models_of_scvi_tools_train_embed_and_label(folder, cells, capsys):
    cells.X = np.random.default_rng(0).poisson(2.0, cells.shape).astype(np.float32)
    cells.write_h5ad("counts.h5ad")
    line = "train counts.h5ad --site site --rounds 1 --hidden 8 --latent 3 --key a.key --model"
    assert run(capsys, f"{line} scvi.SCVI --out vae")[0] == 0
    assert run(capsys, "embed vae counts.h5ad --key a.key --out embedded.h5ad")[0] == 0
    model = si.model.ScviModel.load("vae")
    model.unlock(Key.load("a.key"))
    embedding = ad.read_h5ad("embedded.h5ad").obsm["X_infl"]
    np.testing.assert_array_equal(embedding, model.get_latent_representation(cells))
    assert embedding.shape == (cells.n_obs, 3)
    assert model.get_latent_representation(cells[:0]).shape == (0, 3)
    assert run(capsys, f"{line} scvi.SCANVI --labels label --unlabeled none --out labels")[0] == 0
    assert run(capsys, "predict labels counts.h5ad --key a.key --out labels.csv")[0] == 0
    assert set(pd.read_csv("labels.csv")["infl_label"]) <= set(cells.obs["label"])
    for name, reason in (("AUTOZI", "number of cells"), ("SCANVI", "`--labels` and `--unlabeled`")):
        code, _, error = run(capsys, f"{line} scvi.{name} --out refused")
        assert code == 1
        assert reason in error
    with pytest.raises(SystemExit):
        main([*line.split(), "nothing", "--out", "refused"])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_gears_predicts_what_the_api_does(folder, capsys):
    adata = si.datasets.perturbseq_simulated(60, n_singles=8, n_doubles=4, n_cells=20)
    terms = adata.uns.pop("gene_terms")
    pd.Series(terms).map(list).explode().to_csv("terms.tsv", sep="\t", header=False)
    adata.write_h5ad("screen.h5ad")
    line = "train screen.h5ad --model gears --condition condition --rounds 1 --hidden 8 --ontology terms.tsv --out run"
    assert run(capsys, line)[0] == 0
    gene = next(iter(terms))
    assert run(capsys, f"predict run screen.h5ad --perturbations {gene} --out changes.csv")[0] == 0
    model = si.model.GEARS.load("run", adata)
    table = pd.read_csv("changes.csv", index_col=0)
    np.testing.assert_allclose(table.to_numpy(), model.predict_change([gene]).to_numpy(), rtol=1e-5, atol=1e-7)
    assert run(capsys, f"predict run screen.h5ad --perturbations {gene} --out mean.h5ad")[0] == 0
    np.testing.assert_allclose(ad.read_h5ad("mean.h5ad").X, model.predict([gene]).X, rtol=1e-6)
    code, _, err = run(capsys, "predict run screen.h5ad --out x.csv")
    assert code == 1
    assert "Expected `--perturbations` for a gears, found none" in err
    code, _, err = run(capsys, "embed run screen.h5ad --out x.csv")
    assert code == 1
    assert "Expected a model with an embedding, found a GEARS" in err


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_a_spamosaic_embeds_clusters_and_imputes_h5mu(folder, capsys):
    mdata = si.datasets.mosaic_simulated(n_spots=100)
    mdata.write("sections.h5mu")
    line = "train sections.h5mu --model spamosaic --section section --site site --rounds 1 --hidden 8 --key a.key"
    assert run(capsys, f"{line} --out run")[0] == 0
    assert run(capsys, "embed run sections.h5mu --key a.key --out e.h5mu")[0] == 0
    assert md.read_h5mu("e.h5mu").obsm["X_infl"].shape[0] == mdata.n_obs
    assert run(capsys, "cluster e.h5mu --clusters 4 --section section")[0] == 0
    assert md.read_h5mu("e_domains.h5mu").obs["infl_domain"].nunique() == 4
    code, _, err = run(capsys, "impute run sections.h5mu --modality adt --key a.key")
    assert code == 0, err
    assert ad.read_h5ad("sections_adt.h5ad").obs["section"].unique().tolist() == ["section_2"]
    code, _, err = run(capsys, "predict run sections.h5mu --key a.key --out x.zarr")
    assert code == 1
    assert "Use `scinfl embed`" in err


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train data.h5ad --out r", "Expected --labels (column of obs with the labels) for `--model classifier`"),
        ("train data.h5ad --labels label --section x --out r", "Expected `--section` to name a column"),
        ("train data.h5ad --labels label --section site --out r", "found --section for such data. Leave it out"),
        ("train data.h5ad --model spamosaic --section site --labels label --out r", "found --labels"),
        ("train data.h5ad --labels label --early-stopping 0 --out r", "Expected `--early-stopping` to be a whole"),
        ("train m.h5mu --labels label --out r", "found a MuData file. Take one modality"),
        ("train data.h5ad --labels label --key . --out r", "found a folder"),
        (
            "train data.h5ad --labels label --key data.h5ad --out r",
            "a scinfl key in 'data.h5ad', found something",
        ),
        ("cluster data.h5ad --clusters 3", "X_infl"),
        ("cluster data.h5ad --clusters 3 --out x.h5mu", "`--out (ending)` to be one of ['.h5ad', '.zarr', '.csv']"),
    ],
)
def test_errors_come_before_training_and_name_the_option(folder, cells, capsys, line, message):
    cells.write_h5ad("data.h5ad")
    md.MuData({"rna": cells}).write("m.h5mu")
    capsys.readouterr()
    code, _, err = run(capsys, line)
    assert code == 1
    assert message in err
    assert err.count("\n") == 1
    assert not (folder / "r").exists()


@pytest.mark.filterwarnings("ignore::UserWarning:scvi")
def test_a_model_of_scvi_tools_is_trained_mapped_onto_and_labels_cells(folder, capsys):
    generator = np.random.default_rng(0)
    types = generator.integers(2, size=120)
    obs = pd.DataFrame({"site": [f"s{i % 4}" for i in range(120)], "label": [f"t{i}" for i in types]})
    obs.index = [f"cell_{i}" for i in range(120)]
    rates = np.exp(generator.normal(0, 1, (2, 15)))[types]
    var = pd.DataFrame(index=[f"g{i}" for i in range(15)])
    cells = ad.AnnData(generator.poisson(rates).astype(np.float32), obs, var)
    new = cells[cells.obs["site"] == "s3"].copy()
    cells[cells.obs["site"] != "s3"].copy().write_h5ad("cells.h5ad")
    new.write_h5ad("new.h5ad")
    train = "train cells.h5ad --model scvi.SCANVI --labels label --unlabeled unknown --site site --rounds 2 --hidden 8"
    code, out, _ = run(capsys, f"{train} --key a.key --out run")
    assert code == 0
    assert "SCANVI of scvi-tools, 3 sites" in out
    code, out, _ = run(capsys, "map run new.h5ad --key a.key --epochs 2 --out mapped")
    assert code == 0
    assert "Nothing was sent" in out
    assert run(capsys, "predict mapped new.h5ad --key a.key --out labels.csv")[0] == 0
    model = si.model.ScviModel.load("mapped")
    model.unlock(Key.load("a.key"))
    assert model.sites == ["s0", "s1", "s2", "s3"]
    assert pd.read_csv("labels.csv", index_col=0)["infl_label"].tolist() == model.predict(new).tolist()
    code, _, err = run(capsys, "train cells.h5ad --model scvi.SysVI --site site --out other")
    assert code == 1
    assert "prior is made of cells" in err
