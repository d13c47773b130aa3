"""Split perturbations into training, validation and test."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scinfl import _names
from scinfl._checks import number_between, obs_column, one_of, owns_data, whole_number
from scinfl._conditions import genes_of
from scinfl.pp.splits._controls import second_half
from scinfl.pp.splits._custom import chosen_by_user, custom_sets
from scinfl.pp.splits._rules import (
    SETS,
    Genes,
    Sets,
    hold_out_combos,
    hold_out_genes,
    hold_out_validation,
    refuse_empty,
    seen_in,
    simulate,
    subgroups,
)

_KINDS = (
    "simulation",
    "simulation_single",
    "combo_seen0",
    "combo_seen1",
    "combo_seen2",
    "single",
    "no_test",
    "no_split",
    "custom",
)


def split_perturbations(
    adata: AnnData,
    kind: str = "simulation",
    *,
    perturbation_key: str = _names.PERTURBATION,
    train_gene_fraction: float = 0.75,
    combo_seen2_fraction: float = 0.75,
    test_fraction: float = 0.1,
    test_genes: Sequence[str] | None = None,
    test_perturbations: Sequence[str] | None = None,
    custom: Mapping[str, Sequence[str]] | str | os.PathLike[str] | None = None,
    split_controls: bool = True,
    site_key: str | None = None,
    covariate_keys: Sequence[str] = (),
    rng: int = 1,
) -> None:
    """Deal whole perturbations out to training, validation and test.

    All cells of a perturbation, of all sites, are in one set. A tested perturbation belongs to a subgroup by its genes
    that training has seen: ``unseen_single``, or ``combo_seen0``, ``combo_seen1`` and ``combo_seen2`` for none, one
    and both of two genes (of more genes: for none, some and all). The kinds are those of GEARS (Roohani et al. 2024):

    ``"simulation"``
        A quarter of the perturbed genes is unseen: what touches them is tested, and so is a quarter of the
        perturbations of two seen genes. Validation is held out of training by the same rule with a tenth each, after
        the subgroups of the test: as published, they count a gene as seen that only training and validation together
        hold.
    ``"simulation_single"``
        The same with perturbations of one gene; others are in no set.
    ``"single"``, ``"combo_seen0"``, ``"combo_seen1"``, ``"combo_seen2"``
        One subgroup alone is tested, and another part of it is for validation. Other perturbations of a gene that is
        held out would leak, and are in no set.
    ``"no_test"``
        A part is for validation, the rest for training.
    ``"no_split"``
        All is for training, controls too.
    ``"custom"``
        Sets as passed.

    With the same ``rng``, ``"simulation"`` draws the genes and perturbations that GEARS 0.1.2 draws (numpy's legacy
    generator in the same order of calls), from the perturbations of ``adata`` by their names in the column of
    conditions. So a published split should come back if the same perturbations, written the same way, are in
    ``adata``. With the 236 of Norman et al. (2019) and ``rng=1`` the test has 9, 52 and 18 of ``combo_seen0``,
    ``combo_seen1`` and ``combo_seen2``, the published numbers. Two names of one perturbation count once, under the
    first. The other kinds draw without replacement where GEARS draws with it, and are not its splits.

    Sets the following fields:

    ``.obs["infl_split"]``
        Categorical ``"train"``, ``"val"``, ``"test"``; missing for what is in no set.
    ``.uns["infl"]["split"]``
        ``kind`` and ``rng`` as passed, and names of perturbations by subgroup in ``test`` and ``val``. A perturbation
        of one gene that training saw in others is in no subgroup.

    Parameters
    ----------
    adata
        Annotated data, no view, after :func:`scinfl.pp.perturbations`.
    kind
        The rule, see above.
    perturbation_key
        Column of ``adata.obs`` with the canonical names of perturbations.
    train_gene_fraction
        Part of the perturbed genes that training sees, for both kinds of simulation.
    combo_seen2_fraction
        Part of the perturbations of two seen genes that is for training, for ``"simulation"``.
    test_fraction
        Part of the genes (of the perturbations of several genes for ``"combo_seen2"``, of all for ``"no_test"``) that
        is held out for the test, and as much again for validation.
    test_genes
        Genes that are held out for the test; not for ``"combo_seen2"``. A simulation replaces those that it drew for
        training by others; with ``train_gene_fraction=1`` no others are held out.
    test_perturbations
        Perturbations that are tested, for ``"combo_seen2"`` and the simulations.
    custom
        ``{"train": [...], "val": [...], "test": [...]}``, or the path of a json file of that form. The genes of a
        perturbation may be in any order; the control need not be named.
    split_controls
        Whether control cells are halved at random: predictions start from those in ``"train"``, and are scored with
        those in ``"test"``. A control mean that prediction and truth share makes changes correlate that do not. With
        ``False`` all are in ``"train"``, as in GEARS.
    site_key
        Column of ``adata.obs`` with sites: controls are halved in each. A single one is for training.
    covariate_keys
        Further columns, such as the cell type, in whose values controls are halved.
    rng
        Seed.

    Raises
    ------
    KeyError
        If a column is missing.
    ValueError
        If arguments do not fit the kind, or the perturbations cannot be split so.

    Warns
    -----
    UserWarning
        If no control cell is left for the test, or ``custom`` names perturbations that are not there.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd, scinfl as si
    >>> conditions = ["ctrl", "ctrl", "A+ctrl", "B+ctrl", "C+ctrl", "D+ctrl", "A+B", "C+D"]
    >>> obs = pd.DataFrame({"condition": conditions * 2}, index=[f"cell_{i}" for i in range(16)])
    >>> X = np.random.default_rng(0).random((16, 4))
    >>> adata = ad.AnnData(X, obs, pd.DataFrame(index=["A", "B", "C", "D"]))
    >>> si.pp.perturbations(adata)
    >>> sets = {"train": ["A", "B", "C"], "val": ["D"], "test": ["B+A", "C+D"]}
    >>> si.pp.split_perturbations(adata, "custom", custom=sets)
    >>> {name: names.tolist() for name, names in adata.uns["infl"]["split"]["test"].items() if len(names)}
    {'combo_seen1': ['C+D'], 'combo_seen2': ['A+B']}
    >>> adata.obs["infl_split"].value_counts().to_dict()
    {'train': 8, 'test': 6, 'val': 2}
    """
    one_of("kind", kind, _KINDS)
    whole_number("rng", rng, 0)
    number_between("train_gene_fraction", train_gene_fraction, 0, 1, open_low=True)
    number_between("combo_seen2_fraction", combo_seen2_fraction, 0, 1)
    number_between("test_fraction", test_fraction, 0, 1, open_low=True)
    names, published_names, control = _named(adata, perturbation_key)
    genes = {name: genes_of(name, control) for name in sorted(published_names) if name != control}
    if kind == "simulation_single":
        genes = {name: several for name, several in genes.items() if len(several) == 1}
    chosen = chosen_by_user(
        kind, genes, control, {"test_genes": test_genes, "test_perturbations": test_perturbations, "custom": custom}
    )
    fractions = train_gene_fraction, combo_seen2_fraction, test_fraction
    sets, groups = _deal(kind, genes, published_names, fractions, rng, chosen, control)
    refuse_empty(kind, sets, genes)
    split = names.map({name: part for part, several in sets.items() for name in several}).to_numpy(
        dtype=object, copy=True
    )
    is_control = (names == control).to_numpy()
    split[is_control] = "train"
    if split_controls and kind != "no_split":
        keys = [*([site_key] if site_key else []), *covariate_keys]
        split[np.flatnonzero(is_control)[second_half(adata, is_control, keys, rng)]] = "test"
    adata.obs[_names.SPLIT] = pd.Categorical(split, categories=SETS)
    adata.uns.setdefault(_names.UNS, {})["split"] = {
        "kind": kind,
        "rng": int(rng),
        **{part: {name: np.array(group, dtype=object) for name, group in groups[part].items()} for part in groups},
    }


def _named(adata: AnnData, perturbation_key: str) -> tuple[pd.Series, dict[str, str], str]:
    """Perturbation of each cell, the first name it was given in the column of conditions, and the control."""
    owns_data(adata)
    record = adata.uns.get(_names.UNS, {}).get("perturbations")
    if record is None or perturbation_key not in adata.obs:
        missing = f"adata.obs[{perturbation_key!r}]" if record is not None else "adata.uns['infl']['perturbations']"
        msg = f"Expected named perturbations, found no {missing}. Run `scinfl.pp.perturbations` first."
        raise KeyError(msg)
    column = adata.obs[perturbation_key]
    if n := int(column.isna().sum()):
        msg = (
            f"Expected a perturbation for every cell in adata.obs['{perturbation_key}'], found {n} without. "
            "Run `scinfl.pp.perturbations` again."
        )
        raise ValueError(msg)
    names = column.astype(str)
    conditions = obs_column(adata, record["condition_key"], "condition_key").astype(str)
    first = ~names.duplicated().to_numpy()
    return names, dict(zip(names[first], conditions[first], strict=True)), record["control"]


def _deal(
    kind: str,
    genes: Genes,
    published_names: Mapping[str, str],
    fractions: tuple[float, float, float],
    rng: int,
    chosen: Mapping[str, Any],
    control: str,
) -> tuple[Sets, dict[str, Sets]]:
    if kind in {"simulation", "simulation_single"}:
        return simulate(genes, published_names, fractions[:2], rng, **chosen)
    if kind == "custom":
        sets = custom_sets(chosen["custom"], genes, control)
    elif kind == "no_split":
        sets = {"train": list(genes), "val": [], "test": []}
    elif kind == "no_test":
        sets = hold_out_validation(genes, fractions[2], rng)
    elif kind == "combo_seen2":
        sets = hold_out_combos(genes, fractions[2], rng, **chosen)
    else:
        sets = hold_out_genes(genes, kind, fractions[2], rng, **chosen)
    seen = seen_in(sets["train"], genes)
    return sets, {part: subgroups(sets[part], genes, seen) for part in ("val", "test")}
