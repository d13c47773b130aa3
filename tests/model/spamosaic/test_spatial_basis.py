"""Directions that follow the tissue: from sums over sites the same as from pooled spots, and what they are."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from scipy import sparse
from sklearn.decomposition import PCA

from scinfl.datasets import mosaic_simulated
from scinfl.federation import Payload
from scinfl.metrics import integration
from scinfl.model.spamosaic._basis_fit import BasisFit, fit_bases
from scinfl.model.spamosaic._batches import centred
from scinfl.model.spamosaic._measured import Measured
from scinfl.model.spamosaic._normalise import normalised
from scinfl.model.spamosaic._spatial_basis import BasisOptions, SpatialBasis
from scinfl.model.spamosaic._spots import read_spots

OPTIONS = BasisOptions(n_components=10, n_features=2000, n_target=6, n_hops=2)
FORMS = {"counts": ("rna", {}), "accessibility": ("atac", {}), "fewer features": ("rna", {"n_features": 40})}


@pytest.fixture(scope="module")
def spots() -> dict[str, Measured]:
    mdata = mosaic_simulated(
        n_spots=120, modalities=("rna", "atac"), complete=True, n_genes=60, n_peaks=80, section_effect=0.3
    )
    return read_spots(mdata, section_key="section", site_key="site", spatial_key="spatial", layers={})


def fit_basis(measured: Measured, options: BasisOptions = OPTIONS, *, key=None, rng=0, **settings) -> BasisFit:
    options = replace(options, **settings)
    return fit_bases({"a": measured}, options, key=key, protections=None, payload=Payload(), rng=rng)["a"]


def pooled(measured: Measured) -> Measured:
    return replace(measured, site=np.full(len(measured.rows), "all"))


def fields_of_waves(n=300, n_features=12, *, wavelength=1.0, noise=0.3, rng=0) -> Measured:
    """One section whose first features are waves over the tissue, and whose last ones are noise."""
    generator = np.random.default_rng(rng)
    xy = generator.random((n, 2))
    x = generator.normal(0, 1, (n, n_features))
    for number in range(3):
        phase = 2 * np.pi * xy @ [np.cos(number), np.sin(number)] / wavelength
        x[:, number] = np.sin(phase) + generator.normal(0, noise, n)
    every = np.full(n, "a")
    return Measured(None, x.astype(np.float32), "none", np.arange(n), xy, every, every, np.arange(n))


# ---- sums over sites are enough


@pytest.mark.parametrize("keyed", [False, True], ids=["plain", "keyed"])
@pytest.mark.parametrize("form", FORMS)
def test_three_sites_find_what_one_pooled_site_finds(form, keyed, spots, key):
    modality, settings = FORMS[form]
    measured = spots[modality]
    together = fit_basis(pooled(measured), **settings)
    apart = fit_basis(measured, key=key if keyed else None, **settings)
    atol = 1e-5 if keyed else 1e-6
    one, other = together.basis, apart.basis
    np.testing.assert_array_equal(one.neighbours, other.neighbours)
    for name in ("weights", "deviation", "mean", "variance", "strength", "scale"):
        np.testing.assert_allclose(getattr(other, name), getattr(one, name), rtol=10 * atol, atol=atol, err_msg=name)
    sign = np.sign((one.components * other.components).sum(0))
    np.testing.assert_allclose(other.components * sign, one.components, atol=20 * atol)
    axes, other_axes = one.components @ one.rotation, other.components @ other.rotation
    axes, other_axes = axes / np.linalg.norm(axes, axis=0), other_axes / np.linalg.norm(other_axes, axis=0)
    np.testing.assert_allclose(np.abs((axes * other_axes).sum(0)), 1, atol=atol)
    assert (apart.graph != together.graph).nnz == 0


def test_rows_in_another_order_and_sites_under_other_names_change_nothing(spots):
    generator = np.random.default_rng(0)
    places = spots["rna"].coordinates
    measured = replace(spots["rna"], coordinates=places + generator.normal(size=places.shape))  # no two as near
    expected = fit_basis(measured)
    order = generator.permutation(len(measured.rows))
    mixed = {name: getattr(measured, name)[order] for name in ("matrix", "rows", "coordinates", "section", "site")}
    names = dict(zip(np.unique(measured.site), "zxy", strict=True))
    mixed["site"] = np.array([names[site] for site in mixed["site"]])
    found = fit_basis(replace(measured, **mixed))
    np.testing.assert_allclose(found.basis.strength, expected.basis.strength, atol=1e-6)
    np.testing.assert_allclose(np.abs(found.inputs), np.abs(expected.inputs[order]), atol=2e-3)


def test_every_sum_is_listed_and_none_is_as_large_as_the_spots(spots, key):
    payload = Payload()
    fit_bases({"rna": spots["rna"]}, OPTIONS, key=key, protections=None, payload=payload, rng=0)
    table = payload.table
    assert table["masked"].all()
    assert table["purpose"].str.contains("rna: ").all()
    for what in (
        "moments of features",
        "PCA, around the mean",
        "directions of the tissue",
        "prototypes",
        "members of prototypes",
    ):
        assert f"rna: {what}" in set(table["purpose"])
    n = len(spots["rna"].rows)
    shapes = [int(np.prod([int(size) for size in shape.split("×")])) for shape in table["shape"]]
    assert max(shapes) <= 60 * 61 / 2 < n * 10


# ---- what they are


def test_components_are_those_of_scaled_features(spots):
    measured = spots["rna"]
    basis = fit_basis(measured).basis
    values = normalised(measured.matrix, "lognorm").toarray().astype(np.float64)
    deviation = values.std(0, ddof=1)
    np.testing.assert_allclose(basis.deviation, deviation, rtol=1e-5)
    np.testing.assert_allclose(basis.mean, (values / deviation).mean(0), rtol=1e-5)
    expected = PCA(10, svd_solver="full").fit(values / deviation).components_.T
    np.testing.assert_allclose(np.abs((basis.components * expected).sum(0)), 1, atol=1e-4)
    scores = (values / deviation) @ basis.components
    np.testing.assert_allclose(basis.scores(measured), centred(scores, measured.section), atol=1e-4)


def test_directions_are_those_of_the_formula_and_of_unit_variance(spots):
    measured = spots["rna"]
    fit = fit_basis(measured, n_neighbours=5)
    basis, scores = fit.basis, fit.basis.scores(measured).astype(np.float64)
    graph = fit.graph.toarray() - np.eye(len(scores))
    around = centred(graph / graph.sum(1, keepdims=True) @ scores, measured.section)
    cross = (scores.T @ around + around.T @ scores) / 2 / len(scores)
    covariance = scores.T @ scores / len(scores)
    np.testing.assert_allclose(basis.variance, np.diag(covariance), rtol=1e-5)
    np.testing.assert_allclose(basis.rotation.T @ covariance @ basis.rotation, np.eye(10), atol=1e-3)
    np.testing.assert_allclose(basis.rotation.T @ cross @ basis.rotation, np.diag(basis.strength), atol=1e-3)
    assert (np.diff(basis.strength) <= 0).all()


def test_waves_over_the_tissue_come_first_and_noise_does_not_count():
    measured = fields_of_waves()
    fit = fit_basis(measured, n_components=12, n_neighbours=12)
    basis = fit.basis
    assert (basis.strength[:3] > 0.6).all()
    assert (basis.strength[3:] < 0.2).all()
    axes = basis.components @ basis.rotation / basis.deviation[:, None]
    assert (np.abs(axes[:3, :3]).sum(0) > 4 * np.abs(axes[3:, :3]).sum(0)).all()
    order = np.random.default_rng(1).permutation(len(measured.rows))
    anywhere = replace(measured, coordinates=measured.coordinates[order])
    assert fit_basis(anywhere, n_components=12, n_neighbours=12).information < fit.information / 2


def test_inputs_are_hops_of_the_directions_with_a_mean_square_of_one(spots):
    measured = spots["rna"]
    fit = fit_basis(measured)
    assert fit.inputs.shape == (360, 3 * 10)
    assert fit.inputs.dtype == np.float32
    np.testing.assert_allclose(np.square(fit.inputs).mean(0), 1, rtol=1e-3)
    for section in np.unique(measured.section):
        np.testing.assert_allclose(fit.inputs[measured.section == section].mean(0), 0, atol=1e-4)
    directions = fit.basis.scores(measured) @ fit.basis.rotation
    graph = fit.graph.toarray()
    mean = graph / graph.sum(1, keepdims=True)
    for number, hop in enumerate((directions, mean @ directions, mean @ mean @ directions)):
        own = slice(10 * number, 10 * (number + 1))
        expected = centred(hop, measured.section)
        np.testing.assert_allclose(fit.inputs[:, own] * fit.basis.scale[own], expected, atol=1e-4)
    again = fit.basis.inputs(fit.basis.scores(measured), measured.section, fit.hop, 2)
    np.testing.assert_allclose(again, fit.inputs, atol=1e-5)


def test_as_many_components_as_features_reconstruct_the_features(spots):
    measured = spots["rna"]
    fit = fit_basis(measured, n_components=60)
    values = fit.basis.normalised(measured, np.arange(360))
    np.testing.assert_allclose(values, normalised(measured.matrix, "lognorm").toarray(), atol=1e-6)
    expected = centred(values.astype(np.float64), measured.section) + values.mean(0)
    np.testing.assert_allclose(fit.basis.features(fit.values), expected, atol=1e-3)
    assert np.square(fit.values).mean() == pytest.approx(1, rel=1e-3)


def test_accessibility_is_reconstructed_around_its_mean(spots):
    measured = spots["atac"]
    fit = fit_basis(measured, n_components=40)
    values = fit.basis.normalised(measured, np.arange(360))
    np.testing.assert_allclose(fit.basis.features(np.zeros((1, 40), np.float32))[0], values.mean(0), atol=1e-4)
    assert np.abs(fit.basis.components.T @ fit.basis.components - np.eye(40))[:39, :39].max() < 1e-5
    predicted = fit.basis.features(fit.values)
    rest = centred(values.astype(np.float64), measured.section)
    assert ((predicted - values.mean(0) - rest) ** 2).mean() < 0.75 * (rest**2).mean()


def test_targets_are_neighbourhoods_of_components_that_keep_their_variances(spots):
    one = spots["rna"].section == "section_1"
    parts = {name: getattr(spots["rna"], name)[one] for name in ("matrix", "rows", "coordinates", "section", "site")}
    measured = replace(spots["rna"], **parts)
    fit = fit_basis(measured, n_target=8)
    mean = fit.graph.toarray() / fit.graph.toarray().sum(1, keepdims=True)
    expected = centred(mean @ mean @ fit.basis.scores(measured), measured.section)[:, :8]
    expected /= np.sqrt(np.square(expected).mean())
    np.testing.assert_allclose(fit.target, expected, atol=1e-3)
    around = fit.basis.neighbourhoods(fit.inputs)[:, :8]
    np.testing.assert_allclose(around / np.sqrt(np.square(around).mean()), expected, atol=1e-2)


def test_targets_are_aligned_over_sections(spots):
    measured = spots["rna"]
    fit = fit_basis(measured, n_target=8)
    assert fit.target.shape == (360, 8)
    assert fit_basis(measured, n_target=None).target.shape == (360, 10)
    before = fit.basis.neighbourhoods(fit.inputs)[:, :8]

    def mixing(x):
        table = integration(x, batch=measured.section, n_neighbours=90, rng=0).set_index("metric")["value"]
        return table["mixing"]

    assert mixing(fit.target) > mixing(before)


# ---- which normalisation


def test_depth_that_follows_the_tissue_asks_for_log_ratios_and_depth_that_does_not_for_shares():
    """Genes of a band are higher there; in the second tissue the depth of a spot also is."""
    generator = np.random.default_rng(0)
    n = 600
    xy, every = generator.random((n, 2)), np.full(n, "a")
    profile = generator.gamma(1.0, 1.0, 40)
    band = (xy[:, 0] > 0.5)[:, None]
    sums = {"key": None, "protections": None, "payload": Payload(), "rng": 0}
    found = {}
    for name, depth in (("noise", generator.lognormal(0, 0.4, (n, 1))), ("tissue", 1 + 4 * (xy[:, 1:] > 0.5))):
        shares = profile * np.where(band & (np.arange(40) < 8), 3.0, 1.0)
        counts = generator.poisson(8 * depth * shares).astype(np.float32)
        measured = Measured(None, counts, "lognorm", np.arange(n), xy, every, every, np.arange(n))
        found[name] = fit_bases({"a": measured}, OPTIONS, undecided=["a"], **sums)["a"].measured.normalise
    assert found == {"noise": "lognorm", "tissue": "clr"}


# ---- the width of neighbourhoods


def test_wide_patterns_get_wide_neighbourhoods_in_any_unit():
    found = {
        wavelength: int(fit_basis(fields_of_waves(800, wavelength=wavelength, noise=0.6)).basis.neighbours[0])
        for wavelength in (0.2, 4.0)
    }
    assert found[0.2] < found[4.0] == 30
    measured = fields_of_waves(800, wavelength=0.2, noise=0.6)
    scaled = replace(measured, coordinates=1e5 * measured.coordinates - 7e4)
    assert fit_basis(scaled).basis.neighbours[0] == found[0.2]


@pytest.mark.parametrize(
    ("how", "n"), [({"n_neighbours": 5}, 5), ({"radius": 250.0}, 0), ({"delaunay": True}, 0), ({"compat": True}, None)]
)
def test_a_rule_of_the_user_is_kept(how, n, spots):
    fit = fit_basis(spots["rna"], **how)
    assert n is None or fit.basis.neighbours[0] == n
    options = replace(OPTIONS, **how)
    again = fit.basis.graph(spots["rna"], options)
    assert (again != fit.graph).nnz == 0
    assert ((fit.graph != fit.graph.T).nnz > 0) == ("compat" in how)


# ---- forms of values


def test_dense_and_sparse_and_double_precision_agree(spots):
    measured = spots["rna"]
    expected = fit_basis(measured)
    for matrix in (measured.matrix.toarray(), measured.matrix.astype(np.float64), measured.matrix.astype(np.int64)):
        found = fit_basis(replace(measured, matrix=matrix))
        np.testing.assert_allclose(found.basis.strength, expected.basis.strength, atol=1e-5)
        np.testing.assert_allclose(found.inputs, expected.inputs, atol=1e-3)
        assert found.inputs.dtype == found.target.dtype == found.values.dtype == np.float32


def test_a_file_keeps_all_of_it(spots):
    basis = fit_basis(spots["atac"]).basis
    arrays = {**basis.arrays("atac"), "rna/mean": np.zeros(3)}
    again = SpatialBasis.of_arrays(arrays, "atac")
    for field in fields(SpatialBasis):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(basis, field.name))


@pytest.mark.parametrize("n_features", [1, 2, 3, 12])
def test_fewer_features_than_components_are_enough(n_features, spots):
    measured = replace(spots["rna"], matrix=spots["rna"].matrix[:, :n_features])
    fit = fit_basis(measured, n_components=30, n_target=6)
    assert fit.inputs.shape == (360, 3 * min(n_features, max(6, 10)))
    assert fit.target.shape == (360, min(n_features, 6))
    assert np.isfinite(fit.inputs).all()
    assert np.isfinite(fit.target).all()


def test_features_without_any_count_do_no_harm(spots):
    for modality in ("rna", "atac"):
        measured = spots[modality]
        empty = sparse.csr_matrix((measured.matrix.shape[0], 5), dtype=np.float32)
        fit = fit_basis(replace(measured, matrix=sparse.hstack([measured.matrix, empty]).tocsr()))
        np.testing.assert_array_equal(fit.basis.components[-5:], 0)
        assert np.isfinite(fit.inputs).all()


def test_spots_without_any_count_do_no_harm(spots):
    for modality in ("rna", "atac"):
        matrix = spots[modality].matrix.tolil()
        matrix[3] = 0
        fit = fit_basis(replace(spots[modality], matrix=matrix.tocsr()))
        assert np.isfinite(fit.inputs).all()


def test_values_that_do_not_differ_are_refused(spots):
    measured = replace(spots["rna"], matrix=np.ones((360, 4), np.float32))
    with pytest.raises(ValueError, match="values of 'rna' that differ between the spots of a section, found none"):
        fit_basis(measured)
