"""Sessions of users of squidpy and SpatialData."""

from __future__ import annotations

import json

import anndata as ad
import h5py
import matplotlib.pyplot as plt
import mudata as md
import numpy as np
import pandas as pd
import pytest
import squidpy as sq
from anndata import AnnData
from scipy import sparse

import scinfl as si

KEY = si.privacy.Key(bytes(range(32)), federation="visium")
N_GENES, PITCH = 20, 40
QUICK = {"n_components": 8, "n_hidden": 16}


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def write_visium(folder, number: int, side: int = 14):
    """A folder as Space Ranger writes it: three stripes of tissue, two columns of spots beside it."""
    generator = np.random.default_rng(number)
    profiles = np.random.default_rng(0).gamma(1.0, 2.0, (3, N_GENES))
    row, column = (axis.ravel() for axis in np.meshgrid(np.arange(side), np.arange(side), indexing="ij"))
    x, y = PITCH * (2 + column + row % 2 / 2), PITCH * (2 + row * np.sqrt(3) / 2)
    inside = column < side - 2
    domain = np.minimum(column * 3 // (side - 2), 2)
    effect = np.exp(generator.normal(0, 0.2, N_GENES))
    counts = generator.poisson(profiles[domain] * effect * np.where(inside, 10, 0.5)[:, None])
    names = [f"SPOT{spot:04d}-1" for spot in range(side * side)]
    matrix = sparse.csr_matrix(counts.astype(np.int32))  # rows of spots are columns of the file
    (folder / "spatial").mkdir(parents=True)
    with h5py.File(folder / "raw_feature_bc_matrix.h5", "w") as file:
        file.attrs["library_ids"] = np.array([folder.name], "S")
        group = file.create_group("matrix")
        group["barcodes"] = np.array(names, "S")
        group["data"], group["indices"], group["indptr"] = matrix.data, matrix.indices, matrix.indptr
        group["shape"] = np.array(matrix.shape[::-1])
        features = group.create_group("features")
        for entry, value in (("id", "ENSG{}"), ("name", "GENE{}")):
            features[entry] = np.array([value.format(gene) for gene in range(N_GENES)], "S")
        features["feature_type"] = np.array(["Gene Expression"] * N_GENES, "S")
        features["genome"] = np.array(["GRCh38"] * N_GENES, "S")
    places = pd.DataFrame({"in_tissue": inside.astype(int), "array_row": row, "array_col": column}, index=names)
    places["pxl_row_in_fullres"], places["pxl_col_in_fullres"] = y.round().astype(int), x.round().astype(int)
    places.rename_axis("barcode").to_csv(folder / "spatial" / "tissue_positions.csv")
    factors = {"spot_diameter_fullres": 26.0, "tissue_hires_scalef": 0.5, "tissue_lowres_scalef": 0.1}
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    size = PITCH * (side + 4)
    for name, factor in (("hires", 0.5), ("lowres", 0.1)):
        picture = np.full((int(size * factor), int(size * factor), 3), [0.9, 0.8, 0.85])
        plt.imsave(folder / "spatial" / f"tissue_{name}_image.png", picture)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("visium")
    for number in range(3):
        write_visium(root / f"patient_{number}", number)
    return root


def read(folders) -> AnnData:
    """All sections, as a user reads them."""
    sections = {}
    for folder in sorted(folders.iterdir()):
        sections[folder.name] = sq.read.visium(folder, counts_file="raw_feature_bc_matrix.h5")
    with pytest.warns(UserWarning, match="Left out 84 spots outside of the tissue"):
        return si.pp.join_sections(sections)


def trained(adata, **arguments):
    si.model.SpaMosaic.setup_anndata(adata, "section", site_key="section")
    model = si.model.SpaMosaic(adata, **QUICK, **arguments)
    model.train(n_rounds=10, key=KEY, progress=False)
    return model


def stripes(adata) -> float:
    """Agreement of domains with the stripes."""
    names = adata.obs["array_col"].to_numpy() * 3 // 12
    return si.metrics.integration(
        adata.obsm["X_infl"], batch=adata.obs["section"], labels=names.astype(str), clusters=adata.obs["infl_domain"]
    ).set_index("metric")["value"]["ari"]


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data")
def test_a_session_from_visium_folders_to_domains_on_images(folders, tmp_path):
    adata = read(folders)
    assert adata.n_obs == 3 * 12 * 14
    sq.gr.spatial_neighbors(adata, library_key="section", coord_type="grid", n_neighs=6)
    given = adata.obsp["spatial_connectivities"].copy()
    parameters = dict(adata.uns["spatial_neighbors"])
    model = trained(adata, graph="squidpy")
    assert model.n_neighbours == {"X": 0}
    graph = model.neighbours("X")
    assert ((graph != 0) != (given != 0)).nnz == 0

    si.tl.embed(adata, model)
    si.tl.cluster(adata, 3, section_key="section")
    assert stripes(adata) > 0.8
    assert (adata.obsp["spatial_connectivities"] != given).nnz == 0  # what squidpy wrote stays
    assert adata.uns["spatial_neighbors"] == parameters

    colours = list(adata.uns["infl_domain_colors"])
    sq.gr.nhood_enrichment(adata, cluster_key="infl_domain", n_perms=50, seed=0, show_progress_bar=False)
    scores = adata.uns["infl_domain_nhood_enrichment"]["zscore"]
    assert (np.diag(scores) > 5).all()
    sq.pl.spatial_scatter(adata, color="infl_domain", library_key="section")
    assert len(plt.gcf().axes) == 3
    assert list(adata.uns["infl_domain_colors"]) == colours

    for path in (tmp_path / "sections.h5ad", tmp_path / "sections.zarr"):
        adata.write_h5ad(path) if path.suffix == ".h5ad" else adata.write_zarr(path)
        back = ad.read_h5ad(path) if path.suffix == ".h5ad" else ad.read_zarr(path)
        np.testing.assert_array_equal(back.obsm["X_infl"], adata.obsm["X_infl"])
        assert back.obs["infl_domain"].tolist() == adata.obs["infl_domain"].tolist()
        again = si.model.SpaMosaic.load(saved(model, tmp_path), back)
        again.unlock(KEY)
        np.testing.assert_allclose(again.get_latent_representation(), adata.obsm["X_infl"], atol=1e-5)


def saved(model, folder):
    model.save(folder / "model", overwrite=True)
    return folder / "model"


def test_the_graph_of_a_model_is_one_for_squidpy(folders, tmp_path):
    adata = read(folders)
    model = trained(adata)
    si.tl.embed(adata, model)
    si.tl.cluster(adata, 3)
    k = model.n_neighbours["X"]
    assert adata.uns["spatial_neighbors"]["params"]["n_neighbors"] == k
    graph, distances = adata.obsp["spatial_connectivities"], adata.obsp["spatial_distances"]
    assert graph.diagonal().sum() == 0
    assert set(graph.data) == {1.0}
    assert graph.sum(1).min() >= k
    i, j = graph.nonzero()
    assert (adata.obs["section"].to_numpy()[i] == adata.obs["section"].to_numpy()[j]).all()
    xy = adata.obsm["spatial"].astype(float)
    np.testing.assert_allclose(np.asarray(distances[i, j]).ravel(), np.linalg.norm(xy[i] - xy[j], axis=1))

    si.tl.domain_neighbours(adata, section_key="section", n_permutations=50)
    found = adata.uns["infl_domain_nhood_enrichment"]
    sq.gr.nhood_enrichment(
        adata, "infl_domain", library_key="section", n_perms=50, seed=0, n_jobs=1, show_progress_bar=False
    )
    np.testing.assert_allclose(adata.uns["infl_domain_nhood_enrichment"]["zscore"], found["zscore"])
    np.testing.assert_array_equal(adata.uns["infl_domain_nhood_enrichment"]["count"], found["count"])
    sq.pl.nhood_enrichment(adata, "infl_domain")
    sq.gr.spatial_autocorr(adata, genes=list(adata.var_names[:3]), n_perms=None, show_progress_bar=False)
    one = adata[adata.obs["section"] == "patient_0"].copy()
    sq.gr.co_occurrence(one, "infl_domain", interval=5)
    assert one.uns["infl_domain_co_occurrence"]["occ"].shape[:2] == (3, 3)

    order = np.random.default_rng(0).permutation(adata.n_obs)
    shuffled = adata[order].copy()
    del shuffled.obsp["spatial_connectivities"]
    si.tl.embed(shuffled, model)
    assert (shuffled.obsp["spatial_connectivities"] != graph[order][:, order]).nnz == 0
    adata.write_h5ad(tmp_path / "sections.h5ad")


def test_domains_without_neighbours_of_their_own_are_refused_and_missing_ones_left_out(folders):
    adata = read(folders)
    adata.obs["domain"] = pd.Categorical(np.where(adata.obs["array_col"] < 4, "a", "b"))
    with pytest.raises(KeyError, match=r"a spatial graph in adata.obsp\['spatial_connectivities'\], found none"):
        si.tl.domain_neighbours(adata, domain_key="domain")
    sq.gr.spatial_neighbors(adata, library_key="section", coord_type="grid")
    adata.obs.loc[adata.obs_names[:5], "domain"] = np.nan
    si.tl.domain_neighbours(adata, domain_key="domain", n_permutations=20)
    assert adata.uns["domain_nhood_enrichment"]["count"].shape == (2, 2)
    with pytest.raises(ValueError, match="at least 2 domains"):
        si.tl.domain_neighbours(adata[adata.obs["domain"] == "a"].copy(), domain_key="domain")


def test_a_graph_that_is_not_used_is_reported(folders, caplog):
    adata = read(folders)
    trained(adata)
    assert "graph" not in caplog.text
    sq.gr.spatial_neighbors(adata, library_key="section", coord_type="grid")
    trained(adata, graph="squidpy")
    trained(adata, n_neighbours=6)
    assert "graph=" not in caplog.text
    trained(adata)
    assert "The graph in .obsp['spatial_connectivities'] is not used, but with `graph='squidpy'`." in caplog.text


def test_graphs_that_cannot_be_used_are_refused(folders):
    adata = read(folders)
    si.model.SpaMosaic.setup_anndata(adata, "section", site_key="section")
    with pytest.raises(KeyError, match=r"a spatial graph in .obsp\['spatial_connectivities'\], found none"):
        si.model.SpaMosaic(adata, graph="squidpy").train(key=KEY, progress=False)
    sq.gr.spatial_neighbors(adata, coord_type="generic", n_neighs=6)
    with pytest.raises(ValueError, match=r"within sections .* found \d+ pairs of spots of different sections"):
        si.model.SpaMosaic(adata, graph="squidpy").train(key=KEY, progress=False)
    for rule in ({"n_neighbours": 6}, {"radius": 50.0}, {"delaunay": True}, {"scale": "niche"}, {"scale": "cell"}):
        with pytest.raises(ValueError, match="one definition of neighbours, found `graph='squidpy'` and"):
            si.model.SpaMosaic(adata, graph="squidpy", **rule)
    sq.gr.spatial_neighbors(adata, library_key="section", coord_type="grid", key_added="grid")
    adata.obsp["grid_connectivities"].data[0] = -1
    with pytest.raises(ValueError, match=r"weights from 0 in .obsp\['grid_connectivities'\], found 1"):
        si.model.SpaMosaic(adata, graph="grid_connectivities").train(key=KEY, progress=False)


def test_spots_outside_of_the_tissue_have_no_embedding_and_no_domain(folders):
    sections = [sq.read.visium(folder, counts_file="raw_feature_bc_matrix.h5") for folder in sorted(folders.iterdir())]
    adata = ad.concat({str(number): one for number, one in enumerate(sections)}, label="section", index_unique="-")
    outside = (adata.obs["in_tissue"] == 0).to_numpy()
    with pytest.warns(UserWarning, match="84 spots are outside of the tissue"):
        si.model.SpaMosaic.setup_anndata(adata, "section", site_key="section")
    model = si.model.SpaMosaic(adata, **QUICK)
    model.train(n_rounds=10, key=KEY, progress=False)
    si.tl.embed(adata, model)
    np.testing.assert_array_equal(np.isnan(adata.obsm["X_infl"]).all(1), outside)
    assert adata.obsp["spatial_connectivities"][outside].nnz == 0
    with pytest.warns(UserWarning, match=f"84 of {adata.n_obs} cells have no embedding"):
        si.tl.cluster(adata, 3, section_key="section")
    np.testing.assert_array_equal(adata.obs["infl_domain"].isna(), outside)
    assert stripes(adata[~outside]) > 0.8
    without = adata[~outside].copy()
    expected = trained(without).get_latent_representation()
    np.testing.assert_allclose(adata.obsm["X_infl"][~outside], expected, atol=1e-5)


def test_sections_are_drawn_on_their_images(folders):
    adata = read(folders)
    adata.obs["domain"] = pd.Categorical(np.where(adata.obs["array_col"] < 4, "a", "b"))
    adata.uns["domain_colors"] = ["#ff0000", "#0000ff"]
    before = {name: value.copy() for name, value in adata.obsm.items()}
    ax = si.pl.sections(adata, "domain", section_key="section")
    ax.figure.canvas.draw()
    panels = ax.child_axes
    assert [len(panel.images) for panel in panels] == [1, 1, 1]
    boxes = [panel.get_window_extent() for panel in panels]
    assert boxes[0].x1 < boxes[1].x0 < boxes[1].x1 < boxes[2].x0
    for number, panel in enumerate(panels):
        (spots,) = panel.collections
        own = adata[adata.obs["section"] == f"patient_{number}"]
        np.testing.assert_allclose([path.get_extents().width for path in spots.get_paths()], 26 / 2, rtol=1e-3)
        middle = [path.get_extents().get_points().mean(0) for path in spots.get_paths()]
        np.testing.assert_allclose(middle, own.obsm["spatial"] / 2, atol=1e-6)
        red = np.array([*spots.get_facecolor()])[:, 0] == 1
        np.testing.assert_array_equal(red, own.obs["domain"] == "a")
        bars = [artist for artist in panel.artists if type(artist).__name__ == "ScaleBar"]
        assert [bar.dx for bar in bars] == ([pytest.approx(2 * 100 / PITCH, rel=0.02)] if number == 0 else [])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]
    assert list(adata.uns["domain_colors"]) == ["#ff0000", "#0000ff"]
    np.testing.assert_array_equal(adata.obsm["spatial"], before["spatial"])

    ax = si.pl.sections(adata, "GENE0", section_key="section", microns=2.0, size=40, ncols=2)
    ax.figure.canvas.draw()
    (spots,) = ax.child_axes[0].collections
    assert spots.get_array().shape == (168,)
    assert spots.get_paths()[0].get_extents().width == pytest.approx(20, rel=1e-3)
    assert [a.dx for a in ax.child_axes[0].artists if hasattr(a, "dx")] == [4.0]
    assert not si.pl.sections(adata, "domain", section_key="section", image=False).child_axes
    del adata.uns["spatial"]["patient_1"]
    assert not si.pl.sections(adata, "domain", section_key="section").child_axes  # not of every section
    adata.obs["in_tissue"] = (adata.obs["array_col"] < 4).astype(int)
    one = adata[adata.obs["section"] == "patient_0"].copy()
    del one.uns["spatial"]["patient_2"]
    one.uns["spatial"] = {"V1": one.uns["spatial"]["patient_0"]}  # of a single section
    (panel,) = si.pl.sections(one, "domain", section_key="section").child_axes
    assert len(panel.collections[0].get_paths()) == 4 * 14


