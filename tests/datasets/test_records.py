"""Sets that are found in the list of a record, and the cancer tables, from a server on this machine."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import zipfile

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import io as matrices
from scipy import sparse

import scinfl as si
from scinfl import datasets
from scinfl.datasets import _tcga
from scinfl.datasets._download import cache_folder
from scinfl.datasets._tcga_regions import regions

ZENODO, FIGSHARE = "/api/records/12654113", "/v2/articles/30763670"


def zip_of(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def tar_of(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("SCR/link_matrix.mtx.gz")
        link.type, link.linkname = tarfile.SYMTYPE, "../../outside"
        file.addfile(link)
    return buffer.getvalue()


def publish_at_zenodo(server, files, *, record=ZENODO, checksums=None):
    listed = []
    for number, (name, content) in enumerate(files.items()):
        md5 = (checksums or {}).get(name, hashlib.md5(content).hexdigest())
        url = f"{server.url}{record}/files/{number}/content"
        listed.append({"key": name, "size": len(content), "checksum": f"md5:{md5}", "links": {"self": url}})
        server.files[f"{record}/files/{number}/content"] = content
    server.files[record] = json.dumps({"id": 1, "files": listed}).encode()


def publish_at_figshare(server, files):
    listed = []
    for number, (name, content) in enumerate(files.items()):
        listed.append(
            {
                "id": number,
                "name": name,
                "size": len(content),
                "download_url": f"{server.url}/files/{number}",
                "computed_md5": hashlib.md5(content).hexdigest(),
                "supplied_md5": "",
            }
        )
        server.files[f"/files/{number}"] = content
    server.files[FIGSHARE] = json.dumps({"files": listed}).encode()


def section_file(tmp_path, features, n_spots, *, rng, spatial=True, **columns):
    generator = np.random.default_rng(rng)
    obs = pd.DataFrame(columns, index=[f"AAAC-{spot}" for spot in range(n_spots)])
    adata = ad.AnnData(generator.poisson(2.0, (n_spots, len(features))).astype(np.float32), obs)
    adata.var_names = features
    adata.uns["pca"] = {"x": 1}
    if spatial:
        adata.obsm["spatial"] = np.random.default_rng(rng).integers(0, 100, (n_spots, 2))
    adata.write_h5ad(tmp_path / "part.h5ad")
    return (tmp_path / "part.h5ad").read_bytes()


@pytest.fixture
def sections(tmp_path):
    """Two sections of a tonsil, the second without proteins, and another tissue."""
    genes, proteins = ["CD4", "CD8A", "MS4A1"], ["CD4", "CD20"]
    folder = "data/integration/Human_tonsil"
    return {
        f"{folder}/slice1/s1_adata_rna.h5ad": section_file(tmp_path, genes, 5, rng=1, final_annot="a", src="x"),
        f"{folder}/slice1/s1_adata_adt.h5ad": section_file(tmp_path, proteins, 5, rng=1, final_annot="a"),
        f"{folder}/slice2/s2_adata_rna.h5ad": section_file(tmp_path, [*genes[1:], "ACTB"], 4, rng=2, final_annot="b"),
        f"{folder}/slice2/._s2_adata_rna.h5ad": b"shadow",
        "data/integration/Mouse_embryo/slice1/s1_adata_rna.h5ad": section_file(tmp_path, genes, 3, rng=3),
        "data/integration/README.md": b"about",
    }


# spamosaic


def test_sections_are_found_by_the_record_and_joined(server, sections):
    publish_at_zenodo(server, {"data_imputation.zip": zip_of({}), "data_integration.zip": zip_of(sections)})
    mdata = datasets.spamosaic("human_tonsil", progress=False)
    assert {name: adata.shape for name, adata in mdata.mod.items()} == {"adt": (5, 2), "rna": (9, 2)}
    assert mdata["rna"].var_names.tolist() == ["CD8A", "MS4A1"]
    assert mdata["adt"].var_names.tolist() == ["CD4", "CD20"]  # the second section has no RNA of CD4
    assert mdata.n_obs == 9
    assert mdata.obs["section"].value_counts().to_dict() == {"section_1": 5, "section_2": 4}
    assert (mdata.obs["site"].astype(str) == mdata.obs["section"].astype(str)).all()
    assert mdata.obs.groupby("section", observed=True)["final_annot"].unique().explode().tolist() == ["a", "b"]
    assert mdata.obs_names[0] == "section_1:AAAC-0"
    for modality in mdata.mod.values():
        rows = mdata.obs_names.get_indexer(modality.obs_names)
        np.testing.assert_array_equal(modality.obsm["spatial"], mdata.obsm["spatial"][rows])
        assert not modality.uns
    asked = len(server.asked)
    server.close()
    assert datasets.spamosaic(progress=False).n_obs == 9
    assert len(server.asked) == asked == 2


def test_sections_at_hand_are_read_from_the_archive_or_its_folder(tmp_path, sections):
    (tmp_path / "mine.zip").write_bytes(zip_of(sections))
    (tmp_path / "mine.tar.gz").write_bytes(tar_of(sections))
    for name, content in sections.items():
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_bytes(content)
    for name in ("mine.zip", "mine.tar.gz", "mine"):
        assert datasets.spamosaic("Human_tonsil", tmp_path / name).n_obs == 9
        assert datasets.spamosaic("integration/mouse_embryo", tmp_path / name).n_obs == 3


def test_a_tissue_that_is_not_there_is_answered_by_those_that_are(tmp_path, sections):
    (tmp_path / "mine.zip").write_bytes(zip_of(sections))
    with pytest.raises(ValueError, match=r"'Human_liver'.*found data/integration/Human_tonsil, data/integration/Mouse"):
        datasets.spamosaic("Human_liver", tmp_path / "mine.zip")
    doubled = {**sections, "old/Human_tonsil/s1_adata_rna.h5ad": b"x"}
    (tmp_path / "mine.zip").write_bytes(zip_of(doubled))
    with pytest.raises(ValueError, match=r"one file of each section and modality .* Name more of the path"):
        datasets.spamosaic("Human_tonsil", tmp_path / "mine.zip")
    (tmp_path / "mine.zip").write_bytes(b"<html>")
    with pytest.raises(ValueError, match="a folder, a zip or a tar archive"):
        datasets.spamosaic("Human_tonsil", tmp_path / "mine.zip")
    with pytest.raises(FileNotFoundError, match=r"nowhere.*found none"):
        datasets.spamosaic("Human_tonsil", tmp_path / "nowhere")


def test_sections_that_do_not_fit_are_reported(tmp_path):
    def write(**files):
        members = {f"T/{name}_adata_rna.h5ad": content for name, content in files.items()}
        (tmp_path / "x.zip").write_bytes(zip_of(members))
        return tmp_path / "x.zip"

    good = section_file(tmp_path, ["A", "B"], 3, rng=0)
    with pytest.raises(ValueError, match=r"all 2 sections of 'rna' have in common, found none"):
        datasets.spamosaic("T", write(s1=good, s2=section_file(tmp_path, ["C"], 3, rng=0)))
    with pytest.raises(ValueError, match=r"coordinates in \.obsm\['spatial'\] of section 1"):
        datasets.spamosaic("T", write(s1=section_file(tmp_path, ["C"], 3, rng=0, spatial=False)))
    with pytest.raises(ValueError, match="to be an h5ad file"):
        datasets.spamosaic("T", write(s1=b"no HDF5"))


def test_a_record_without_the_archive_is_reported(server):
    publish_at_zenodo(server, {"notes.txt": b"", "a.zip": zip_of({}), "b.zip": zip_of({})})
    with pytest.raises(ValueError, match=r"'integration' in its name in https://zenodo\.org/records/12654113, found 0"):
        datasets.spamosaic(progress=False)
    with pytest.raises(ValueError, match="`task` to be one of"):
        datasets.spamosaic(task="else")
    with pytest.raises(ValueError, match="`record` to be one of"):
        datasets.spamosaic(record=1)


def test_the_only_archive_of_a_record_serves_every_task(server, sections):
    publish_at_zenodo(server, {"data.zip": zip_of(sections)}, record="/api/records/16925549")
    assert datasets.spamosaic(task="imputation", record=16925549, progress=False).n_obs == 9


def test_the_checksum_that_a_record_states_is_checked(server, sections):
    publish_at_zenodo(server, {"data_integration.zip": zip_of(sections)}, checksums={"data_integration.zip": "0" * 32})
    with pytest.raises(ValueError, match="Nothing was kept"):
        datasets.spamosaic(progress=False)
    assert sorted(path.name for path in cache_folder().iterdir()) == [
        "zenodo_12654113.json",
        "zenodo_12654113.json.sha256",
    ]


def test_a_record_cannot_name_files_outside_the_cache(server, sections):
    publish_at_zenodo(server, {"../../integration.zip": zip_of(sections)})
    assert datasets.spamosaic(progress=False).n_obs == 9
    assert (cache_folder() / "zenodo_12654113_integration.zip").is_file()
    assert not list(cache_folder().parent.parent.glob("*.zip"))


@pytest.mark.parametrize(
    ("load", "page"),
    [
        (datasets.spamosaic, "https://zenodo.org/records/12654113"),
        (datasets.huvec, "https://doi.org/10.6084/m9.figshare.30763670"),
    ],
)
def test_without_a_list_the_message_names_the_page_and_the_cure(server, load, page):
    server.status = 503
    with pytest.raises(ConnectionError, match=f"the files of {page}, found no list.*pass their `path`"):
        load(progress=False)
    server.status = None
    server.files = {ZENODO: b"<html>", FIGSHARE: b"[]"}
    with pytest.raises(ValueError, match=f"to be the list of files of {page}.*Delete it and fetch it again"):
        load(progress=False)


def test_the_published_sections_train(tmp_path, shared):
    """The authors' simulated mosaic, in the folders of the archive."""
    for section, modality in ((1, "rna"), (1, "adt"), (2, "rna"), (3, "adt")):
        source = shared(f"spatial/spamosaic_sim_r1_s{section}_adata_{modality}.h5ad")
        (tmp_path / "dataset1" / "replicate1").mkdir(parents=True, exist_ok=True)
        (tmp_path / "dataset1" / "replicate1" / f"s{section}_adata_{modality}.h5ad").symlink_to(source)
    mdata = datasets.spamosaic("replicate1", tmp_path)
    assert {name: adata.shape for name, adata in mdata.mod.items()} == {"adt": (2592, 100), "rna": (2592, 200)}
    assert mdata.n_obs == 3 * 1296
    assert mdata.obs["gt"].nunique() == 5
    assert "counts" in mdata["rna"].layers
    assert mdata["adt"].var_names[0] == f"adt:{mdata['rna'].var_names[0]}"
    si.model.SpaMosaic.setup_mudata(
        mdata, section_key="section", site_key="site", layers={"rna": "counts", "adt": "counts"}
    )


