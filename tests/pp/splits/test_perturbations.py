"""Perturbations in training, validation and test."""

from __future__ import annotations

import itertools
import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scinfl._conditions import canonical, genes_of
from scinfl.pp import perturbations, split_perturbations

KINDS = ["simulation", "simulation_single", "single", "combo_seen0", "combo_seen1", "combo_seen2"]
PARTS = ["train", "val", "test"]
SINGLES = [f"G{i}+ctrl" if i % 2 else f"ctrl+G{i}" for i in range(20)]
DOUBLES = [
    f"G{i}+G{j}" if (i + j) % 2 else f"G{j}+G{i}" for i, j in itertools.combinations(range(20), 2) if (i * j) % 3
]


def screen(conditions=(*SINGLES, *DOUBLES), n_each=2, n_controls=61):
    """Named perturbations, their cells shuffled; sites a and b."""
    names = np.array([*["ctrl"] * n_controls, *list(conditions) * n_each], dtype=object)
    names = np.random.default_rng(0).permutation(names)
    genes = sorted({gene for name in names for gene in genes_of(name)})
    obs = pd.DataFrame(
        {
            "condition": names,
            "site": pd.Categorical(np.where(np.arange(len(names)) % 3 == 0, "a", "b")),
            "kind": np.where(np.arange(len(names)) % 5 == 0, "T", "B"),
        },
        index=[f"cell_{i}" for i in range(len(names))],
    )
    X = np.random.default_rng(1).random((len(names), len(genes)))
    adata = ad.AnnData(X, obs, pd.DataFrame(index=genes))
    perturbations(adata)
    return adata


def sets_of(adata):
    perturbed = adata.obs[adata.obs["infl_perturbation"] != "ctrl"]
    return {part: set(perturbed.loc[perturbed["infl_split"] == part, "infl_perturbation"]) for part in PARTS}


def groups_of(adata, part="test"):
    return {group: set(names) for group, names in adata.uns["infl"]["split"][part].items()}


def genes_in(names):
    return {gene for name in names for gene in genes_of(name)}


def naive_simulation(conditions, seed, gene_fraction, combo_fraction):
    """The published order of draws, written out on names as they are."""
    genes = np.unique([g for c in conditions for g in c.split("+") if g != "ctrl"])
    seen = set(np.random.RandomState(seed).choice(genes, int(len(genes) * gene_fraction), replace=False))
    n_seen = {c: sum(g in seen for g in c.split("+")) for c in conditions}
    singles = [c for c in conditions if "ctrl" in c.split("+")]
    doubles = [c for c in conditions if c not in singles]
    both = np.unique([c for c in doubles if n_seen[c] == 2])
    to_train = set(np.random.RandomState(seed).choice(both, int(len(both) * combo_fraction), replace=False))
    train = [c for c in singles if n_seen[c]] + sorted(to_train)
    return train, {
        "combo_seen0": [c for c in doubles if n_seen[c] == 0],
        "combo_seen1": [c for c in doubles if n_seen[c] == 1],
        "combo_seen2": [c for c in both if c not in to_train],
        "unseen_single": [c for c in singles if not n_seen[c]],
    }


def named(groups):
    return {group: {canonical(name) for name in names} for group, names in groups.items()}


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("fractions", [(0.75, 0.75), (0.5, 0.9)])
def test_the_simulation_draws_what_is_published_for_the_same_seed(seed, fractions):
    adata = screen()
    split_perturbations(
        adata, train_gene_fraction=fractions[0], combo_seen2_fraction=fractions[1], rng=seed, site_key="site"
    )
    train, test = naive_simulation([*SINGLES, *DOUBLES], seed, *fractions)
    train, val = naive_simulation(train, seed, 0.9, 0.9)
    assert groups_of(adata, "test") == named(test)
    assert groups_of(adata, "val") == named(val)
    assert sets_of(adata)["train"] == {canonical(name) for name in train}
    assert adata.uns["infl"]["split"]["rng"] == seed


