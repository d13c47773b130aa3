"""Folders of the roles, jobs, and what the commands say."""

from __future__ import annotations

import argparse
import inspect
import shutil
import stat
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from anndata import AnnData
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from tests.flower.conftest import SITES, job_text, make_cells

from scinfl.cli import main
from scinfl.flower import Job, add_site, list_payload, make_kit, revoke_site, run_server, run_site
from scinfl.flower.server._run import _public_keys
from scinfl.flower.setup._job import SiteSettings
from scinfl.flower.setup._kit import pinned_identities, split_address
from scinfl.flower.setup._templates import job_template
from scinfl.privacy import Identity, KeyedSum

PRIVATE = {"ca.key", "server.key", "link.key", "identity.json"}


@pytest.fixture
def kit(tmp_path):
    (tmp_path / "job.toml").write_text(job_text())
    make_kit(tmp_path / "kit", SITES, job=tmp_path / "job.toml", address="fed.example.org:9092")
    return tmp_path / "kit"


def test_private_keys_are_private_and_none_but_its_own_is_in_a_folder(kit):
    files = {path for path in kit.rglob("*") if path.is_file()}
    private = {path for path in files if path.name in PRIVATE}
    assert len(private) == 2 + 2 * len(SITES)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in private)
    marked = {path for path in files if b"PRIVATE" in path.read_bytes() or b"signing" in path.read_bytes()}
    assert marked - private == {path for path in files if path.parent.name == "identities"}
    assert {path.name for path in private if "server" in path.parts} == {"server.key"}
    assert not list(kit.rglob("*.key.json"))


def test_the_server_is_vouched_for_under_the_names_that_sites_use(kit):
    authority, server = (
        x509.load_pem_x509_certificate((kit / "server" / name).read_bytes()) for name in ("ca.pem", "server.pem")
    )
    server.verify_directly_issued_by(authority)
    assert isinstance(server.public_key(), ec.EllipticCurvePublicKey)
    assert server.public_key().curve.name == "secp384r1"
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "fed.example.org" in names.get_values_for_type(x509.DNSName)
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_every_folder_pins_the_same_identities(kit):
    pinned = pinned_identities(kit / "server")
    assert sorted(pinned) == SITES
    for site in SITES:
        assert pinned_identities(kit / f"site_{site}") == pinned
        assert Identity.load(kit / f"site_{site}" / "identity.json").public == pinned[site]


@pytest.mark.parametrize(
    ("sites", "address", "match"),
    [
        (["a", "a"], "h:1", "different names"),
        (["a", "../b"], "h:1", "letters, digits"),
        (["a"], "h:1", "at least 2 sites"),
        (["a", "b"], "host", "host:port"),
        (["a", "b"], "host:99999", "host:port"),
    ],
)
def test_names_and_addresses_that_cannot_be_used_are_refused(tmp_path, sites, address, match):
    with pytest.raises(ValueError, match=match):
        make_kit(tmp_path / "kit", sites, address=address)
    assert not list(tmp_path.iterdir())


def test_a_kit_is_never_overwritten(kit):
    with pytest.raises(FileExistsError, match="found something"):
        make_kit(kit, SITES)


def test_addresses_of_the_next_version_of_the_protocol_are_understood():
    assert split_address("::1:9092") == ("::1", 9092)


def test_the_template_is_a_job():
    job = Job.parse(job_template(SITES))
    job.check_sites(SITES)
    job.check_options()
    assert (job.min_sites, job.n_rounds, job.features) == (3, 50, "same")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (("[setup]", '[setup]\nsite_key = "site"'), "no `site_key`"),
        (("[train]", '[[protections]]\nclass = "Shuffle"\n[train]'), "class in \\[\\[protections\\]\\]"),
        (("min_sites = 3", 'min_sites = 3\nfeatures = "some"'), "features in"),
        (("[model]", '[model]\nclass = "Oracle"'), "class in \\[model\\]"),
        (("min_sites = 3", "min_sites = 1"), "whole number from 2"),
        (("min_sites = 3", "min_sites = 4"), "at least 4 sites"),
        (("deadline = 10", "deadline = 0"), "deadline"),
        (("deadline", "patience = 3\ndeadline"), "found patience"),
        (("[train]", "[train]\nfraction = 0.5"), "no `fraction`"),
        (("[train]", "[train]\nprotections = []"), "no `protections`"),
        (("[train]", "[training]"), "section"),
        (("[train]", "[train"), "a mistake"),
    ],
)
def test_jobs_that_cannot_be_run_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        Job.parse(job_text().replace(*change))


def test_options_that_the_model_lacks_are_refused():
    with pytest.raises(ValueError, match="found n_hiden"):
        Job.parse(job_text().replace("n_hidden", "n_hiden")).check_options()


