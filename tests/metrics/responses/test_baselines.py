"""Simple predictions against naive formulas."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA

from scinfl.metrics import perturbation_baselines

GENES = ["A", "B", "C", *[f"g{i}" for i in range(40)]]


@pytest.fixture
def changes():
    generator = np.random.default_rng(0)
    factors, loadings = generator.normal(size=(6, 3)), generator.normal(size=(3, len(GENES)))
    rows = ["A+ctrl", "ctrl+B", "C", "B+A", "g1", "X"]
    return pd.DataFrame(factors @ loadings + 0.1 * generator.normal(size=(6, len(GENES))), rows, GENES)


def naive_linear(changes, members, n_components, ridge):
    """Ahlmann-Eltze et al., gene by gene and perturbation by perturbation."""
    Y = changes.to_numpy().T
    G = PCA(n_components, svd_solver="full").fit_transform(Y)
    row = {gene: G[number] for number, gene in enumerate(changes.columns)}

    def embed(sets):
        return np.array(
            [sum((row.get(gene, np.zeros(n_components)) for gene in own), np.zeros(n_components)) for own in sets]
        )

    P = embed([["A"], ["B"], ["C"], ["A", "B"], ["g1"], ["X"]])
    b = Y.mean(1, keepdims=True)
    penalty = ridge * np.eye(n_components)
    W = np.linalg.inv(G.T @ G + penalty) @ G.T @ (Y - b) @ P @ np.linalg.inv(P.T @ P + penalty)
    return (G @ W @ embed(members).T + b).T


def test_baselines_are_those_of_naive_formulas(changes):
    found = perturbation_baselines(changes, ["C+A", "g7", "B+ctrl", "A+Z"], n_components=3)
    assert list(found) == ["no change", "train mean", "nearest", "additive", "linear"]
    for table in found.values():
        assert list(table.index) == ["A+C", "g7", "B", "A+Z"]
        assert list(table.columns) == GENES
    values = changes.to_numpy()
    singles = values[[0, 1, 2, 4, 5]].mean(0)
    assert (found["no change"] == 0).all(axis=None)
    np.testing.assert_allclose(found["train mean"], np.tile(values.mean(0), (4, 1)))
    nearest = [values[[0, 2, 3]].mean(0), values.mean(0), values[[1, 3]].mean(0), values[[0, 3]].mean(0)]
    np.testing.assert_allclose(found["nearest"], nearest)
    np.testing.assert_allclose(found["additive"], [values[0] + values[2], singles, values[1], values[0] + singles])
    expected = naive_linear(changes, [["A", "C"], ["g7"], ["B"], ["A", "Z"]], 3, 0.1)
    np.testing.assert_allclose(found["linear"], expected, rtol=1e-8)


def test_an_unmeasured_gene_gets_the_train_mean_from_the_linear_model(changes):
    found = perturbation_baselines(changes, ["Z"])
    np.testing.assert_allclose(found["linear"], found["train mean"])
    strong = perturbation_baselines(changes, ["A", "g7"], ridge=1e9)
    np.testing.assert_allclose(strong["linear"], strong["train mean"], atol=1e-6)


def test_the_linear_model_finds_a_linear_truth():
    generator = np.random.default_rng(2)
    embedding = generator.normal(size=(60, 2))
    truth = embedding @ np.array([[1.0, 0.5], [-0.5, 2.0]]) @ embedding.T  # column: change by perturbing that gene
    genes = [f"g{i}" for i in range(60)]
    table = pd.DataFrame(truth.T, genes, genes)
    found = perturbation_baselines(table.iloc[:40], genes[40:], n_components=2, ridge=1e-6)["linear"]
    assert np.corrcoef(found.to_numpy().ravel(), table.iloc[40:].to_numpy().ravel())[0, 1] > 0.95


def test_without_singles_nothing_is_added(changes):
    doubles = changes.iloc[[3]]
    found = perturbation_baselines(doubles, ["A+C"])
    assert list(found) == ["no change", "train mean", "nearest", "linear"]
    similarity = pd.DataFrame({"source": ["A"], "target": ["C"], "importance": [1.0]})
    with pytest.raises(ValueError, match="Leave it out"):
        perturbation_baselines(doubles, ["A+C"], similarity=similarity)


def test_similar_genes_replace_one_that_was_never_perturbed(changes):
    similarity = pd.DataFrame(
        {
            "source": ["A", "C", "Z", "A", "B"],
            "target": ["g7", "g7", "g7", "B", "g8"],
            "importance": [0.75, 0.25, 1.0, 1.0, 0.0],
        }
    )
    found = perturbation_baselines(changes, ["g7", "B", "B+g7", "g8"], similarity=similarity)["similar"]
    values = changes.to_numpy()
    guess = 0.75 * values[0] + 0.25 * values[2]
    average = values[[0, 1, 2, 4, 5]].mean(0)
    np.testing.assert_allclose(found, [guess, values[1], values[1] + guess, average])
    with pytest.raises(ValueError, match="no importance"):
        perturbation_baselines(changes, ["g7"], similarity=similarity[["source", "target"]])


def test_more_components_than_there_are_and_single_precision_are_fine(changes):
    wide = perturbation_baselines(changes.astype(np.float32), ["A+C"], n_components=1000)["linear"]
    assert np.isfinite(wide).all(axis=None)
    one = perturbation_baselines(changes.iloc[:1], ["A", "B"])
    np.testing.assert_allclose(one["train mean"], np.tile(changes.iloc[0], (2, 1)))
    assert len(perturbation_baselines(changes, ["A", "A+ctrl"])["linear"]) == 1


@pytest.mark.parametrize(
    ("change", "perturbations", "arguments", "message"),
    [
        (lambda c: c, [], {}, "`perturbations` to hold perturbations, found none"),
        (lambda c: c, ["A", "ctrl"], {}, "found the control 'ctrl'"),
        (lambda c: c.rename(index={"X": "ctrl"}), ["A"], {}, "`changes` to hold perturbations"),
        (lambda c: c.iloc[:0], ["A"], {}, "`changes` to hold perturbations, found none"),
        (lambda c: c.rename(index={"X": "A"}), ["A"], {}, "several for A"),
        (lambda c: c.assign(g3=np.nan), ["A"], {}, "finite numbers"),
        (lambda c: c, ["A"], {"n_components": 0}, "n_components"),
        (lambda c: c, ["A"], {"ridge": 0}, "ridge"),
    ],
)
def test_bad_input_is_refused(changes, change, perturbations, arguments, message):
    with pytest.raises(ValueError, match=message):
        perturbation_baselines(change(changes), perturbations, **arguments)