def test_names_decide_the_draw_only_as_they_were_given():
    """Another order of genes in a name changes how names sort, and so which doubles are drawn."""
    turned = ["+".join(reversed(name.split("+"))) for name in DOUBLES]
    one, other = screen(), screen([*SINGLES, *turned])
    split_perturbations(one)
    split_perturbations(other)
    assert groups_of(one)["combo_seen1"] == groups_of(other)["combo_seen1"]
    assert groups_of(one)["combo_seen2"] != groups_of(other)["combo_seen2"]
    _, test = naive_simulation([*SINGLES, *turned], 1, 0.75, 0.75)
    assert groups_of(other) == named(test)


def test_norman_has_the_published_numbers(shared):
    table = pd.read_csv(shared("perturb/norman2019_pairwise_edistance.csv.gz"), index_col=0)
    names = [name.replace("_", "+") for name in table.index if name != "control"]
    adata = screen([name if "+" in name else f"{name}+ctrl" for name in names], n_each=2)
    split_perturbations(adata, rng=1)
    groups = groups_of(adata)
    assert [len(groups[f"combo_seen{n}"]) for n in range(3)] == [9, 52, 18]


def test_a_name_in_two_forms_counts_once():
    adata = screen([*SINGLES, *DOUBLES, "G1+ctrl", "ctrl+G1", "G1"])
    plain = screen()
    split_perturbations(adata)
    split_perturbations(plain)
    assert sets_of(adata) == sets_of(plain)


