"""Every kind of model over sites that are apart, against one process that holds all cells."""

from __future__ import annotations

import re
import shutil

import anndata as ad
import mudata as mu
import numpy as np
import pandas as pd
import pytest
from tests.flower.conftest import (
    FEDERATION,
    RUN,
    SCVI_JOB,
    SITES,
    LocalFederation,
    job_text,
    make_cells,
    make_counts,
    same,
    trained_in_process,
)

from scinfl import datasets, model
from scinfl.pp import align_genes, join_sections, perturbations, split_perturbations


def load(kind, path, key):
    trained = kind.load(path)
    trained.unlock(key)
    return trained


# ---- labels


def test_sites_that_are_apart_choose_the_layers_that_one_process_would(make_federation, fresh_key):
    federation = make_federation(job_text().replace("[model]", '[model]\nn_layers = "auto"'))
    federation.run()
    assert not federation.errors
    cells = make_cells()
    model.Classifier.setup_anndata(cells, "label", site_key="site")
    expected = model.Classifier(cells, n_layers="auto", n_hidden=16)
    expected.train(4, key=fresh_key, run=RUN, progress=False)
    for site in SITES:
        trained = load(model.Classifier, federation.kit(site) / "model", fresh_key)
        assert same(trained, expected)
        assert trained.init_params_["non_kwargs"]["n_layers"] == expected.init_params_["non_kwargs"]["n_layers"]


# ---- perturbations

SCREEN_JOB = (
    FEDERATION
    + """
[model]
class = "GEARS"
n_hidden = 8
[train]
n_rounds = 3
batch_size = 8
loss = "{loss}"
"""
)


def make_screen():
    adata = datasets.perturbseq_simulated(60, n_singles=12, n_doubles=8, n_cells=24)
    perturbations(adata)
    split_perturbations(adata, rng=0)
    # cells of each condition go round the sites; two perturbations are known at one site each
    number = adata.obs.groupby("condition", observed=True).cumcount()
    adata.obs["site"] = [SITES[n % 3] for n in number]
    rare = [c for c in adata.obs["condition"].unique() if c != "ctrl"][:2]
    for site, condition in zip(SITES, rare, strict=False):
        adata.obs.loc[adata.obs["condition"] == condition, "site"] = site
    return adata


@pytest.fixture(scope="module")
def screen():
    return make_screen()


def write_ontology(federation, terms):
    for site in SITES:
        rows = [f"{gene}\t{term}" for gene, own in terms.items() for term in own]
        (federation / "kit" / f"site_{site}" / "terms.tsv").write_text("\n".join(rows) + "\n")


def gears_in_process(screen, key, run=RUN, **train):
    adata = screen.copy()
    model.GEARS.setup_anndata(adata, site_key="site")
    expected = model.GEARS(adata, gene_ontology=adata.uns["gene_terms"], n_hidden=8)
    expected.train(3, key=key, run=run, batch_size=8, progress=False, **train)
    return expected


@pytest.fixture
def apart(make_federation, tmp_path, monkeypatch):
    """Makes a federation whose sites read a gene ontology of their own folder."""

    def make(job, adata, terms=None, **options):
        from scinfl.flower.setup import _templates

        if terms is not None:
            usual = _templates.site_template
            monkeypatch.setattr(
                "scinfl.flower.setup._kit.site_template", lambda site: usual(site) + 'gene_ontology = "terms.tsv"\n'
            )
            from scinfl.flower.setup._kit import make_kit

            (tmp_path / "job.toml").write_text(job)
            make_kit(tmp_path / "kit", SITES, job=tmp_path / "job.toml")
            write_ontology(tmp_path, terms)
        return make_federation(job, adata=adata, **options)

    return make


