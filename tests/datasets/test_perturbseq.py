"""Generated Perturb-seq."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

from scinfl.datasets import perturbseq_simulated


def additive_error(**settings) -> float:
    """Squared distance of the true doubles from the sum of the true singles, relative to their size."""
    adata = perturbseq_simulated(200, n_singles=20, n_doubles=40, n_cells=2, n_controls=2, **settings)
    truth = adata.uns["true_change"]
    doubles = [name for name in truth.index if "ctrl" not in name]
    sums = np.stack([sum(truth.loc[f"{gene}+ctrl"] for gene in name.split("+")) for name in doubles])
    return float(((truth.loc[doubles] - sums) ** 2).to_numpy().sum() / (truth.loc[doubles] ** 2).to_numpy().sum())


def test_interaction_is_a_knob_that_starts_at_additive():
    errors = [additive_error(interaction=interaction) for interaction in (0.0, 0.5, 1.0)]
    assert errors[0] < 1e-12
    assert 0.01 < errors[1] < errors[2]


def test_the_ontology_knows_the_share_that_was_asked_for():
    def overlap(known):
        adata = perturbseq_simulated(200, n_singles=20, n_doubles=0, n_cells=2, n_controls=2, ontology=known)
        truth = adata.uns["true_change"].to_numpy()
        terms = [set(own) for own in adata.uns["gene_terms"].values()]
        first, second = np.triu_indices(20, 1)
        jaccard = [len(terms[i] & terms[j]) / len(terms[i] | terms[j]) for i, j in zip(first, second, strict=True)]
        return np.corrcoef(jaccard, np.corrcoef(truth)[first, second])[0, 1]

    assert overlap(1.0) > overlap(0.5) > 0.1
    assert abs(overlap(0.0)) < 0.2


def test_cells_follow_the_truth_and_counts_have_dropout():
    adata = perturbseq_simulated(200, n_singles=6, n_doubles=3, n_cells=100, n_controls=200)
    values = adata.X.toarray()
    control = values[(adata.obs["condition"] == "ctrl").to_numpy()].mean(0)
    for name, truth in adata.uns["true_change"].iterrows():
        measured = values[(adata.obs["condition"] == name).to_numpy()].mean(0) - control
        assert np.corrcoef(measured, truth)[0, 1] > 0.5
    assert 0.2 < (adata.layers["counts"].toarray() == 0).mean() < 0.8
    assert adata.X.dtype == np.float32


def test_the_same_rng_gives_the_same_cells_and_they_go_through_h5ad(tmp_path):
    one, two, other = (
        perturbseq_simulated(50, n_singles=4, n_doubles=2, n_cells=5, n_controls=9, rng=rng) for rng in (1, 1, 2)
    )
    assert (one.X != two.X).nnz == 0
    assert one.X.shape != other.X.shape or (one.X != other.X).nnz > 0
    one.write_h5ad(tmp_path / "cells.h5ad")
    back = ad.read_h5ad(tmp_path / "cells.h5ad")
    assert list(back.uns["gene_terms"]) == list(one.uns["gene_terms"])
    np.testing.assert_allclose(back.uns["true_change"], one.uns["true_change"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_genes": 3}, "`n_genes` to be a whole number from 10"),
        ({"n_singles": 4, "n_doubles": 7}, "as many doubles as they have pairs"),
        ({"interaction": 2}, "`interaction` to be a number from 0 to 1"),
        ({"ontology": -1}, "`ontology`"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        perturbseq_simulated(**{"n_genes": 20, **arguments})
