"""Models that version 0.1.0 saved (in `saved/`, with what it predicted) load and predict the same."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scinfl.model import GEARS, Classifier, SpaMosaic

SAVED = Path(__file__).parent / "saved"


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    with np.load(SAVED / "expected.npz") as stored:
        return dict(stored)


def test_a_classifier_of_an_earlier_version_predicts_the_same(expected, key):
    model = Classifier.load(SAVED / "classifier")
    model.unlock(key)
    cells = ad.AnnData(expected["cells"], var=pd.DataFrame(index=model.var_names))
    np.testing.assert_allclose(model.predict(cells, soft=True), expected["probabilities"], rtol=1e-5)


def test_a_model_of_perturbations_of_an_earlier_version_predicts_the_same(expected, key):
    model = GEARS.load(SAVED / "gears")
    model.unlock(key)
    np.testing.assert_allclose(
        model.predict_change(list(expected["perturbations"])), expected["changes"], rtol=1e-4, atol=1e-6
    )


def test_a_model_of_sections_of_an_earlier_version_embeds_the_same(expected, key):
    model = SpaMosaic.load(SAVED / "spamosaic")
    model.unlock(key)
    spots = ad.AnnData(
        sparse.csr_matrix(expected["counts"].astype(np.float32)),
        pd.DataFrame({"section": expected["section"]}, index=[f"spot_{n}" for n in range(len(expected["section"]))]),
        pd.DataFrame(index=model.var_names),
    )
    spots.obsm["spatial"] = expected["spatial"]
    np.testing.assert_allclose(model.get_latent_representation(spots), expected["embedding"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [Classifier, GEARS, SpaMosaic])
def test_models_of_an_earlier_version_are_locked_until_they_have_their_key(kind, tmp_path):
    model = kind.load(SAVED / kind.__name__.lower())
    assert model.is_locked
    assert "sealed and locked" in repr(model)
    with pytest.raises(RuntimeError, match="found a locked one"):
        model.save(tmp_path / "copy")