@pytest.mark.parametrize(("loss", "is_brief"), [("squared", False), ("squared", True), ("auto", False)])
def test_perturbation_sites_that_are_apart_train_the_model_that_one_process_would(
    apart, screen, fresh_key, loss, is_brief
):
    federation = apart(SCREEN_JOB.format(loss=loss), screen, screen.uns["gene_terms"], is_brief=is_brief)
    federation.run()
    assert not federation.errors
    expected = gears_in_process(screen, fresh_key, loss=loss)
    for site in SITES:
        trained = load(model.GEARS, federation.kit(site) / "model", fresh_key)
        assert same(trained, expected)
        assert trained.loss == expected.loss
        assert trained.shrinkage == expected.shrinkage
        wanted = list(screen.uns["gene_terms"])[:2]
        predicted = (one.predict(wanted, adata=screen).X for one in (trained, expected))
        np.testing.assert_array_equal(*predicted)
        left, right = (table.history.drop(columns=["seconds", "bytes_sent"]) for table in (trained, expected))
        pd.testing.assert_frame_equal(left, right, rtol=1e-9)


def test_what_the_server_keeps_of_a_screen_names_no_gene_or_perturbation(apart, screen):
    federation = apart(SCREEN_JOB.format(loss="squared"), screen, screen.uns["gene_terms"])
    federation.run()
    folder = federation.folder / "kit" / "server" / "run"
    kept = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    sent = "".join(answer.to_parts()[0] for _, _, answer in federation.transport.log)
    for gene in list(screen.uns["gene_terms"])[:5]:
        assert gene.encode() not in kept
        assert gene not in sent


def test_a_site_of_a_screen_that_starts_again_reads_the_first_sums_from_its_folder(
    apart, make_federation, screen, fresh_key
):
    first = apart(SCREEN_JOB.format(loss="squared"), screen, screen.uns["gene_terms"])

    first.run_until_crash(SITES[1], 10)
    second = make_federation(SCREEN_JOB.format(loss="squared"), adata=screen)
    second.run(resume=True)
    assert not second.errors
    steps = [message.fields["step"] for _, message, _ in second.transport.log if message.kind == "step"]
    assert min(steps) >= 9  # nothing is asked for again
    expected = gears_in_process(screen, fresh_key, loss="squared")
    assert same(load(model.GEARS, second.kit(SITES[0]) / "model", fresh_key), expected)


def test_sites_with_other_gene_ontologies_are_refused(apart, screen):
    federation = apart(SCREEN_JOB.format(loss="squared"), screen, screen.uns["gene_terms"])
    path = federation.kit(SITES[2]) / "terms.tsv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-6]))
    with pytest.raises(RuntimeError, match="gene ontology"):
        federation.run()


# ---- spatial sections

SPATIAL_JOB = (
    FEDERATION
    + """
[model]
class = "SpaMosaic"
n_components = 8
n_latent = 4
[setup]
section_key = "section"
{setup}
[train]
n_rounds = 2
batch_size = 64
"""
)


def make_sections():
    generator = np.random.default_rng(3)
    sections = {}
    for site in SITES:
        x, y = np.meshgrid(np.arange(14), np.arange(12))
        spatial = np.column_stack([x.ravel(), y.ravel()]).astype(float)
        domain = (spatial[:, 0] > 6).astype(int)
        rates = np.array([np.linspace(1, 8, 20), np.linspace(8, 1, 20)])[domain]
        counts = generator.poisson(rates).astype(np.float32)
        own = ad.AnnData(counts, var=pd.DataFrame(index=[f"gene_{i}" for i in range(20)]))
        own.obsm["spatial"] = spatial
        sections[f"section_{site}"] = own
    adata = join_sections(sections)
    adata.obs["site"] = adata.obs["section"].astype(str).str.removeprefix("section_")
    return adata


def spamosaic_in_process(data, key, **model_options):
    data = data.copy()
    setup = model.SpaMosaic.setup_mudata if isinstance(data, mu.MuData) else model.SpaMosaic.setup_anndata
    setup(data, section_key="section", site_key="site")
    expected = model.SpaMosaic(data, n_components=8, n_latent=4, **model_options)
    expected.train(2, key=key, run=RUN, batch_size=64, progress=False)
    return expected