def make_spatialdata(adata):
    """The same sections as shapes and a table."""
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel, TableModel

    shapes, table = {}, AnnData(adata.X.copy(), adata.obs[["array_col"]].copy(), adata.var.copy())
    table.obs["region"] = adata.obs["section"].to_numpy()
    table.obs["instance"] = np.arange(adata.n_obs) + 7
    for section in adata.obs["section"].cat.categories:
        own = (adata.obs["section"] == section).to_numpy()
        order = np.random.default_rng(0).permutation(own.sum())  # rows of shapes need not be those of the table
        shapes[section] = ShapesModel.parse(
            adata.obsm["spatial"][own][order].astype(float),
            geometry=0,
            radius=13.0,
            index=table.obs["instance"].to_numpy()[own][order],
        )
    table.obs["region"] = table.obs["region"].astype("category")
    table = TableModel.parse(table, region=list(shapes), region_key="region", instance_key="instance")
    return SpatialData(shapes=shapes, tables={"table": table})


@pytest.mark.filterwarnings("ignore:No data for colormapping", "ignore:zarr v3 autosharding")
def test_a_session_from_spatialdata_and_back(folders, tmp_path):
    import spatialdata

    visium = read(folders)
    sdata = make_spatialdata(visium)
    adata = si.pp.from_spatialdata(sdata)
    np.testing.assert_allclose(adata.obsm["spatial"], visium.obsm["spatial"])
    assert adata.obs["section"].tolist() == visium.obs["section"].tolist()
    sq.gr.spatial_neighbors(adata, library_key="section", coord_type="generic", n_neighs=6)
    model = trained(adata, graph="squidpy")
    si.tl.embed(adata, model)
    si.tl.cluster(adata, 3, section_key="section")
    assert stripes(adata) > 0.8
    sq.gr.nhood_enrichment(
        sdata, cluster_key="infl_domain", table_key="table", n_perms=20, seed=0, show_progress_bar=False
    )
    sq.pl.spatial_scatter(sdata.tables["table"], color="infl_domain", library_key="section", shape=None)
    sdata.write(tmp_path / "study.zarr")
    back = spatialdata.read_zarr(tmp_path / "study.zarr").tables["table"]
    np.testing.assert_array_equal(back.obsm["X_infl"], adata.obsm["X_infl"])
    assert back.obs["infl_domain"].tolist() == adata.obs["infl_domain"].tolist()
    assert "zscore" in back.uns["infl_domain_nhood_enrichment"]