@pytest.mark.parametrize(("name", "expected"), [("Classifier", 50), ("GEARS", 40), ("SpaMosaic", 40)])
def test_rounds_that_a_job_leaves_out_are_those_of_the_model(name, expected):
    from scinfl import model

    job = Job.parse(job_text().replace("n_rounds = 4", "").replace("[model]", f'[model]\nclass = "{name}"'))
    default = inspect.signature(getattr(model, name).train).parameters["n_rounds"].default
    assert job.n_rounds == default == expected


def test_a_job_that_names_its_rounds_imports_no_model():
    code = (
        f"import sys; from scinfl.flower import Job; Job.parse({job_text()!r}).n_rounds; print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


def test_jobs_are_compared_by_what_they_say():
    job = Job.parse(job_text())
    assert Job.parse("# seen by the board\n" + job_text()).digest == job.digest
    other = Job.parse(job_text(n_rounds=5))
    assert job.differences(other) == ["train.n_rounds"]


def test_what_would_leave_is_listed_without_a_server(kit, fresh_key):
    adata = make_cells()
    own = adata[adata.obs["site"] == SITES[0]].copy()
    listed = list_payload(kit / f"site_{SITES[0]}", data=own, key=fresh_key)
    assert set(listed["site"]) == {SITES[0]}
    assert listed["masked"].all()
    training = listed[listed["purpose"] == "training"].set_index("array")
    assert training.loc["encoder.1.weight", "shape"] == "16 × 30"
    assert (training["rounds"] == 4).all()
    assert "infl" not in own.uns
    assert not (kit / f"site_{SITES[0]}" / "runs").exists()


def test_nothing_is_sent_without_consent(kit, fresh_key):
    adata = make_cells()
    own = adata[adata.obs["site"] == SITES[0]].copy()
    with pytest.raises(RuntimeError, match="not agreed to"):
        run_site(kit / f"site_{SITES[0]}", data=own, key=fresh_key, confirm=lambda payload: False)


def test_a_site_refuses_data_and_settings_that_do_not_fit(kit, fresh_key, tmp_path):
    folder = kit / f"site_{SITES[0]}"
    own = make_cells()
    with pytest.raises(KeyError, match="labels_key"):
        list_payload(folder, data=own[:, :].copy()[:0].copy() if own.obs.pop("label") is None else own, key=fresh_key)
    own = make_cells()
    settings = (folder / "site.toml").read_text()
    for missing in (None, "nan"):
        gaps = make_cells()
        gaps.obs["label"] = gaps.obs["label"].astype(object)
        gaps.obs.iloc[:3, gaps.obs.columns.get_loc("label")] = missing
        with pytest.raises(ValueError, match=r"a label for every row in adata.obs\['label'\], found 3 without"):
            list_payload(folder, data=gaps, key=fresh_key)
    for values, error in ((None, "Expected values in adata.X"), (np.full(own.shape, "x"), "Expected numbers")):
        with pytest.raises((TypeError, ValueError), match=error):
            list_payload(folder, data=AnnData(values, own.obs, own.var), key=fresh_key)
    (folder / "site.toml").write_text(settings.replace("min_cells_per_label = 1", "min_cells_per_label = 1000"))
    with pytest.raises(ValueError, match="at least 1000 cells of each label"):
        list_payload(folder, data=own, key=fresh_key)
    (folder / "site.toml").write_text(settings.replace(f'"{SITES[0]}"', f'"{SITES[1]}"'))
    with pytest.raises(ValueError, match="Use one kit"):
        list_payload(folder, data=own, key=fresh_key)
    (folder / "site.toml").write_text(settings + "\nkey = 3\n")
    with pytest.raises(ValueError, match="found key"):
        list_payload(folder, data=own, key=fresh_key)
    fresh_key.save(tmp_path / "key")
    (tmp_path / "key").chmod(0o644)
    (folder / "site.toml").write_text(settings)
    with pytest.raises(PermissionError, match="0600"):
        list_payload(folder, data=own, key=tmp_path / "key")
    with pytest.raises(FileNotFoundError, match="h5ad"):
        list_payload(folder, data=tmp_path / "none.h5ad", key=fresh_key)


def test_a_revoked_site_is_let_in_no_more(kit):
    job = Job.parse(job_text(min_sites=2))
    assert sorted(_public_keys(kit / "server", job)) == SITES
    revoke_site(kit / "server", SITES[2])
    assert sorted(_public_keys(kit / "server", job)) == SITES[:2]
    with pytest.raises(FileNotFoundError, match="Check the name"):
        revoke_site(kit / "server", SITES[2])
    with pytest.raises(ValueError, match="the others are revoked"):
        run_server(kit / "server", job=kit / "server" / "job.toml")
    (kit / "server" / "sites" / f"{SITES[1]}.pub").unlink()
    with pytest.raises(ValueError, match="Put the 'link"):
        _public_keys(kit / "server", job)


def test_the_commands_make_show_and_revoke(tmp_path, capsys):
    out = tmp_path / "kit"
    assert main(["federation", "init", "--sites", "a, b,c", "--out", str(out)]) == 0
    assert main(["federation", "show", str(out / "site_a")]) == 0
    shown = capsys.readouterr().out
    assert all(public.fingerprint in shown for public in pinned_identities(out / "server").values())
    assert main(["federation", "revoke", str(out / "server"), "c"]) == 0
    assert main(["federation", "init", "--sites", "a", "--out", str(tmp_path / "other")]) == 1
    assert "at least 2 sites" in capsys.readouterr().err


def test_the_site_command_lists_and_asks(kit, fresh_key, tmp_path, capsys, monkeypatch):
    adata = make_cells()
    adata[adata.obs["site"] == SITES[0]].copy().write_h5ad(tmp_path / "own.h5ad")
    fresh_key.save(tmp_path / "key")
    command = ["federation", "site", str(kit / f"site_{SITES[0]}"), "--data", str(tmp_path / "own.h5ad"), "--key"]
    assert main([*command, str(tmp_path / "key"), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "encoder.1.weight" in shown
    assert "Nothing was sent." in shown
    monkeypatch.setattr("sys.stdin", argparse.Namespace(isatty=lambda: False))
    assert main([*command, str(tmp_path / "key")]) == 1
    assert "Pass `--yes`" in capsys.readouterr().err


def test_without_flower_the_error_says_what_to_install(kit, fresh_key, monkeypatch):
    monkeypatch.setattr("scinfl.flower._require.version", lambda name: "1.39.0")
    with pytest.raises(ImportError, match=r"found 1\.39\.0\. Install it with `pip install 'flwr"):
        run_server(kit / "server", job=kit / "server" / "job.toml")
    with pytest.raises(ImportError, match="pip install 'flwr"):
        run_site(kit / f"site_{SITES[0]}", data=make_cells(), key=fresh_key)


def test_a_site_that_sends_no_term_reads_the_sum_of_the_others(fresh_key):
    import numpy as np

    from scinfl.federation import Update

    identities = {site: Identity.generate(site) for site in "abc"}
    at = {site: KeyedSum(fresh_key, run="r", min_sites=2, identities={site: identities[site]}) for site in "abc"}
    totals = {"a": 10.0, "b": 30.0, "c": 5.0}
    sent = [at[site].encode_weight("training", site, totals[site]) for site in "abc"]
    from scinfl.privacy.aggregation import Aggregator

    server = Aggregator({site: identity.public for site, identity in identities.items()})
    total = server.combine(sent)
    assert {at[site].decode_weights("training", total, sent) for site in "abc"} == {45.0}
    updates = [Update(s, 1, {"w": np.array([v])}, 1, totals[s], {"loss": v}) for s, v in (("a", 1.0), ("b", 2.0))]
    encoded = [at[update.site].encode(update) for update in updates]
    combined = server.combine(encoded)
    at["c"].expect(45.0, replace(updates[0], site="c"))
    read = at["c"].decode(combined, encoded)
    assert read.state["w"] == pytest.approx(1.75)
    assert read.metrics["loss"] == pytest.approx(1.75)


def test_a_site_is_added_without_touching_the_others(tmp_path):
    make_kit(tmp_path / "kit", SITES)
    server = tmp_path / "kit" / "server"
    before = {path: path.read_bytes() for path in (tmp_path / "kit").rglob("*") if path.is_file()}
    folder = add_site(server, "west")
    assert folder.stat().st_mode & 0o077 == 0
    assert {path: path.read_bytes() for path in before} == before
    assert {path.name for path in folder.iterdir()} == {
        path.name for path in (tmp_path / "kit/site_hospital_0").iterdir()
    }
    assert set(pinned_identities(server)) == set(pinned_identities(folder)) == {*SITES, "west"}
    assert (server / "sites" / "west.pub").exists()
    assert SiteSettings.read(folder / "site.toml").site == "west"
    with pytest.raises(FileExistsError, match="no site has or had, found 'west'"):
        add_site(server, "west")
    with pytest.raises(ValueError, match="letters, digits"):
        add_site(server, "../west")
    with pytest.raises(FileNotFoundError, match="folder of the operator"):
        add_site(tmp_path, "east")
    revoke_site(server, "hospital_1")
    shutil.rmtree(tmp_path / "kit" / "site_hospital_1")
    with pytest.raises(FileExistsError, match="hospital_1"):
        add_site(server, "hospital_1")