def test_sections_that_are_apart_train_the_model_that_one_process_would(make_federation, fresh_key):
    adata = make_sections()
    federation = make_federation(SPATIAL_JOB.format(setup=""), adata=adata)
    federation.run()
    assert not federation.errors
    expected = spamosaic_in_process(adata, fresh_key)
    for site in SITES:
        trained = load(model.SpaMosaic, federation.kit(site) / "model", fresh_key)
        assert same(trained, expected)
        own = adata[adata.obs["site"] == site].copy()
        np.testing.assert_array_equal(*(one.get_latent_representation(own) for one in (trained, expected)))


def make_mosaic():
    """Every site has a section of both modalities, and one of RNA alone."""
    rna = make_sections()
    x = rna.obsm["spatial"][:, 0]
    half = x > 9
    rna.obs["section"] = [f"{section}_{'b' if b else 'a'}" for section, b in zip(rna.obs["section"], half, strict=True)]
    both = rna[~half].copy()
    generator = np.random.default_rng(5)
    counts = generator.poisson(np.where(both.obsm["spatial"][:, :1] > 6, [2, 9, 4, 6], [8, 3, 5, 6]))
    protein = ad.AnnData(
        counts.astype(np.float32), both.obs.copy(), pd.DataFrame(index=[f"protein_{i}" for i in range(4)])
    )
    protein.obsm["spatial"] = both.obsm["spatial"]
    mdata = mu.MuData({"rna": rna, "protein": protein})
    for column in ("section", "site"):
        mdata.obs[column] = rna.obs[column].reindex(mdata.obs_names).astype(str)
    return mdata


def test_mosaics_within_sites_train_the_model_that_one_process_would(make_federation, fresh_key, tmp_path):
    mdata, data = make_mosaic(), {}
    for site in SITES:
        own = mdata[mdata.obs["site"] == site].copy()
        own.write_h5mu(tmp_path / f"{site}.h5mu")
        data[site] = tmp_path / f"{site}.h5mu"
    federation = make_federation(SPATIAL_JOB.format(setup=""), data=data)
    federation.run()
    assert not federation.errors
    expected = spamosaic_in_process(mdata, fresh_key)
    for site in SITES:
        trained = load(model.SpaMosaic, federation.kit(site) / "model", fresh_key)
        assert same(trained, expected)
        assert trained._judged.keys() == expected._judged.keys()
        for modality, own in expected._judged.items():
            for name, array in own.items():
                np.testing.assert_array_equal(trained._judged[modality][name], array)


LACKS = {SITES[1]: "protein", SITES[2]: "rna"}


def make_hospitals():
    """RNA and protein at one site, RNA at another, protein at a third: what each has, and all of it in one process."""
    mdata = make_mosaic()
    mdata = mdata[mdata.obs["section"].str.endswith("_a")].copy()  # sections of both modalities
    data = {site: mdata[mdata.obs["site"] == site].copy() for site in SITES}
    for site, lacks in LACKS.items():
        (kept,) = data[site].mod.keys() - {lacks}
        columns = data[site].obs[["section", "site"]]
        data[site] = mu.MuData({kept: data[site][kept].copy()})
        data[site].obs[["section", "site"]] = columns
    kept = {
        name: [mdata[name].obs["site"] != site for site, lacks in LACKS.items() if lacks == name] for name in mdata.mod
    }
    whole = mu.MuData({name: mdata[name][np.logical_and.reduce(rows)].copy() for name, rows in kept.items()})
    for column in ("section", "site"):
        whole.obs[column] = mdata.obs[column].reindex(whole.obs_names)
    return data, whole