def test_bins_and_labels_have_places_too():
    from geopandas import GeoDataFrame
    from shapely import box
    from spatialdata import SpatialData
    from spatialdata.models import Labels2DModel, ShapesModel, TableModel

    def table(region, instances):
        obs = pd.DataFrame({"region": pd.Categorical([region] * len(instances)), "at": instances})
        obs.index = [f"{region}_{name}" for name in instances]
        return TableModel.parse(
            AnnData(np.ones((len(instances), 3), np.float32), obs),
            region=region,
            region_key="region",
            instance_key="at",
        )

    bins = GeoDataFrame({"geometry": [box(8 * x, 8 * y, 8 * x + 8, 8 * y + 8) for x in range(3) for y in range(4)]})
    cells = np.zeros((10, 12), np.int16)
    cells[2:4, 2:8], cells[6:10, 8:10] = 5, 9
    sdata = SpatialData(
        shapes={"bins": ShapesModel.parse(bins)},
        labels={"cells": Labels2DModel.parse(cells, dims=("y", "x"))},
        tables={"square_008um": table("bins", [11, 0, 4]), "segmented": table("cells", [9, 5])},
    )
    np.testing.assert_allclose(
        si.pp.from_spatialdata(sdata, "square_008um").obsm["spatial"], [[20, 28], [4, 4], [12, 4]]
    )
    cells = si.pp.from_spatialdata(sdata, "segmented", section_key="slide", spatial_key="xy")
    np.testing.assert_allclose(cells.obsm["xy"], [[9, 8], [5, 3]])
    assert cells.obs["slide"].tolist() == ["cells", "cells"]
    with pytest.raises(KeyError, match="one of square_008um, segmented, found None"):
        si.pp.from_spatialdata(sdata)