# huvec

SAMPLES = {"SCR": "ctrl", "Sh-B": "YWHAB+ctrl", "Sh-E": "YWHAE+ctrl", "Sh-H": "YWHAH+ctrl"}


def sample_files(sample, *, n_cells=3, rng=0):
    counts = sparse.csr_matrix(np.random.default_rng(rng).poisson(1.0, (4, n_cells)))
    buffer = io.BytesIO()
    matrices.mmwrite(buffer, counts)
    features = "ENSG1\tACTB\tGene Expression\nENSG2\tTBCE\tGene Expression\nENSG3\tTBCE\tx\nENSG4\tYWHAB\tx\n"
    barcodes = "".join(f"AAAC{cell}-1\n" for cell in range(n_cells))
    files = {"matrix.mtx": buffer.getvalue(), "features.tsv": features.encode(), "barcodes.tsv": barcodes.encode()}
    return counts.T.toarray(), {f"{sample}/{name}.gz": gzip.compress(content) for name, content in files.items()}


@pytest.fixture
def screen():
    counts, members = {}, {}
    for number, sample in enumerate(SAMPLES):
        counts[sample], files = sample_files(sample, rng=number)
        members |= {f"E2025_RNA_matrix/{name}": content for name, content in files.items()}
    return counts, members


def check_screen(adata, counts):
    assert adata.shape == (12, 4)
    assert sparse.issparse(adata.X)
    for sample, condition in SAMPLES.items():
        rows = adata[adata.obs["condition"] == condition]
        np.testing.assert_array_equal(rows.X.toarray(), counts[sample])
        assert rows.obs_names[0] == f"{condition}:AAAC0-1"
    assert adata.var_names.tolist() == ["ACTB", "TBCE", "TBCE-1", "YWHAB"]
    assert adata.var["gene_name"].tolist() == ["ACTB", "TBCE", "TBCE", "YWHAB"]
    assert adata.var["gene_id"].tolist() == ["ENSG1", "ENSG2", "ENSG3", "ENSG4"]
    assert adata.obs["cell_type"].unique().tolist() == ["HUVEC"]