@pytest.mark.parametrize("rng", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_fills_three_sets_of_whole_perturbations(kind, rng):
    adata = screen()
    split_perturbations(adata, kind, rng=rng)
    sets = sets_of(adata)
    assert all(sets.values())
    assert sum(map(len, sets.values())) == len(set.union(*sets.values()))
    split = adata.obs.groupby("infl_perturbation", observed=True)["infl_split"]
    assert (split.nunique(dropna=False).drop("ctrl") == 1).all()
    assert list(adata.obs["infl_split"].cat.categories) == ["train", "val", "test"]
    for part in ("val", "test"):
        groups = groups_of(adata, part)
        assert set(groups) == {"combo_seen0", "combo_seen1", "combo_seen2", "unseen_single"}
        assert set.union(*groups.values()) == sets[part]


@pytest.mark.parametrize("rng", range(6))
def test_the_tested_subgroup_is_true_of_what_is_left_for_training(rng):
    adata = screen()
    for number in range(3):
        split_perturbations(adata, f"combo_seen{number}", rng=rng)
        sets = sets_of(adata)
        seen = genes_in(sets["train"])
        for name in sets["test"] | sets["val"]:
            assert len(genes_of(name)) == 2
            assert len(seen.intersection(genes_of(name))) == number
        assert genes_in(sets["test"]) - seen or number == 2
        assert number == 2 or not (genes_in(sets["test"]) - seen) & (genes_in(sets["val"]) - seen)
    split_perturbations(adata, "single", rng=rng)
    sets = sets_of(adata)
    assert groups_of(adata)["unseen_single"] == sets["test"]
    assert not genes_in(sets["train"]) & (genes_in(sets["test"]) | genes_in(sets["val"]))
    assert adata.obs["infl_split"].isna().any()


def test_a_double_is_tested_only_if_both_genes_stay_in_training():
    adata = screen(["G1+ctrl", "G2+ctrl", "G3+G4", "G1+G2", "G1+G5", "G2+G5", "G3+G1", "G2+G6"])
    for rng in range(8):
        split_perturbations(adata, "combo_seen2", test_fraction=0.9, rng=rng)
        sets = sets_of(adata)
        assert all(sets.values())
        assert genes_in(sets["test"] | sets["val"]) <= genes_in(sets["train"])


def test_three_genes_count_as_seen_in_part():
    triples = ["+".join(several) for several in itertools.combinations([f"G{i}" for i in range(9)], 3)]
    adata = screen([*SINGLES, *triples])
    split_perturbations(adata)
    seen = genes_in(sets_of(adata)["train"] | sets_of(adata)["val"])
    for number, group in enumerate(("combo_seen0", "combo_seen1", "combo_seen2")):
        for name in groups_of(adata)[group]:
            n_seen = len(seen.intersection(genes_of(name)))
            assert number == (0 if n_seen == 0 else 2 if n_seen == 3 else 1)
    for kind in ("combo_seen0", "combo_seen1", "combo_seen2"):
        split_perturbations(adata, kind)
        assert all(sets_of(adata).values())


def test_the_simulation_of_singles_leaves_doubles_out():
    adata, alone = screen(), screen(SINGLES)
    split_perturbations(adata, "simulation_single")
    split_perturbations(alone)
    assert sets_of(adata) == sets_of(alone)
    assert adata.obs["infl_split"].isna().sum() == 2 * len(DOUBLES)


@pytest.mark.parametrize("kind", ["simulation", "simulation_single", "single", "combo_seen0", "combo_seen1"])
def test_chosen_genes_are_held_out(kind):
    adata = screen()
    split_perturbations(adata, kind, test_genes=["G1", "G2", "G4", "G5"])
    sets = sets_of(adata)
    assert all(sets.values())
    assert not {"G1", "G2", "G4", "G5"} & genes_in(sets["train"] | (set() if kind == "combo_seen1" else sets["val"]))
    if kind.startswith("simulation"):
        assert len(genes_in(groups_of(adata)["unseen_single"])) == 5
        split_perturbations(adata, kind, test_genes=["G1", "G2"], train_gene_fraction=1)
        assert groups_of(adata)["unseen_single"] == {"G1", "G2"}


def test_chosen_perturbations_are_tested():
    adata = screen()
    double = sorted(set(map(canonical, DOUBLES)))[:3]
    split_perturbations(
        adata, test_perturbations=["ctrl+G1", *("+".join(reversed(name.split("+"))) for name in double)]
    )
    assert {"G1", *double} <= sets_of(adata)["test"]
    assert "G1" in groups_of(adata)["unseen_single"]
    split_perturbations(adata, "combo_seen2", test_perturbations=double)
    assert groups_of(adata)["combo_seen2"] == set(double)
    assert sets_of(adata)["val"]


def test_no_test_and_no_split():
    adata = screen()
    split_perturbations(adata, "no_test")
    sets = sets_of(adata)
    assert (len(sets["val"]), sets["test"]) == ((len(SINGLES) + len(DOUBLES)) // 10, set())
    split_perturbations(adata, "no_split")
    assert (adata.obs["infl_split"] == "train").all()


def test_custom_sets_are_taken_as_named(tmp_path):
    adata = screen(["A+ctrl", "ctrl+B", "C", "A+B", "B+C"])
    custom = {"train": ["ctrl", "ctrl+A", "B"], "val": ["C+ctrl"], "test": ["B+A", "C+B"]}
    (tmp_path / "split.json").write_text(json.dumps(custom))
    for given in (custom, tmp_path / "split.json", str(tmp_path / "split.json")):
        split_perturbations(adata, "custom", custom=given)
        assert sets_of(adata) == {"train": {"A", "B"}, "val": {"C"}, "test": {"A+B", "B+C"}}
        assert groups_of(adata)["combo_seen1"] == {"B+C"}
        assert groups_of(adata)["combo_seen2"] == {"A+B"}
        assert groups_of(adata, "val")["unseen_single"] == {"C"}
    with pytest.warns(UserWarning, match=r"ignored 1 others: X\+Y") as caught:
        split_perturbations(adata, "custom", custom={**custom, "val": ["C", "X+Y"]})
    assert caught[0].filename == __file__
    (tmp_path / "split.json").write_text("not json")
    with pytest.raises(ValueError, match="to be a json file"):
        split_perturbations(adata, "custom", custom=tmp_path / "split.json")


def test_controls_are_halved_in_each_site_and_covariate():
    adata = screen()
    split_perturbations(adata)
    controls = adata.obs[adata.obs["condition"] == "ctrl"]
    assert controls["infl_split"].value_counts().to_dict() == {"train": 31, "test": 30, "val": 0}
    split_perturbations(adata, site_key="site", covariate_keys=["kind"])
    controls = adata.obs[adata.obs["condition"] == "ctrl"]
    counts = pd.crosstab([controls["site"], controls["kind"]], controls["infl_split"])
    assert (counts["train"] - counts["test"]).isin([0, 1]).all()
    assert len(counts) == 4
    split_perturbations(adata, split_controls=False)
    assert (adata.obs.loc[adata.obs["condition"] == "ctrl", "infl_split"] == "train").all()


def test_a_single_control_is_for_training():
    adata = screen(n_controls=3)
    adata.obs["site"] = [
        "rare" if i == int(np.argmax(adata.obs["condition"] == "ctrl")) else "b" for i in range(adata.n_obs)
    ]
    split_perturbations(adata, site_key="site")
    assert adata.obs.loc[adata.obs["site"] == "rare", "infl_split"].tolist() == ["train"]
    with pytest.warns(UserWarning, match="found 1 of ctrl"):
        lonely = screen(n_controls=1)
    with pytest.warns(UserWarning, match="found 1 and left none for the test"):
        split_perturbations(lonely)


@pytest.mark.parametrize("kind", [*KINDS, "no_test"])
def test_the_split_follows_rng_and_not_the_order_of_cells(kind):
    adata = screen()
    other = adata[np.random.default_rng(5).permutation(adata.n_obs)].copy()
    split_perturbations(adata, kind)
    split_perturbations(other, kind)
    assert sets_of(adata) == sets_of(other)
    split_perturbations(other, kind, rng=2)
    assert sets_of(adata) != sets_of(other)


def test_the_split_survives_a_file(tmp_path):
    adata = screen()
    split_perturbations(adata, "single")
    adata.write_h5ad(tmp_path / "screen.h5ad")
    back = ad.read_h5ad(tmp_path / "screen.h5ad")
    assert (back.uns["infl"]["split"]["kind"], back.uns["infl"]["split"]["rng"]) == ("single", 1)
    assert groups_of(back) == groups_of(adata)
    assert groups_of(back, "val") == groups_of(adata, "val")
    pd.testing.assert_series_equal(back.obs["infl_split"], adata.obs["infl_split"])
    split_perturbations(back, "simulation")


@pytest.mark.parametrize(
    ("conditions", "arguments", "error", "message"),
    [
        ([*SINGLES, *DOUBLES], {"kind": "random"}, ValueError, "one of"),
        ([*SINGLES, *DOUBLES], {"rng": -1}, ValueError, "from 0"),
        ([*SINGLES, *DOUBLES], {"train_gene_fraction": 0}, ValueError, "train_gene_fraction"),
        ([*SINGLES, *DOUBLES], {"combo_seen2_fraction": 1.5}, ValueError, "combo_seen2_fraction"),
        ([*SINGLES, *DOUBLES], {"kind": "single", "test_fraction": 0}, ValueError, "test_fraction"),
        ([*SINGLES, *DOUBLES], {"kind": "single", "test_fraction": 1}, ValueError, "found none for"),
        ([*SINGLES, *DOUBLES], {"perturbation_key": "guide"}, KeyError, "scinfl.pp.perturbations"),
        ([*SINGLES, *DOUBLES], {"site_key": "hospital"}, KeyError, "hospital"),
        ([*SINGLES, *DOUBLES], {"covariate_keys": ["gap"]}, ValueError, "Fill or drop"),
        ([*SINGLES, *DOUBLES], {"kind": "custom"}, ValueError, "found None"),
        ([*SINGLES, *DOUBLES], {"custom": {"train": []}}, ValueError, r"\['custom'\] only"),
        ([*SINGLES, *DOUBLES], {"kind": "combo_seen2", "test_genes": ["G1"]}, ValueError, "Leave it out"),
        ([*SINGLES, *DOUBLES], {"test_genes": ["G1", "NEW"]}, ValueError, "found 1 that are not: NEW"),
        ([*SINGLES, *DOUBLES], {"kind": "combo_seen2", "test_perturbations": ["G1"]}, ValueError, "not: G1"),
        (SINGLES, {"kind": "combo_seen0"}, ValueError, "20 perturbations of one gene and 0 of several. Split with"),
        (SINGLES, {"kind": "combo_seen2"}, ValueError, "perturbations of two genes"),
        ([*SINGLES, "G1+G2"], {"kind": "combo_seen2"}, ValueError, "found none for val among 20 .* and 1 of"),
        (["G1+ctrl", "G2+ctrl"], {}, ValueError, "found none for train"),
        (DOUBLES, {"kind": "simulation_single"}, ValueError, "found none for train, val, test"),
        (["G1+ctrl"], {"kind": "no_test"}, ValueError, "found none for train"),
        (["G1+G2", "G1+ctrl"], {"kind": "combo_seen2", "test_perturbations": ["G2+G1"]}, ValueError, "G2 in no other"),
        (["A", "B"], {"kind": "custom", "custom": {"train": ["A"], "valid": ["B"]}}, ValueError, "'valid'"),
        (["A", "B"], {"kind": "custom", "custom": {"train": "A", "val": ["B"]}}, ValueError, "a list of"),
        (["A", "B"], {"kind": "custom", "custom": ["A", "B"]}, ValueError, "found list"),
        (["A", "B"], {"kind": "custom", "custom": {"train": ["A"], "test": ["A", "B"]}}, ValueError, "A in several"),
        (["A", "B"], {"kind": "custom", "custom": {"train": ["A"]}}, ValueError, "found 1 in none: B"),
        (["A", "B"], {"kind": "custom", "custom": {"test": ["A", "B"]}}, ValueError, "found none for train"),
    ],
)
def test_impossible_splits_are_refused(conditions, arguments, error, message):
    adata = screen(conditions)
    adata.obs["gap"] = np.nan
    with pytest.raises(error, match=message):
        split_perturbations(adata, **arguments)
    assert "infl_split" not in adata.obs
    assert "split" not in adata.uns["infl"]


def test_data_without_named_perturbations_and_views_are_refused():
    adata = screen()
    with pytest.raises(ValueError, match="found a view"):
        split_perturbations(adata[:30])
    gap = adata.copy()
    gap.obs.loc[gap.obs_names[0], "infl_perturbation"] = np.nan
    with pytest.raises(ValueError, match="found 1 without"):
        split_perturbations(gap)
    del adata.uns["infl"]
    with pytest.raises(KeyError, match=r"Run `scinfl.pp.perturbations`"):
        split_perturbations(adata)
    del adata.obs["infl_perturbation"]
    with pytest.raises(KeyError, match=r"Run `scinfl.pp.perturbations`"):
        split_perturbations(adata)


def test_real_doubles_are_split(shared):
    adata = ad.read_h5ad(shared("perturb/cropseq_mcf10a_28genes.h5ad"))
    adata.X = adata.X.log1p()
    with pytest.warns(UserWarning, match="found 1 of"), pytest.warns(UserWarning, match="zero in all cells"):
        perturbations(adata, unknown="drop")
    for kind in KINDS:
        split_perturbations(adata, kind, site_key="res_1")
        assert all(sets_of(adata).values())
