"""Changes that sites add up, and the noise that their controls add to them."""

from __future__ import annotations

import numpy as np
import pytest

from scinfl.model.gears._data import Condition, MeanChange
from scinfl.model.gears._prior import Prior
from scinfl.model.gears._rules import Weights
from scinfl.model.gears._sums import pooled_changes
from scinfl.privacy import Key, KeyedSum

N_GENES = 4
SETS = [("A",), ("B",)]


def site(rng, level, n_controls, cells):
    """Change of each condition of a site, and the cells and controls it comes from."""
    controls = rng.normal(level, 1 + level, (n_controls, N_GENES))
    noise = controls.var(0, ddof=1) / n_controls
    own = [Condition(genes, (level,)) for genes in SETS]
    return [MeanChange(condition, n, rng.normal(size=N_GENES), noise) for condition, n in zip(own, cells, strict=True)]


@pytest.mark.parametrize("secret", [False, True])
def test_the_noise_of_controls_is_that_of_a_mean_weighted_by_cells(secret):
    rng = np.random.default_rng(0)
    sites = {"a": [*site(rng, 0, 20, (30, 10)), *site(rng, 1, 8, (5, 15))], "b": site(rng, 0, 40, (20, 20))}
    protections = [KeyedSum(Key.generate(), min_sites=2)] if secret else []
    changes, noise = pooled_changes(SETS, sites, protections)
    groups = [(40, sites["a"][0].noise), (20, sites["a"][2].noise), (40, sites["b"][0].noise)]
    np.testing.assert_allclose(noise, sum((n / 100) ** 2 * own for n, own in groups), rtol=1e-6)
    first = [(one.n_cells, one.change) for own in sites.values() for one in own if one.condition.genes == ("A",)]
    np.testing.assert_allclose(changes[0], sum(n * change for n, change in first) / 55, rtol=1e-6)


def test_an_expected_error_has_the_noise_of_two_sets_of_controls():
    weights = {"single": Weights(np.eye(6)[0], np.full(N_GENES, 0.3))}
    prior = Prior("fitted", (("A",),), np.ones((1, N_GENES)), {}, noise=np.full(N_GENES, 0.08), weights=weights)
    np.testing.assert_allclose(prior.error([("B",)])[0], 0.5)
