"""Published data, from a server on this machine."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
import zipfile
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from tests.datasets.conftest import CONTENT

from scinfl import datasets
from scinfl.datasets import _download, _public
from scinfl.datasets._download import cache_folder, complete, fetch, part_of, verify

NORMAN, ONTOLOGY = "6154020", "6934319"
SCREENS = {
    "norman": NORMAN,
    "adamson": "6154417",
    "dixit": "6154416",
    "replogle_k562": "7458695",
    "replogle_rpe1": "7458694",
}


def get(server, **arguments):
    return fetch(_download.dataverse_url("blob"), "blob.bin", progress=False, **arguments)


def cached():
    return sorted(path.name for path in cache_folder().iterdir())


def make_screen(*, sparse_x=True):
    generator = np.random.default_rng(0)
    X = generator.poisson(1.0, (6, 5)).astype(np.float32)
    obs = pd.DataFrame(
        {"condition": pd.Categorical(["ctrl", "A+ctrl", "ctrl+B", "A+B", "ctrl", "A+ctrl"]), "cell_type": "A549"},
        index=[f"cell_{i}" for i in range(6)],
    )
    ids = pd.Index([f"ENSG{i}" for i in range(5)], name="gene_id")
    var = pd.DataFrame({"gene_name": ["A", "B", "TBCE", "TBCE", np.nan]}, index=ids)
    uns = {
        "rank_genes_groups_cov_all": {"A549_A+ctrl_1+1": np.array(["ENSG0", "ENSG1"])},
        "top_non_dropout_de_20": {"x": np.array(["ENSG0"])},
        "top_non_zero_de_20": {"x": np.array(["ENSG0"])},
        "non_dropout_gene_idx": {"x": np.array([0, 1])},
        "non_zeros_gene_idx": {"x": np.array([0, 1])},
        "hvg": {"flavor": "seurat"},
    }
    return ad.AnnData(sparse.csr_matrix(X) if sparse_x else X, obs, var, uns)


@pytest.fixture(scope="module")
def h5ad(tmp_path_factory):
    path = tmp_path_factory.mktemp("screen") / "perturb_processed.h5ad"
    make_screen().write_h5ad(path)
    return path.read_bytes()


def make_zip(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def make_tar(members, links=()):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
        for name, target in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            file.addfile(member)
    return buffer.getvalue()


@pytest.fixture
def archive(h5ad):
    return make_zip({"norman/": b"", "norman/perturb_processed.h5ad": h5ad, "norman/data_pyg/cell_graphs.pkl": b"x"})


# one file


def test_a_file_is_fetched_once_and_its_hash_is_kept_beside_it(server):
    path = get(server)
    assert path == cache_folder() / "blob.bin"
    assert path.read_bytes() == CONTENT
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert (cache_folder() / "blob.bin.sha256").read_text() == f"{digest}  blob.bin\n"
    assert cached() == ["blob.bin", "blob.bin.sha256"]
    assert get(server) == path
    assert server.asked == [("/api/access/datafile/blob", None)]


def test_a_file_without_a_stated_size_is_fetched_too(server):
    server.sized = False
    assert get(server).read_bytes() == CONTENT


def test_a_changed_file_is_an_error_that_names_both_cures(server):
    path = get(server)
    path.write_bytes(b"changed")
    with pytest.raises(ValueError, match=r"blob\.bin' to have the hash .* Delete it and .*delete 'blob\.bin\.sha256'"):
        get(server)
    path.unlink()
    assert get(server).read_bytes() == CONTENT
    assert len(server.asked) == 2


def test_a_file_that_was_fetched_again_gets_a_new_record(server):
    path = get(server)
    path.unlink()
    server.files["blob"] = b"second edition"
    assert get(server).read_bytes() == b"second edition"
    assert get(server) == path


def test_a_file_that_was_put_there_by_hand_is_taken_and_recorded(server):
    (cache_folder() / "blob.bin").write_bytes(b"by hand")
    assert get(server).read_bytes() == b"by hand"
    assert cached() == ["blob.bin", "blob.bin.sha256"]
    assert not server.asked


def test_a_folder_that_may_only_be_read_is_enough(server, monkeypatch):
    (cache_folder() / "blob.bin").write_bytes(b"by hand")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuse)
    assert get(server).read_bytes() == b"by hand"
    assert cached() == ["blob.bin"]


def test_a_download_that_broke_off_goes_on_where_it_stopped(server):
    server.cut_at = 20_000
    with pytest.raises(ConnectionError, match=r"broke off; 20000 of 50000 bytes are kept and the next call goes on"):
        get(server)
    assert cached() == ["blob.bin.part"]
    server.cut_at = None
    assert get(server).read_bytes() == CONTENT
    assert server.asked[1][1] == "bytes=20000-"
    assert cached() == ["blob.bin", "blob.bin.sha256"]


def test_a_download_goes_on_through_a_redirection(server):
    part_of(cache_folder() / "blob.bin").write_bytes(CONTENT[:100])
    path = fetch(_download.dataverse_url("moved"), "blob.bin", progress=False)
    assert path.read_bytes() == CONTENT
    assert server.asked[-1] == ("/api/access/datafile/blob", "bytes=100-")


def test_a_part_that_was_complete_only_gets_its_name(server):
    part_of(cache_folder() / "blob.bin").write_bytes(CONTENT)
    assert get(server).read_bytes() == CONTENT
    assert server.asked == [("/api/access/datafile/blob", "bytes=50000-")]


@pytest.mark.parametrize(
    ("part", "ranges", "sent_start"), [(b"other", False, None), (b"other", True, 7), (bytes(60_000), True, None)]
)
def test_a_part_that_cannot_go_on_is_begun_again(server, part, ranges, sent_start):
    part_of(cache_folder() / "blob.bin").write_bytes(part)
    server.ranges, server.sent_start = ranges, sent_start
    assert get(server).read_bytes() == CONTENT
    assert cached() == ["blob.bin", "blob.bin.sha256"]


@pytest.mark.parametrize("algorithm", ["", "md5:", "sha256:"])
def test_a_published_hash_is_checked_at_every_call(server, algorithm):
    digest = hashlib.new(algorithm.rstrip(":") or "sha256", CONTENT).hexdigest()
    path = get(server, known_hash=algorithm + digest)
    assert get(server, known_hash=algorithm + digest) == path
    path.write_bytes(b"changed")
    with pytest.raises(ValueError, match=r"Delete it and call again\.$"):
        get(server, known_hash=algorithm + digest)


def test_a_file_with_another_hash_is_not_kept(server):
    with pytest.raises(ValueError, match=r"blob\.bin' with the hash 0000, found [0-9a-f]{64}. Nothing was kept"):
        get(server, known_hash="0000")
    assert cached() == []
    assert len(server.asked) == 1


def test_a_resumed_file_with_another_hash_is_begun_again_once(server):
    digest = hashlib.sha256(CONTENT).hexdigest()
    part_of(cache_folder() / "blob.bin").write_bytes(b"an older edition")
    assert get(server, known_hash=digest).read_bytes() == CONTENT
    assert [extent for _, extent in server.asked] == ["bytes=16-", None]
    (cache_folder() / "blob.bin").unlink()
    part_of(cache_folder() / "blob.bin").write_bytes(b"an older edition")
    with pytest.raises(ValueError, match="Nothing was kept"):
        get(server, known_hash="0000")
    assert len(server.asked) == 4


def test_offline_the_message_names_address_path_and_variables(server):
    server.close()
    with pytest.raises(ConnectionError) as caught:
        get(server)
    message = str(caught.value)
    for part in (f"{server.url}/api/access/datafile/blob", "offline", "server is down", "SCINFL_DATA "):
        assert part in message
    assert f"put it at '{cache_folder() / 'blob.bin'}'" in message
    assert cached() == []


@pytest.mark.parametrize("status", [202, 403, 404, 503])
def test_an_answer_without_the_file_is_reported_and_not_kept(server, status):
    server.status = status
    with pytest.raises(ConnectionError, match=f"found the answer {status} .*a browser"):
        get(server)
    part_of(cache_folder() / "blob.bin").write_bytes(b"kept")
    with pytest.raises(ConnectionError, match=f"found the answer {status} "):
        get(server)
    assert cached() == ["blob.bin.part"]


def test_a_server_that_is_no_address_is_reported(server, monkeypatch):
    monkeypatch.setenv("SCINFL_DATAVERSE", "nowhere")
    with pytest.raises(ConnectionError, match="no way to ask it"):
        get(server)


def test_a_slow_server_is_given_up(server, monkeypatch):
    monkeypatch.setattr(_download, "_TIMEOUT", 0.1)
    release = threading.Event()
    monkeypatch.setattr(server, "answer", lambda *_: release.wait(5))
    with pytest.raises(ConnectionError, match="no answer"):
        get(server)
    release.set()


def test_progress_is_shown_unless_it_is_not_wanted(server, capsys):
    get(server)
    assert capsys.readouterr().err == ""
    (cache_folder() / "blob.bin").unlink()
    fetch(_download.dataverse_url("blob"), "blob.bin")
    assert "blob.bin" in capsys.readouterr().err


def test_the_cache_is_where_the_environment_sets_it(monkeypatch, tmp_path):
    monkeypatch.setenv("SCINFL_DATA", str(tmp_path / "a" / "b"))
    assert cache_folder() == tmp_path / "a" / "b"
    monkeypatch.delenv("SCINFL_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "system"))
    assert cache_folder().name == "scinfl"
    assert cache_folder().is_dir()
    monkeypatch.delenv("SCINFL_DATAVERSE", raising=False)
    assert _download.dataverse_url(5) == "https://dataverse.harvard.edu/api/access/datafile/5"


def test_threads_that_ask_at_once_fetch_once(server):
    found = []
    threads = [threading.Thread(target=lambda: found.append(get(server).read_bytes())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found == [CONTENT] * 4
    assert len(server.asked) == 1


def test_a_record_without_a_hash_is_a_mismatch(tmp_path):
    part_of(tmp_path / "x").write_bytes(b"x")
    complete(tmp_path / "x")
    (tmp_path / "x.sha256").write_text("")
    with pytest.raises(ValueError, match=r"x\.sha256"):
        verify(tmp_path / "x")


# screens


@pytest.mark.parametrize("name", list(SCREENS))
def test_a_screen_is_fetched_once_and_made_ready(server, archive, name):
    server.files = {SCREENS[name]: archive}
    adata = getattr(datasets, name)(progress=False)
    assert adata.var_names.tolist() == ["A", "B", "TBCE", "TBCE-1", "ENSG4"]
    assert adata.var["gene_id"].tolist() == [f"ENSG{i}" for i in range(5)]
    assert adata.obs["condition"].tolist() == make_screen().obs["condition"].tolist()
    assert "cell_type" in adata.obs
    assert dict(adata.uns) == {"hvg": {"flavor": "seurat"}}
    assert (adata.X != make_screen().X).nnz == 0
    assert not adata.is_view
    assert cached() == sorted(f"{name}.{ending}" for ending in ("h5ad", "h5ad.sha256", "zip", "zip.sha256"))
    server.asked.clear()
    (cache_folder() / f"{name}.zip").unlink()  # no longer needed
    again = getattr(datasets, name)(progress=False)
    assert (again.X != adata.X).nnz == 0
    assert not server.asked


def test_a_screen_survives_a_round_trip_and_reading_again(server, archive, tmp_path):
    server.files = {NORMAN: archive}
    adata = datasets.norman(progress=False)
    adata.write_h5ad(tmp_path / "own.h5ad")
    again = datasets.norman(tmp_path / "own.h5ad")
    assert again.var_names.tolist() == adata.var_names.tolist()
    assert again.var["gene_id"].tolist() == adata.var["gene_id"].tolist()


@pytest.mark.parametrize("sparse_x", [True, False])
def test_a_file_at_hand_is_read_without_asking_anyone(server, archive, tmp_path, sparse_x):
    make_screen(sparse_x=sparse_x).write_h5ad(tmp_path / "perturb_processed.h5ad")
    (tmp_path / "norman.zip").write_bytes(archive)
    before = sorted(tmp_path.rglob("*"))
    for path in (tmp_path, tmp_path / "perturb_processed.h5ad", str(tmp_path / "norman.zip")):
        assert datasets.norman(path).shape == (6, 5)
    assert sorted(tmp_path.rglob("*")) == before
    assert not server.asked


def test_only_the_one_member_is_unpacked_and_never_outside_the_cache(server, h5ad, tmp_path):
    members = {
        "../../perturb_processed.h5ad": h5ad,
        "__MACOSX/norman/._perturb_processed.h5ad": b"shadow",
        "../evil.txt": b"evil",
        str(tmp_path / "evil_absolute.txt"): b"evil",
    }
    server.files = {NORMAN: make_zip(members)}
    assert datasets.norman(progress=False).shape == (6, 5)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "norman.h5ad",
        "norman.h5ad.sha256",
        "norman.zip",
        "norman.zip.sha256",
    ]


@pytest.mark.parametrize("names", [[], ["other.txt"], ["a/perturb_processed.h5ad", "b/perturb_processed.h5ad"]])
def test_an_archive_with_none_or_several_screens_is_refused(server, names):
    server.files = {NORMAN: make_zip(dict.fromkeys(names, b"x"))}
    fitting = sum(name.endswith("perturb_processed.h5ad") for name in names)
    with pytest.raises(ValueError, match=rf"Expected one file '…perturb_processed.h5ad' in .*found {fitting} among"):
        datasets.norman(progress=False)
    assert cached() == ["norman.zip", "norman.zip.sha256"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "page"])
def test_a_damaged_archive_is_reported_and_leaves_nothing_half_written(server, archive, damage):
    middle = len(archive) // 3
    flipped = archive[:middle] + bytes(255 - byte for byte in archive[middle : middle + 9]) + archive[middle + 9 :]
    server.files = {NORMAN: {"cut": archive[:-50], "flipped": flipped, "page": b"<html>log in</html>"}[damage]}
    with pytest.raises(ValueError, match=r"norman\.zip' to be a zip archive.*Delete it and fetch it again"):
        datasets.norman(progress=False)
    assert cached() == ["norman.zip", "norman.zip.sha256"]
    server.files = {NORMAN: archive}
    (cache_folder() / "norman.zip").unlink()
    assert datasets.norman(progress=False).n_obs == 6


def test_a_screen_that_was_changed_in_the_cache_is_refused_with_a_cure(server, archive):
    server.files = {NORMAN: archive}
    datasets.norman(progress=False)
    path = cache_folder() / "norman.h5ad"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"norman\.h5ad' to have the hash .*Delete it and call again"):
        datasets.norman(progress=False)
    path.unlink()
    assert datasets.norman(progress=False).n_obs == 6
    assert len(server.asked) == 1  # unpacked again, not fetched again


def test_a_full_disk_is_no_damaged_archive(server, archive, monkeypatch):
    server.files = {NORMAN: archive}

    def fill(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("scinfl.datasets._archive.shutil.copyfileobj", fill)
    with pytest.raises(OSError, match="No space left"):
        datasets.norman(progress=False)
    assert cached() == ["norman.zip", "norman.zip.sha256"]


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"found none\. Pass another `path`"):
        datasets.norman(tmp_path / "norman.zip")
    with pytest.raises(FileNotFoundError, match=r"perturb_processed\.h5ad'"):
        datasets.adamson(tmp_path)
    (tmp_path / "x.h5ad").write_bytes(b"no HDF5")
    with pytest.raises(ValueError, match=r"x\.h5ad' to be an h5ad file"):
        datasets.dixit(tmp_path / "x.h5ad")
    for place, column in (("obs", "condition"), ("var", "gene_name")):
        adata = make_screen()
        del getattr(adata, place)[column]
        adata.write_h5ad(tmp_path / "y.h5ad")
        with pytest.raises(ValueError, match=rf"'{column}' in \.{place} of .*format of GEARS"):
            datasets.norman(tmp_path / "y.h5ad")


# the ontology

TABLE = "source,target,importance\nNA,NA,1.0\nnan,NA,0.25\n"


@pytest.mark.parametrize("index", [True, False])
def test_the_ontology_is_read_from_the_archive_and_never_unpacked(server, index):
    expected = pd.DataFrame({"source": ["NA", "nan"], "target": ["NA", "NA"], "importance": [1.0, 0.25]})
    content = make_tar(
        {"go_essential_all/go_essential_all.csv": expected.to_csv(index=index).encode(), "go/._x.csv": b"shadow"},
        links=[("go/link.csv", "../../outside.csv")],
    )
    server.files = {ONTOLOGY: content}
    pd.testing.assert_frame_equal(datasets.gene_ontology(progress=False), expected)
    pd.testing.assert_frame_equal(datasets.gene_ontology(progress=False), expected)
    assert len(server.asked) == 1
    assert cached() == ["go_essential_all.tar.gz", "go_essential_all.tar.gz.sha256"]


def test_an_ontology_at_hand_is_read(tmp_path):
    (tmp_path / "go.csv").write_text(TABLE)
    (tmp_path / "6934319").write_bytes(make_tar({"go.csv": TABLE.encode()}))
    pd.read_csv(tmp_path / "go.csv", keep_default_na=False).to_csv(tmp_path / "go.csv.gz", index=False)
    for name in ("go.csv", "6934319", "go.csv.gz"):
        assert datasets.gene_ontology(tmp_path / name)["source"].tolist() == ["NA", "nan"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>", "to be a tar archive"),
        (make_tar({"go.csv": TABLE.encode() * 1000})[:-20], "to be a tar archive"),
        (make_tar({}), "found 0 among no files"),
        (make_tar({}, links=[("go.csv", "../../outside.csv")]), "found 0 among no files"),
        (make_tar({"a.csv": b"", "b.csv": b""}), "found 2"),
        (make_tar({"go.csv": b"a,b\n1,2\n"}), "to be a csv file with the columns source, target and importance"),
        (make_tar({"go.csv": b"source,target,importance\nA,B,\n"}), "to be a csv file"),
        (make_tar({"go.csv": b""}), "to be a csv file"),
    ],
)
def test_a_damaged_ontology_is_reported(server, content, message):
    server.files = {ONTOLOGY: content}
    with pytest.raises(ValueError, match=message):
        datasets.gene_ontology(progress=False)


def test_a_published_hash_is_checked(server, archive, monkeypatch):
    monkeypatch.setattr(_public, "_HASHES", {"norman.zip": "md5:" + "0" * 32})
    server.files[str(_public._SCREENS["norman"])] = archive
    with pytest.raises(ValueError, match=r"norman\.zip"):
        datasets.norman(progress=False)