@pytest.mark.parametrize("form", ["zip", "tar", "archive a sample", "loose"])
def test_knock_downs_are_found_in_every_form_of_the_article(server, screen, form):
    counts, members = screen
    files = {
        "zip": {"all SCR Sh-B Sh-E Sh-H.zip": zip_of(members)},
        "tar": {"all.tar.gz": tar_of(members)},
        "archive a sample": {
            f"{sample}.zip": zip_of(
                {name.rpartition("/")[2]: x for name, x in members.items() if f"/{sample}/" in name}
            )
            for sample in SAMPLES
        },
        "loose": {"_".join(name.split("/")[1:]): content for name, content in members.items()},
    }[form]
    publish_at_figshare(server, {**files, "README.txt": b"about"})
    check_screen(datasets.huvec(progress=False), counts)
    assert not any("README" in path.name for path in cache_folder().iterdir())


def test_knock_downs_at_hand_are_read(tmp_path, screen):
    counts, members = screen
    for name, content in members.items():
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_bytes(content)
    (tmp_path / "mine.zip").write_bytes(zip_of(members))
    check_screen(datasets.huvec(tmp_path / "mine"), counts)
    check_screen(datasets.huvec(tmp_path / "mine.zip"), counts)
    datasets.huvec(tmp_path / "mine").write_h5ad(tmp_path / "mine.h5ad")
    assert datasets.huvec(tmp_path / "mine.h5ad").n_obs == 12
    with pytest.raises(FileNotFoundError, match=r"nowhere.*found none"):
        datasets.huvec(tmp_path / "nowhere")