@pytest.mark.filterwarnings("ignore:Two sites:UserWarning")
@pytest.mark.parametrize(("has_batch_size", "is_brief"), [(True, True), (False, False)])
def test_sites_with_other_modalities_train_the_model_that_one_process_would(
    make_federation, fresh_key, has_batch_size, is_brief
):
    data, whole = make_hospitals()
    job = SPATIAL_JOB.format(setup="")
    batch_size = {"batch_size": 64} if has_batch_size else {}
    job = job if has_batch_size else job.replace("batch_size = 64\n", "")
    federation = make_federation(job, data=data, accepted=SITES, is_brief=is_brief)
    federation.run()
    assert not federation.errors
    model.SpaMosaic.setup_mudata(whole, section_key="section", site_key="site")
    expected = model.SpaMosaic(whole, n_components=8, n_latent=4)
    expected.train(2, key=fresh_key, run=RUN, progress=False, **batch_size)
    assert any("'protein' is missing at hospital_1" in line for line in federation.lines)
    assert any("'rna' is measured at hospital_0, hospital_1 alone" in line for line in federation.lines)
    history = federation.folder / "kit" / "server" / "run" / "history.csv"
    assert int(history.read_text().splitlines()[1].split(",")[0]) <= 25  # the step of round 1
    for site in SITES:
        trained = load(model.SpaMosaic, federation.kit(site) / "model", fresh_key)
        assert same(trained, expected)
        own = data[site]
        np.testing.assert_array_equal(*(one.get_latent_representation(own) for one in (trained, expected)))
        for lacked in ("rna", "protein"):
            if lacked not in own.mod:
                np.testing.assert_array_equal(*(one.impute(lacked, own) for one in (trained, expected)))


def test_a_site_refuses_sums_that_few_sites_hide_unless_it_agreed_to_them(make_federation):
    data, _ = make_hospitals()
    federation = make_federation(SPATIAL_JOB.format(setup=""), data=data)
    with pytest.raises((ValueError, RuntimeError), match=r"hospital_0.*hospital_1"):
        federation.run()
    message = str(federation.errors[SITES[1]])
    assert re.search("'rna' is measured at hospital_0, hospital_1 alone.*--accept-difference hospital_1", message)
    assert "Nothing was sent" in message


@pytest.mark.parametrize("sum_", ["keyed", "pairwise"])
def test_sums_of_a_modality_without_one_of_its_sites_wait_for_it(make_federation, sum_):
    """Of two sites that are left, each could compute what the other sent, whoever else is in the sum."""
    sites = [*SITES, "hospital_3"]
    data = {site: make_mosaic() for site in sites}
    for number, site in enumerate(sites):
        own = data[site][data[site].obs["site"] == SITES[number % 3]].copy()
        own.obs["site"] = site
        data[site] = own
    data[SITES[1]] = mu.MuData({"rna": data[SITES[1]]["rna"].copy()})
    rna = data[SITES[1]]["rna"]
    data[SITES[1]].obs["section"] = rna.obs["section"].astype(str)
    job = SPATIAL_JOB.format(setup="").replace(str(SITES), str(sites)).replace("deadline = 10", "deadline = 1")
    job = job.replace("min_sites", f'sum = "{sum_}"\ngive_up = 6\nmin_sites').replace("n_rounds = 2", "n_rounds = 4")
    federation = make_federation(job, data=data, sites=sites)

    def lose(site, answer):
        if site == SITES[0] and federation.lines and any("round 1/" in line for line in federation.lines):
            federation.transport.away.add("hospital_3")
        return answer

    federation.transport.changes.append(lose)
    federation.start()
    with pytest.raises(RuntimeError, match="Expected answers of at least 4 sites"):
        federation.server().run(federation.transport)
    assert not any("without hospital_3" in line for line in federation.lines)
    for site in (SITES[0], SITES[2]):  # nor would they read such a sum
        assert federation.sites[site]._task.least({s: own._task.facts() for s, own in federation.sites.items()}) == 4


def test_modalities_that_no_section_links_are_refused(make_federation):
    data, _ = make_hospitals()
    data[SITES[0]] = mu.MuData({"rna": data[SITES[0]]["rna"].copy()})
    data[SITES[0]].obs = data[SITES[0]]["rna"].obs[["section", "site"]]
    federation = make_federation(SPATIAL_JOB.format(setup=""), data=data, accepted=SITES)
    with pytest.raises((ValueError, RuntimeError)):
        federation.run()
    assert "Expected sections that link all modalities" in str(federation.errors[SITES[0]])


