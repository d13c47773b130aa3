"""Embeddings of counts through every method, and what they are scored by."""

from __future__ import annotations

from hashlib import sha256
from itertools import count

import numpy as np
import pandas as pd
import pytest
from tests.model.scvi.test_scvi_models import make_counts

import scinfl as si
from scinfl.model import from_scvi

SMALL = {"n_hidden": 16, "n_latent": 4}
TRAIN = {"n_rounds": 8, "lr": 0.01}


@pytest.fixture(scope="module")
def cells():
    return make_counts(n_cells=240)


@pytest.fixture(scope="module")
def compared(cells) -> pd.DataFrame:
    keys = (si.privacy.Key(sha256(bytes([number])).digest(), federation="test") for number in count(1))
    with pytest.MonkeyPatch.context() as patch:  # the same keys in every run: few are tried
        patch.setattr(si.privacy.Key, "generate", lambda: next(keys))
        return si.tl.compare_embeddings(
            cells, "label", site_key="site", n_seeds=1, n_keys=4, init=SMALL, train=TRAIN, progress=False
        )


def value(table: pd.DataFrame, method: str, metric: str) -> float:
    return table[(table["method"] == method) & (table["metric"] == metric)]["value"].item()


def test_every_method_has_every_score(compared):
    table = compared.pivot_table(index="method", columns="metric", values="value", observed=True)
    assert list(table.index) == list(si.tl.EMBEDDING_METHODS)
    assert {"ari", "nmi", "label_transfer", "mixing", "ilisi"} <= set(table.columns)
    assert table.notna().all().all()


def test_training_is_above_and_a_wrong_key_at_the_level_of_no_training(compared):
    for good in ("PCA", "centralised", "FedAvg", "keyed"):
        assert value(compared, good, "label_transfer") > 0.85
    without = [value(compared, method, "label_transfer") for method in ("wrong key", "modules removed")]
    assert max(without) < value(compared, "untrained", "label_transfer") + 0.1
    assert max(without) < value(compared, "keyed", "label_transfer") - 0.1


def test_scores_are_those_of_the_model_that_is_trained_as_users_do(cells, compared):
    own = cells.copy()
    model = from_scvi("SCVI", own, site_key="site", key_scheme=None, **SMALL)
    model.train(progress=False, **TRAIN)
    table = si.metrics.integration(
        model.get_latent_representation(), batch=own.obs["site"], labels=own.obs["label"]
    ).set_index("metric")
    for metric in ("label_transfer", "mixing", "ilisi", "asw_label"):
        assert value(compared, "FedAvg", metric) == table.loc[metric, "value"]


def test_data_stay_as_they_are_and_labels_choose_nothing(cells, compared):
    assert list(cells.obs) == ["site", "label"]
    assert not cells.obsm
    assert not cells.uns
    other = cells.copy()
    other.obs["label"] = np.random.default_rng(0).permutation(other.obs["label"])
    table = si.tl.compare_embeddings(
        other, "label", site_key="site", methods=["FedAvg"], n_seeds=1, init=SMALL, train=TRAIN, progress=False
    )
    assert value(table, "FedAvg", "mixing") == value(compared, "FedAvg", "mixing")


def test_a_scanvi_takes_the_labels_and_its_unlabelled_cells_are_not_scored(cells):
    own = cells.copy()
    own.obs["label"] = np.where(np.arange(240) % 4 == 0, "unknown", own.obs["label"])
    table = si.tl.compare_embeddings(
        own,
        "label",
        site_key="site",
        kind="SCANVI",
        unlabeled_category="unknown",
        methods=["centralised", "keyed"],
        n_seeds=1,
        init=SMALL,
        train=TRAIN,
        progress=False,
    )
    assert value(table, "keyed", "label_transfer") > 0.85
    assert value(table, "centralised", "label_transfer") > 0.85


def test_the_table_is_drawn(compared):
    ax = si.pl.compare(compared, ["ari", "label_transfer"])
    assert [text.get_text() for text in ax.get_yticklabels()] == list(si.tl.EMBEDDING_METHODS)


def test_what_cannot_be_compared_is_refused(cells):
    with pytest.raises(ValueError, match=r"methods.*found \['umap'\]"):
        si.tl.compare_embeddings(cells, "label", site_key="site", methods=["umap"])
    with pytest.raises(KeyError, match="tissue"):
        si.tl.compare_embeddings(cells, "label", site_key="tissue")