def test_an_article_with_one_table_gives_it(server, screen, tmp_path):
    _, members = screen
    (tmp_path / "mine.zip").write_bytes(zip_of(members))
    datasets.huvec(tmp_path / "mine.zip").write_h5ad(tmp_path / "mine.h5ad")
    publish_at_figshare(server, {"adata_combined.h5ad": (tmp_path / "mine.h5ad").read_bytes()})
    assert datasets.huvec(progress=False).n_obs == 12


def test_a_sample_that_is_missing_or_does_not_fit_is_named(server, tmp_path, screen):
    _, members = screen
    lacking = {name: content for name, content in members.items() if "Sh-E" not in name}
    publish_at_figshare(server, {"all.zip": zip_of(lacking)})
    with pytest.raises(ValueError, match=r"found none or several for YWHAE\+ctrl\. Put them in folders"):
        datasets.huvec(progress=False)
    twice = {**members, "old/Sh-E/matrix.mtx.gz": b""}
    (tmp_path / "x.zip").write_bytes(zip_of(twice))
    with pytest.raises(ValueError, match=r"for YWHAE\+ctrl"):
        datasets.huvec(tmp_path / "x.zip")
    other = {**members, "E2025_RNA_matrix/SCR/barcodes.tsv.gz": gzip.compress(b"AAAC\n")}
    (tmp_path / "x.zip").write_bytes(zip_of(other))
    with pytest.raises(ValueError, match=r"Expected 1 cells × 4 genes.*found 3 × 4"):
        datasets.huvec(tmp_path / "x.zip")
    damaged = {**members, "E2025_RNA_matrix/SCR/matrix.mtx.gz": b"<html>"}
    (tmp_path / "x.zip").write_bytes(zip_of(damaged))
    with pytest.raises(ValueError, match="counts in the format of 10x"):
        datasets.huvec(tmp_path / "x.zip")
    publish_at_figshare(server, {"README.txt": b""})
    (cache_folder() / "figshare_30763670.json").unlink()
    with pytest.raises(ValueError, match=r"tables or archives in https://doi\.org/.*, found README\.txt"):
        datasets.huvec(progress=False)


# TCGA