def test_a_site_with_other_features_of_a_modality_is_named(make_federation):
    data, _ = make_hospitals()
    data[SITES[2]]["protein"].var_names = [f"other_{i}" for i in range(4)]
    data[SITES[2]].update()
    federation = make_federation(SPATIAL_JOB.format(setup=""), data=data, accepted=SITES)
    with pytest.raises((ValueError, RuntimeError)):
        federation.run()
    assert "Expected the same features of 'protein'" in str(federation.errors[SITES[0]])
    assert "hospital_2" in str(federation.errors[SITES[0]])


def test_a_site_with_a_file_of_another_kind_is_named(make_federation):
    mdata = make_mosaic()
    data = {site: mdata[mdata.obs["site"] == site].copy() for site in SITES}
    data[SITES[1]] = data[SITES[1]]["rna"].copy()
    federation = make_federation(SPATIAL_JOB.format(setup=""), data=data)
    with pytest.raises((ValueError, RuntimeError), match="hospital_1"):
        federation.run()


def test_a_dry_run_of_sections_lists_all_sums_as_masked(make_federation):
    federation = make_federation(SPATIAL_JOB.format(setup=""), adata=make_sections())
    table = federation.sites[SITES[0]].payload()
    assert table["masked"].all()
    assert {"training", "directions of the tissue"} <= set(table["purpose"])
    assert set(table["site"]) == {SITES[0]}


# ---- features that differ


@pytest.mark.parametrize("how", ["intersection", "union"])
def test_sites_bring_themselves_to_the_same_features(make_federation, fresh_key, how):
    adata = make_cells()
    parts = [adata[adata.obs["site"] == site].copy() for site in SITES]
    parts[1] = parts[1][:, ::-1][:, 4:].copy()
    parts[2] = parts[2][:, 3:].copy()
    job = job_text().replace("deadline", f'features = "{how}"\ndeadline')
    federation = make_federation(job, data=dict(zip(SITES, parts, strict=True)))
    federation.run()
    assert not federation.errors
    aligned = [part.copy() for part in parts]
    align_genes(aligned[0], aligned[1:], how=how)
    pooled = ad.concat(aligned)
    trained = load(model.Classifier, federation.kit(SITES[1]) / "model", fresh_key)
    assert list(trained.var_names) == list(pooled.var_names)
    assert same(trained, trained_in_process(pooled, fresh_key))


# ---- noise


def test_noise_is_added_at_each_site_before_its_term_is_masked(make_federation):
    job = job_text(
        more='validation_size = 0.0\n[[protections]]\nclass = "SampleDP"\nnoise_multiplier = 1.0\ndelta = 1e-3'
    )
    federation = make_federation(job)
    federation.run()
    assert not federation.errors
    trained = federation.model(SITES[0])
    assert (trained.history["epsilon"].diff().dropna() > 0).all()
    assert same(trained, federation.model(SITES[1]))
    assert any("epsilon" in line for line in federation.lines)


# ---- a hospital that comes after the end


def test_a_later_run_goes_on_from_the_model_with_a_new_site(tmp_path, fresh_key):
    adata = make_cells(n_sites=4)
    first, sites = adata[adata.obs["site"] != "hospital_3"].copy(), [*SITES, "hospital_3"]
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    before = LocalFederation(tmp_path / "first", first, fresh_key, job_text())
    before.run()
    job = job_text(sites, n_rounds=2).replace("deadline", "continues = true\ndeadline").replace("n_hidden = 16", "")
    after = LocalFederation(tmp_path / "second", adata, fresh_key, job, sites=sites)
    for site in sites:
        handed_over = before.kit(SITES[0] if site == "hospital_3" else site) / "model"
        shutil.copytree(handed_over, after.kit(site) / "model")
    after.run()
    assert not after.errors
    expected = trained_in_process(first, fresh_key)
    expected.add_site(adata[adata.obs["site"] == "hospital_3"].copy())
    expected.train(2, key=fresh_key, run=RUN, progress=False)
    for site in sites:
        assert same(after.model(site), expected)


