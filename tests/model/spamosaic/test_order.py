"""Neither the order of rows, nor the axes of a lattice, nor the order of arguments changes an embedding."""

from __future__ import annotations

import mudata as md
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import scinfl as si
from scinfl.model import SpaMosaic
from scinfl.privacy import Key

KEY = Key(bytes(range(32)), federation="lattice")


def make_lattice(n=11, kind="squares", rng=0):
    """Three sections of bins with holes, three stripes in each."""
    generator = np.random.default_rng(rng)
    profiles = generator.gamma(1.0, 2.0, (3, 20))
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(n), np.arange(n + 2)))
    bins = np.c_[x, y] * 8.0 if kind == "squares" else np.c_[(2 * x + y % 2) * 50.0, y * 50 * np.sqrt(3)]
    parts = []
    for number in range(3):
        kept = generator.random(len(bins)) > 0.1
        domain = np.minimum(x[kept] * 3 // n, 2)
        part = AnnData(generator.poisson(profiles[domain] * 10).astype(np.float32))
        part.obs_names = [f"spot_{number}_{spot}" for spot in range(part.n_obs)]
        part.obs["section"], part.obs["domain"] = f"s{number}", domain.astype(str)
        part.obsm["spatial"] = bins[kept]
        parts.append(part)
    return si.pp.join_sections(parts)


def embedded(data, setup=None, **arguments):
    set_up = SpaMosaic.setup_anndata if isinstance(data, AnnData) else SpaMosaic.setup_mudata
    set_up(data, "section", **{"site_key": "section", **(setup or {})})
    model = SpaMosaic(data, n_components=8, n_hidden=16, **arguments)
    model.train(5, key=KEY, progress=False)
    return pd.DataFrame(model.get_latent_representation(), index=data.obs_names), model


@pytest.mark.parametrize(
    "how", [{}, {"scale": "niche"}, {"scale": 8}, {"delaunay": True}, {"radius": 17.0}, {"mutual_weight": 0.8}], ids=str
)
def test_rows_and_axes_of_a_lattice_change_nothing(how):
    adata = make_lattice()
    expected, model = embedded(adata, **how)
    order = np.random.default_rng(1).permutation(adata.n_obs)
    other = adata[order].copy()
    other.obsm["spatial"] = other.obsm["spatial"][:, ::-1] * [1, -1]
    found, _ = embedded(other, **how)
    np.testing.assert_allclose(found.loc[expected.index], expected, atol=1e-5)
    embedding = model.get_latent_representation(other)
    np.testing.assert_allclose(embedding, expected.loc[other.obs_names], atol=1e-5)
    assert expected.std().max() > 0.1


def test_hexagons_have_no_first_axis():
    adata = make_lattice(kind="hexagons")
    expected, _ = embedded(adata)
    turned = adata.copy()
    turned.obsm["spatial"] = turned.obsm["spatial"][:, ::-1]
    np.testing.assert_allclose(embedded(turned)[0], expected, atol=1e-5)


def test_rows_and_order_of_layers_of_a_mudata_change_nothing():
    rna = make_lattice()
    adt = rna[rna.obs["section"] != "s1", :12].copy()
    adt.var_names = [f"protein_{number}" for number in range(12)]
    mods = {"rna": rna[rna.obs["section"] != "s2"].copy(), "adt": adt}
    for adata in mods.values():
        adata.layers["counts"] = adata.X.copy()
    setup = {"site_key": None, "layers": {"rna": "counts", "adt": "counts"}}
    expected, _ = embedded(md.MuData(mods), setup)
    order = np.random.default_rng(1).permutation(rna.n_obs)
    names = rna.obs_names[order]
    data = md.MuData({name: adata[names[names.isin(adata.obs_names)]].copy() for name, adata in mods.items()})
    found, _ = embedded(data, {**setup, "layers": {"adt": "counts", "rna": "counts"}})
    np.testing.assert_allclose(found.loc[expected.index], expected, atol=1e-5)
