"""The same data and splits through every method, with what each costs and discloses."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import pandas as pd
from anndata import AnnData
from tqdm import tqdm

from scinfl._checks import number_between, obs_column, whole_number
from scinfl._extras import install_line
from scinfl.tl._compare._job import Job, Split
from scinfl.tl._compare._methods import METHODS, NEEDS_TENSEAL, PRIVATE_TRAINING, Method, method_of

logger = logging.getLogger(__name__)


def compare(
    adata: AnnData,
    labels_key: str,
    *,
    site_key: str,
    methods: Sequence[str] | None = None,
    group_key: str | None = None,
    layer: str | None = None,
    n_seeds: int = 3,
    test_size: float = 0.2,
    thief_samples: Sequence[int] = (50, 200),
    n_keys: int = 20,
    delta: float = 1e-5,
    init: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
    train_private: dict[str, Any] | None = None,
    rng: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Compare methods on your own data: utility, cost, what is left without the key, and what the server reads.

    For every seed the rows are split again into training, test and (with model stealing) the attacker's rows, by group
    where there are groups; all methods have the same split. Nothing is chosen on the test rows, except by the attacks,
    which keep their best checkpoint on them.

    Methods with noise have the same split and rounds, but settings of their own (``train_private``), since what is best
    without noise is poor with it. Their epsilon is that of a group, or row, of one site (``SampleDP``) or of a whole
    site (``UpdateDP``, ``Shuffle``) over all rounds of the one training; it does not count that you compare.

    Parameters
    ----------
    adata
        Cells or samples × features.
    labels_key, site_key, layer
        See :meth:`scinfl.model.Classifier.setup_anndata`.
    methods
        Which methods, of :data:`METHODS`; by default all whose extras are installed.
    group_key
        Patient or donor, whose rows are never split between training and test.
    n_seeds
        Number of splits and initialisations.
    test_size
        Share of the groups (or rows) to test on; the attacker has as many.
    thief_samples
        Numbers of labelled samples for model stealing; none leaves it out.
    n_keys
        Wrong keys to try.
    delta
        Delta of the methods with noise, below one over the number of groups, or rows, of the smallest site.
    init, train
        Arguments of :class:`~scinfl.model.Classifier` and its ``train``, for all methods.
    train_private
        What methods with noise train with beside or in place of that. By default every unit takes part in every step,
        one step a round, with ``lr=0.05`` and no validation rows.
    rng
        First seed.
    progress
        Show a progress bar.

    Returns
    -------
    Tidy data frame with the columns ``seed``, ``method``, ``metric``, ``label`` (``"all"`` or a class), ``site``
    (``"all"`` or a site) and ``value``. Metrics are those of :func:`scinfl.metrics.classification`, ``seconds`` and
    ``bytes`` a round, and balanced accuracies of attackers: ``wrong key, mean``, ``wrong key, best``,
    ``modules removed``, ``model stealing, n labelled samples`` (the best of three attacks) and
    ``from scratch, n labelled samples``. With at most 300 features, ``key recovered by the server`` is the share of the
    key's permutation that a server finds from what it was sent.
    ``membership advantage`` is how many more of the training rows than of the test rows have less than the mean
    training loss (Yeom et al. 2018; 0 is a guess), for anyone with access to the model; ``epsilon`` what was spent.
    What the server reads under each method is in ``.attrs["server_sees"]``, and what it reads where a site colludes in
    ``.attrs["helped_server_sees"]``.

    Raises
    ------
    KeyError, ValueError
        If columns, methods or numbers cannot be used; before any training.
    """
    methods = _chosen(methods)
    whole_number("n_seeds", n_seeds, 1)
    whole_number("n_keys", n_keys, 1)
    number_between("test_size", test_size, 0.01, 0.45)
    for column, argument in ((labels_key, "labels_key"), (site_key, "site_key"), (group_key, "group_key")):
        if column is not None:
            obs_column(adata, column, argument)
    _check_sites(methods, adata.obs[site_key].nunique())
    number_between("delta", delta, 0, 0.5, open_low=True)
    setup = {"labels_key": labels_key, "group_key": group_key, "layer": layer}
    rows = []
    with tqdm(total=n_seeds * len(methods), disable=not progress, desc="Comparing") as bar:
        for seed in range(rng, rng + n_seeds):
            split = Split.draw(adata, group_key, test_size, bool(thief_samples), seed)
            private = {**PRIVATE_TRAINING, **(train_private or {})}
            job = Job(
                adata, split, setup, site_key, init or {}, train or {}, private, delta, thief_samples, n_keys, seed
            )
            for name in methods:
                bar.set_postfix_str(name)
                rows += [{"seed": seed, "method": name, **row} for row in job.run(name)]
                bar.update()
    table = pd.DataFrame(rows)
    table["method"] = pd.Categorical(table["method"], categories=list(methods))
    known = {name: method_of(name) or Method("nothing") for name in methods}
    table.attrs["server_sees"] = {name: method.server_sees for name, method in known.items()}
    table.attrs["helped_server_sees"] = {
        name: method.helped_server_sees or method.server_sees for name, method in known.items()
    }
    return table


def _chosen(methods: Sequence[str] | None) -> Sequence[str]:
    """Names of known methods; by default all whose extras are installed."""
    if methods is None:
        if find_spec("tenseal") is not None:
            return METHODS
        logger.warning("Left out '%s': TenSEAL is not installed (`%s`).", NEEDS_TENSEAL, install_line("he"))
        return [name for name in METHODS if name != NEEDS_TENSEAL]
    unknown = [name for name in methods if name not in METHODS]
    if unknown or not methods:
        msg = f"Expected `methods` among {list(METHODS)}, found {unknown or 'none'}."
        raise ValueError(msg)
    return methods


def _check_sites(methods: Sequence[str], n_sites: int) -> None:
    for name in methods:
        method = method_of(name)
        if method is not None and n_sites < method.needs_sites:
            msg = (
                f"Expected at least {method.needs_sites} sites for '{name}', found {n_sites}: a sum of few shows them "
                "to each other. Leave it out of `methods`."
            )
            raise ValueError(msg)