def test_a_site_without_the_model_or_with_another_one_is_refused(tmp_path, make_federation, fresh_key):
    job = job_text(n_rounds=2).replace("deadline", "continues = true\ndeadline").replace("n_hidden = 16", "")
    federation = make_federation(job)
    with pytest.raises(FileNotFoundError, match="Let another site hand over its folder"):
        federation.sites[SITES[0]].payload()
    for rng, site in enumerate(SITES):
        trained = trained_in_process(make_cells(), fresh_key, n_rounds=1, rng=rng // 2)
        trained.save(federation.kit(site) / "model")
    assert federation.sites[SITES[0]].payload()["masked"].all()
    with pytest.raises(RuntimeError, match="agree"):
        federation.run()


# ---- layers that stay


def test_layers_that_stay_at_a_site_are_those_of_one_process(make_federation, fresh_key):
    adata = make_cells()
    federation = make_federation(job_text(more='share = ["encoder"]'))
    federation.run()
    assert not federation.errors
    expected = trained_in_process(adata, fresh_key, share=["encoder"])
    for site in SITES:
        trained, own = federation.model(site), adata[adata.obs["site"] == site].copy()
        predicted = [trained.predict(own, soft=True), expected.predict(own, soft=True, site=site)]
        np.testing.assert_array_equal(*predicted)
    heads = [federation.model(site).module.head.weight.detach() for site in SITES[:2]]
    assert not (heads[0] == heads[1]).all()


def test_sums_before_training_travel_under_pairwise_masks_too(make_federation, fresh_key):
    adata = make_sections()
    job = SPATIAL_JOB.format(setup="").replace("deadline", 'sum = "pairwise"\ndeadline')
    federation = make_federation(job, adata=adata)
    federation.run()
    assert not federation.errors
    trained = load(model.SpaMosaic, federation.kit(SITES[1]) / "model", fresh_key)
    assert same(trained, spamosaic_in_process(adata, fresh_key))  # sums of integers, whatever the masks


# ---- models of scvi-tools

LABELS = 'labels_key = "label"\nunlabeled_category = "unknown"'


def scvi_in_process(adata, key, kind, **setup):
    expected = model.from_scvi(kind, adata.copy(), site_key="site", n_hidden=16, n_latent=4, **setup)
    expected.train(2, key=key, run=RUN, lr=0.01, progress=False)
    return expected


@pytest.mark.parametrize("kind", ["SCVI", "SCANVI"])
def test_models_of_scvi_tools_over_sites_are_those_of_one_process(make_federation, fresh_key, kind):
    adata = make_counts()
    job = SCVI_JOB.format(kind=kind, setup=LABELS if kind == "SCANVI" else "", n_rounds=2)
    federation = make_federation(job, adata=adata)
    assert federation.sites[SITES[0]].payload()["masked"].all()
    federation.run()
    assert not federation.errors
    setup = {"labels_key": "label", "unlabeled_category": "unknown"} if kind == "SCANVI" else {}
    expected = scvi_in_process(adata, fresh_key, kind, **setup)
    for site in SITES:
        trained = load(model.ScviModel, federation.kit(site) / "model", fresh_key)
        assert trained.sites == SITES
        assert same(trained, expected)
        np.testing.assert_array_equal(*(one.get_latent_representation(adata) for one in (trained, expected)))
        left, right = (table.history.drop(columns=["seconds", "bytes_sent"]) for table in (trained, expected))
        pd.testing.assert_frame_equal(left, right, rtol=1e-9)


def test_a_multivi_over_sites_of_which_one_lacks_the_peaks_is_that_of_one_process(make_federation, fresh_key, tmp_path):
    adata = make_counts()
    types = np.repeat(["Gene Expression", "Peaks"], [12, 8])
    adata.var["feature_types"] = types
    adata.X[np.ix_(adata.obs["site"] == SITES[1], types == "Peaks")] = 0
    data = {site: adata[adata.obs["site"] == site].copy() for site in SITES}
    parts = {"rna": "Gene Expression", "atac": "Peaks"}
    own = data[SITES[2]]  # one site brings its modalities apart
    data[SITES[2]] = mu.MuData({name: own[:, types == kind].copy() for name, kind in parts.items()})
    job = SCVI_JOB.format(kind="MULTIVI", setup="", n_rounds=2)
    for folder in ("accepted", "refused"):
        (tmp_path / folder).mkdir()
    federation = make_federation(job, data=data, accepted=SITES, folder=tmp_path / "accepted")
    federation.run()
    assert not federation.errors
    expected = scvi_in_process(adata, fresh_key, "MULTIVI")
    for site in SITES:
        assert same(load(model.ScviModel, federation.kit(site) / "model", fresh_key), expected)
    refused = make_federation(job, data=data, folder=tmp_path / "refused")
    facts = {site: own._task.facts() for site, own in refused.sites.items()}
    with pytest.raises(ValueError, match=r"'Peaks' is measured at hospital_0, hospital_2 alone.*Nothing was sent"):
        refused.sites[SITES[0]]._check_shown(facts)
    refused.sites[SITES[1]]._check_shown(facts)  # it has none


@pytest.mark.parametrize(
    ("kind", "setup", "more", "found"),
    [
        ("SysVI", "", "", "prior is made of cells"),
        ("SCVI", "", "n_latnet = 3", "n_latnet"),
        ("SCVI", "", 'use_batch_norm = "both"', "batch normalisation"),
        ("SCANVI", "", "", "labels_key"),
    ],
)
def test_jobs_of_scvi_tools_that_cannot_be_are_refused_before_anything_is_sent(
    make_federation, kind, setup, more, found
):
    job = SCVI_JOB.format(kind=kind, setup=setup, n_rounds=2).replace("n_hidden = 16", f"n_hidden = 16\n{more}")
    with pytest.raises(ValueError, match=found):
        make_federation(job, adata=make_counts())


def test_a_site_without_counts_is_refused(make_federation):
    adata = make_counts()
    adata.X = adata.X / 2
    with pytest.raises(ValueError, match=r"Expected counts.*`layer` in site.toml"):
        make_federation(SCVI_JOB.format(kind="SCVI", setup="", n_rounds=2), adata=adata)


def test_a_hospital_that_was_mapped_takes_part_in_a_later_run(tmp_path, fresh_key):
    adata, sites = make_counts(n_sites=4), [*SITES, "hospital_3"]
    old, new = (adata[rows].copy() for rows in (adata.obs["site"] != "hospital_3", adata.obs["site"] == "hospital_3"))
    mapped = model.map_query(scvi_in_process(old, fresh_key, "SCVI"), new, fresh_key, n_epochs=5)
    job = SCVI_JOB.format(kind="SCVI", setup="", n_rounds=2).replace(str(SITES), str(sites))
    job = job.replace("deadline", "continues = true\ndeadline").replace("n_hidden = 16\nn_latent = 4", "")
    federation = LocalFederation(tmp_path, adata, fresh_key, job, sites=sites)
    for site in sites:
        mapped.save(federation.kit(site) / "model")
    federation.run()
    assert not federation.errors
    mapped.add_site(old)
    mapped.train(2, key=fresh_key, run=RUN, lr=0.01, progress=False)
    for site in sites:
        assert same(load(model.ScviModel, federation.kit(site) / "model", fresh_key), mapped)


def test_a_site_that_the_model_does_not_know_is_sent_to_be_mapped(make_federation, fresh_key):
    adata = make_counts()
    others = make_counts()
    others.obs["site"] = others.obs["site"].str.replace("hospital_2", "hospital_9")
    trained = scvi_in_process(others, fresh_key, "SCVI")
    job = SCVI_JOB.format(kind="SCVI", setup="", n_rounds=2).replace("n_hidden = 16\nn_latent = 4", "")
    federation = make_federation(job.replace("deadline", "continues = true\ndeadline"), adata=adata)
    trained.save(federation.kit("hospital_2") / "model")
    with pytest.raises(ValueError, match="map_query"):
        federation.sites["hospital_2"].payload()
