"""A cell beside what was recovered of it."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scinfl import pl


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture
def table():
    x = np.random.default_rng(0).normal(size=40)
    return pd.DataFrame({"nothing": np.zeros(40), "cell": x, "scaled": 3 * x + 1, "turned": -x})


def test_rows_stand_in_the_order_of_the_cell_with_their_correlation(table):
    ax = pl.reconstruction(table, "cell")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["cell", "nothing", "scaled", "turned"]
    values = np.asarray(ax.images[0].get_array())
    assert (np.diff(values[0]) >= 0).all()
    np.testing.assert_allclose(values[2], values[0])
    np.testing.assert_allclose(values[3], -values[0])
    assert (values[1] == 0).all()
    assert [text.get_text() for text in ax.texts] == ["0.00", "1.00", "-1.00", "r"]


def test_axes_are_a_choice(table):
    _, own = plt.subplots()
    assert pl.reconstruction(table, "cell", ax=own) is own


def test_a_cell_with_nothing_beside_it_is_refused(table):
    with pytest.raises(ValueError, match="`true` to be one of"):
        pl.reconstruction(table)
    with pytest.raises(ValueError, match="beside 'cell', found none"):
        pl.reconstruction(table[["cell"]], "cell")
