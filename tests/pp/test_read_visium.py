"""Folders of Space Ranger, of Visium and of Visium HD."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import squidpy as sq

import scinfl as si

SIZES = {"n_spots": 150, "n_genes": 30}


@pytest.fixture(scope="module")
def visium(tmp_path_factory):
    return si.datasets.visium_simulated(tmp_path_factory.mktemp("visium"), 2, **SIZES)


@pytest.fixture(scope="module")
def bins(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hd")
    si.datasets.visium_simulated(folder, 2, bin_size=16, **SIZES)
    si.datasets.visium_simulated(folder / "more", 2, bin_size=8, rng=1, **SIZES)
    for section in ("section_1", "section_2"):
        outs = folder / section / "binned_outputs"
        (folder / "more" / section / "binned_outputs" / "square_008um").rename(outs / "square_008um")
    return [folder / "section_1", folder / "section_2"]


def test_visium_is_read_as_squidpy_reads_it(visium):
    adata, expected = si.pp.read_visium(visium[0]), sq.read.visium(visium[0])
    assert adata.shape == (150, 30)
    assert (adata.X != expected.X).nnz == 0
    np.testing.assert_array_equal(adata.obsm["spatial"], expected.obsm["spatial"])
    pd.testing.assert_frame_equal(adata.obs, expected.obs)


def test_generated_visium_has_the_counts_and_places_of_the_generated_tissue(visium):
    tissue = si.datasets.mosaic_simulated(2, n_spots=150, n_genes=30, modalities=["rna"], faint=1.0)["rna"][:150]
    adata = si.pp.read_visium(visium[0])
    assert (adata.X != tissue.X).nnz == 0
    moved = 2 * adata.obsm["spatial"] - tissue.obsm["spatial"]  # two micrometres per pixel
    assert np.ptp(moved, axis=0).max() < 4
    annotation = pd.read_csv(visium[0] / "annotation.csv", index_col="barcode")
    assert annotation.index.equals(adata.obs_names.rename("barcode"))
    assert annotation["domain"].tolist() == tissue.obs["domain"].tolist()


@pytest.mark.parametrize("hd", [False, True])
def test_spots_outside_of_the_tissue_are_left_out_with_a_message(visium, bins, hd):
    folder, size = (bins[0], 8) if hd else (visium[0], None)
    with pytest.warns(UserWarning, match=r"Left out \d+ of \d+ spots outside of the tissue"):
        raw = si.pp.read_visium(folder, bin_size=size, counts_file="raw_feature_bc_matrix.h5")
    filtered = si.pp.read_visium(folder, bin_size=size)
    assert raw.obs_names.tolist() == filtered.obs_names.tolist()
    assert (raw.X != filtered.X).nnz == 0


def test_bins_of_visium_hd_come_with_places_images_and_scale(bins):
    adata = si.pp.read_visium(bins[0], bin_size=8)
    inner = bins[0] / "binned_outputs" / "square_008um"
    places = pd.read_parquet(inner / "spatial" / "tissue_positions.parquet").set_index("barcode").loc[adata.obs_names]
    np.testing.assert_array_equal(adata.obsm["spatial"][:, 0], places["pxl_col_in_fullres"])
    np.testing.assert_array_equal(adata.obsm["spatial"][:, 1], places["pxl_row_in_fullres"])
    np.testing.assert_array_equal(adata.obs["array_row"], places["array_row"])
    (library,) = adata.uns["spatial"].values()
    assert set(library["images"]) == {"hires", "lowres"}
    factors = library["scalefactors"]
    side = np.diff(np.unique(adata.obsm["spatial"][:, 0])).min()
    assert side * factors["microns_per_pixel"] == pytest.approx(8, rel=0.05)
    for again in (si.pp.read_visium(inner), si.pp.read_visium(inner, bin_size=8)):
        assert again.obs_names.equals(adata.obs_names)


def test_bins_of_several_sections_are_embedded_and_drawn_on_their_images(bins):
    sections = {folder.name: si.pp.read_visium(folder, bin_size=16) for folder in bins}
    adata = si.pp.join_sections(sections)
    sq.gr.spatial_neighbors(adata, library_key="section", coord_type="grid", n_neighs=4)
    si.model.SpaMosaic.setup_anndata(adata, "section")
    model = si.model.SpaMosaic(adata, graph="squidpy", n_components=8, n_hidden=16)
    model.train(3, key=si.privacy.Key.generate(), progress=False)
    si.tl.embed(adata, model)
    si.tl.cluster(adata, 3)
    sq.gr.nhood_enrichment(adata, cluster_key="infl_domain", n_perms=20, show_progress_bar=False)
    ax = si.pl.sections(adata, section_key="section")
    assert [len(panel.images) for panel in ax.child_axes] == [1, 1]
    plt.close("all")


def test_folders_that_are_not_clear_are_refused_with_a_cure(visium, bins, tmp_path):
    with pytest.raises(ValueError, match=r"`bin_size`, since there are bins of 8 µm, 16 µm"):
        si.pp.read_visium(bins[0])
    with pytest.raises(FileNotFoundError, match=r"bins of 2 µm .* found 8 µm, 16 µm"):
        si.pp.read_visium(bins[0], bin_size=2)
    with pytest.raises(FileNotFoundError, match="found spots of Visium"):
        si.pp.read_visium(visium[0], bin_size=8)
    with pytest.raises(FileNotFoundError, match="found neither"):
        si.pp.read_visium(tmp_path)
    table = visium[1] / "spatial" / "tissue_positions.csv"
    whole = table.read_text()
    table.write_text("\n".join(whole.split("\n")[:100]))
    with pytest.raises(ValueError, match=r"position of every spot, found none of 51"):
        si.pp.read_visium(visium[1])
    table.write_text(whole)
    with pytest.raises(FileExistsError):
        si.datasets.visium_simulated(visium[0].parent, 2, **SIZES)
    with pytest.raises(ValueError, match="bin_size"):
        si.datasets.visium_simulated(tmp_path, bin_size=5)