def test_tables_that_cannot_be_read_are_refused(folders):
    sdata = make_spatialdata(read(folders))
    with pytest.raises(KeyError, match="`table` to name one of table, found 'spots'"):
        si.pp.from_spatialdata(sdata, "spots")
    sdata.shapes["patient_1"] = sdata.shapes["patient_1"].iloc[5:]
    with pytest.raises(ValueError, match="every row of region 'patient_1', found 5 of 168 without"):
        si.pp.from_spatialdata(sdata)
    del sdata.tables["table"].uns["spatialdata_attrs"]
    with pytest.raises(ValueError, match="found 'table', which annotates none"):
        si.pp.from_spatialdata(sdata)


def test_modalities_share_columns_places_and_graphs(tmp_path):
    truth = si.datasets.mosaic_simulated(n_spots=100)
    mods = {name: adata.copy() for name, adata in truth.mod.items()}
    mdata = md.MuData(mods)
    si.pp.lift(mdata)
    assert mdata.obs["section"].astype(str).tolist() == truth.obs["section"].astype(str).tolist()
    np.testing.assert_array_equal(mdata.obsm["spatial"], truth.obsm["spatial"])
    si.model.SpaMosaic.setup_mudata(mdata, "section")
    model = si.model.SpaMosaic(mdata, **QUICK, key_scheme=None, n_neighbours=8)
    model.train(n_rounds=2, progress=False)
    si.tl.embed(mdata, model)
    si.tl.cluster(mdata, 3)
    for adata in mdata.mod.values():
        assert adata.obsp["spatial_connectivities"].shape == (adata.n_obs, adata.n_obs)
        assert adata.uns["spatial_neighbors"]["params"]["n_neighbors"] == 8
    mdata.write(tmp_path / "mosaic.h5mu")
    back = md.read_h5mu(tmp_path / "mosaic.h5mu")
    np.testing.assert_array_equal(back.obsm["X_infl"], mdata.obsm["X_infl"])
    given = si.model.SpaMosaic(mdata, **QUICK, key_scheme=None, graph="squidpy")
    given.train(n_rounds=2, progress=False)
    np.testing.assert_allclose(given.get_latent_representation(), model.get_latent_representation(), atol=1e-5)


def test_modalities_that_disagree_on_places_are_refused():
    mdata = si.datasets.mosaic_simulated(n_spots=100)
    mods = {name: adata.copy() for name, adata in mdata.mod.items()}
    mods["adt"].obsm["spatial"] = mods["adt"].obsm["spatial"] + 1
    mdata = md.MuData(mods)
    with pytest.raises(ValueError, match=r"agree on obsm.*found 100 spots that 'adt' puts at another place"):
        si.pp.lift(mdata)
    with pytest.raises(ValueError, match="'rna' and 'adt' to put the spots of section 'section_1' at the same places"):
        si.model.SpaMosaic.setup_mudata(mdata, "section")