PROTEINS = (
    "SampleID\tTumorType\tX1433EPSILON\tACC1\tASNS\n"
    "TCGA-A1-A0SB-01A-21-A13A-20\tBRCA\t0.5\t-1.0\t0.1\n"
    "TCGA-D8-A0SD-06A-21-A13A-20\tBRCA\t-0.5\t1.0\tNA\n"
    "TCGA-05-4244-01A-21-2190-20\tLUAD\t0.25\tNA\t0.2\n"
    "TCGA-OR-A5J2-01A-21-A39K-20\tACC\t0.75\t0.5\t0.3\n"
)
PROTEINS_ID, MIRNA_ID, LIST_ID = (f"/data/{file[0]}" for file in (_tcga._PROTEINS, _tcga._MIRNA, _tcga._SAMPLES))


def test_proteins_come_from_the_genomic_data_commons(server):
    server.files[PROTEINS_ID] = PROTEINS.encode()
    adata = datasets.tcga_proteins(progress=False)
    assert adata.obs_names.tolist() == [line.split("\t")[0] for line in PROTEINS.splitlines()[1:4]]
    assert adata.var_names.tolist() == ["X1433EPSILON"]  # ACC1 is lacking in one cancer, ASNS in one sample
    np.testing.assert_array_equal(adata.X, np.float32([[0.5], [-0.5], [0.25]]))
    assert adata.obs["region"].tolist() == ["West", "Europe", "Europe"]
    assert adata.obs["patient"].tolist() == ["TCGA-A1-A0SB", "TCGA-D8-A0SD", "TCGA-05-4244"]
    assert adata.obs["sample_type"].tolist() == ["01", "06", "01"]
    assert adata.obs["plate"].tolist() == ["A13A", "A13A", "2190"]
    assert adata.obs["cancer"].cat.categories.tolist() == ["BRCA", "LUAD"]
    every = datasets.tcga_proteins(progress=False, complete=False, site_key=None)
    assert every.shape == (4, 3)
    assert every.var["n_cancers_measured"].tolist() == [3, 2, 3]
    assert len(server.asked) == 1


def test_proteins_at_hand_are_read_in_three_forms(tmp_path):
    (tmp_path / "t.txt").write_text(PROTEINS)
    table = datasets.tcga_proteins(tmp_path / "t.txt", complete=False, site_key=None)
    table.write_h5ad(tmp_path / "t.h5ad")
    rows = pd.DataFrame(table.X, table.obs_names, table.var_names).rename_axis("bcr_patient_barcode")
    (tmp_path / "r").mkdir()
    with pytest.raises(FileNotFoundError, match=r"such as 'BRCA\.RPPA\.csv', in .*found nothing"):
        datasets.tcga_proteins(tmp_path / "r")
    for cancer, part in rows.groupby(table.obs["cancer"], observed=True):
        part.dropna(axis=1, how="all").to_csv(tmp_path / "r" / f"{cancer}.RPPA.csv")
    rows.to_csv(tmp_path / "r" / "KIPAN.RPPA.csv")
    for name in ("t.txt", "t.h5ad", "r"):
        for complete, n_vars in ((True, 1), (False, 3)):
            assert datasets.tcga_proteins(tmp_path / name, complete=complete).shape == (3, n_vars)


def test_a_table_that_is_another_one_is_refused(server, tmp_path):
    for content in ("<html>", "SampleID\tOther\nTCGA\tx\n", "SampleID\tTumorType\tA\nTCGA-A1-0\tACC\tx\n"):
        (tmp_path / "t.txt").write_text(content)
        with pytest.raises(ValueError, match=r"t\.txt' to be the TCGA protein table of the PanCanAtlas"):
            datasets.tcga_proteins(tmp_path / "t.txt")
    server.status = 404
    for load in (datasets.tcga_proteins, datasets.tcga_mirna):
        with pytest.raises(ConnectionError, match=r"found the answer 404.*put it at '.*SCINFL_GDC"):
            load(progress=False)


def test_the_published_hashes_are_checked(server, monkeypatch):
    monkeypatch.setattr(_tcga, "_HASHES", {_tcga._PROTEINS[1]: "md5:" + "0" * 32})
    server.files[PROTEINS_ID] = PROTEINS.encode()
    with pytest.raises(ValueError, match="Nothing was kept"):
        datasets.tcga_proteins(progress=False)


def test_the_rebuilt_tables_are_those_of_the_benchmarks(shared, tmp_path):
    path = shared("bulk/tcga_rppa.h5ad")
    published = ad.read_h5ad(path)
    last = published.obs.groupby("cancer", observed=True).tail(150).index  # all panels of all cancers are among them
    published = published[last]
    rows = published.to_df().rename_axis("bcr_patient_barcode")
    for cancer, part in rows.groupby(published.obs["cancer"], observed=True):
        part.dropna(axis=1, how="all").to_csv(tmp_path / f"{cancer}.RPPA.csv")
    rebuilt, expected = datasets.tcga_proteins(tmp_path), datasets.tcga_proteins(path)
    expected = expected[rebuilt.obs_names]
    pd.testing.assert_frame_equal(rebuilt.to_df()[expected.var_names], expected.to_df())
    for column in rebuilt.obs:
        assert rebuilt.obs[column].astype(str).equals(expected.obs.loc[rebuilt.obs_names, column].astype(str)), column
    everything = datasets.tcga_proteins(tmp_path, complete=False, site_key=None)
    pd.testing.assert_frame_equal(everything.var, published.var.loc[everything.var_names], check_dtype=False)


def test_a_hospital_has_one_region():
    codes = regions()
    assert len(codes) == 264
    assert set(codes.values()) == {"Canada", "Europe", "Midwest", "Northeast", "Other", "South", "West"}
    assert all(len(code) == 2 for code in codes)


def test_micro_rnas_come_with_their_cancers(server, tmp_path):
    barcodes = ["TCGA-A1-A0SB-01A-11R-A144-13", "TCGA-A1-A0SB-11A-11R-A144-13", "TCGA-05-4244-01A-01R-1107-13"]
    table = pd.DataFrame([[3.0, 7.0, 0.0, 1.0], [-0.2, 1.0, 15.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    table.columns = [*barcodes, "TCGA-ZZ-0000-01A"]
    table.insert(0, "Correction", ["Corrected", "Corrected", "Uncorrected"])
    table.insert(0, "Genes", ["hsa-let-7a-5p", "hsa-miR-21-5p", "hsa-miR-1"])
    named = pd.DataFrame({"id": [*barcodes, barcodes[0]], "Disease": ["BRCA", "BRCA", "LUAD", "BRCA"], "x": 1})
    server.files[MIRNA_ID] = table.to_csv(index=False).encode()
    server.files[LIST_ID] = named.to_csv(sep="\t", index=False).encode()
    adata = datasets.tcga_mirna(progress=False)
    assert adata.obs_names.tolist() == [barcodes[0], barcodes[2]]  # no normal tissue
    assert adata.var_names.tolist() == ["hsa-let-7a-5p", "hsa-miR-21-5p"]
    np.testing.assert_array_equal(adata.X, np.float32([[2, 0], [0, 4]]))
    assert adata.obs["cancer"].tolist() == ["BRCA", "LUAD"]
    assert adata.X.flags["C_CONTIGUOUS"]
    every = datasets.tcga_mirna(normal=True, complete=False, site_key=None, progress=False)
    assert every.shape == (3, 3)
    assert every.var["corrected"].tolist() == [True, True, False]
    (tmp_path / "m.csv").write_bytes(server.files[MIRNA_ID])
    (tmp_path / "l.txt").write_bytes(server.files[LIST_ID])
    assert datasets.tcga_mirna(tmp_path / "m.csv", samples=tmp_path / "l.txt").shape == (2, 2)
    (tmp_path / "l.txt").write_text("id\nx\n")
    with pytest.raises(ValueError, match="list of samples with the columns id and Disease"):
        datasets.tcga_mirna(tmp_path / "m.csv", samples=tmp_path / "l.txt")
    with pytest.raises(FileNotFoundError, match="the list of samples"):
        datasets.tcga_mirna(tmp_path / "m.csv", samples=tmp_path / "none.txt")


def test_micro_rnas_of_the_benchmarks_are_read(shared):
    path = shared("bulk/tcga_mirnaseq.h5ad")
    adata = datasets.tcga_mirna(path)
    assert adata.obs["cancer"].nunique() == 9
    assert adata.obs["region"].nunique() == 7
    assert "11" not in set(adata.obs["sample_type"])
    assert adata.X.dtype == np.float32
    assert datasets.tcga_mirna(path, normal=True).n_obs == 4438
