"""Rules by which perturbations are dealt out to training, validation and test.

Each takes the perturbed genes of every perturbation, and gives the names of the perturbations of each set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from scinfl._checks import first_of

Genes = Mapping[str, tuple[str, ...]]
Sets = dict[str, list[str]]

SETS = ("train", "val", "test")
SUBGROUPS = ("combo_seen0", "combo_seen1", "combo_seen2", "unseen_single")
_VALIDATION = 0.9, 0.9
_MAX_DRAWS = 100


def subgroups(perturbations: Iterable[str], genes: Genes, seen: set[str]) -> Sets:
    """Deal perturbations by how many of their genes were seen; singles of a seen gene belong to no subgroup."""
    groups: Sets = {name: [] for name in SUBGROUPS}
    for name in perturbations:
        n_seen = len(seen.intersection(genes[name]))
        if len(genes[name]) > 1:
            groups[f"combo_seen{0 if n_seen == 0 else 2 if n_seen == len(genes[name]) else 1}"].append(name)
        elif not n_seen:
            groups["unseen_single"].append(name)
    return groups


def simulate(
    genes: Genes,
    published_names: Mapping[str, str],
    fractions: tuple[float, float],
    rng: int,
    test_genes: Sequence[str] = (),
    test_perturbations: Sequence[str] = (),
) -> tuple[Sets, dict[str, Sets]]:
    """Hold out genes, then perturbations of two seen genes; validation is held out of training by the same rule.

    The random numbers are drawn as in GEARS: ``published_names`` are the names that it sorts by.
    """
    train, test = _simulate_once(genes, published_names, fractions, rng, test_genes, test_perturbations)
    train, val = _simulate_once({name: genes[name] for name in train}, published_names, _VALIDATION, rng)
    groups = {"val": val, "test": test}
    flat = {part: [name for group in groups[part].values() for name in group] for part in groups}
    return {"train": train, **flat}, groups


def _simulate_once(
    genes: Genes,
    published_names: Mapping[str, str],
    fractions: tuple[float, float],
    rng: int,
    test_genes: Sequence[str] = (),
    test_perturbations: Sequence[str] = (),
) -> tuple[list[str], Sets]:
    held_out = {*test_genes, *(genes[name][0] for name in test_perturbations if len(genes[name]) == 1)}
    seen = _seen_genes(sorted(seen_in(genes, genes)), fractions[0], rng, held_out)
    groups = subgroups(genes, genes, seen)
    combos = sorted(groups["combo_seen2"], key=lambda name: published_names[name])
    chosen = _legacy(rng).choice(len(combos), int(len(combos) * fractions[1]), replace=False)
    to_train = {combos[index] for index in chosen}.difference(test_perturbations)
    groups["combo_seen2"] = [name for name in combos if name not in to_train]
    held = {name for group in groups.values() for name in group}
    return [name for name in genes if name not in held], groups


def _seen_genes(every: list[str], fraction: float, rng: int, held_out: set[str]) -> set[str]:
    """Genes of training; those that must be held out are replaced by others."""
    generator = _legacy(rng)
    drawn = set(generator.choice(every, int(len(every) * fraction), replace=False).tolist())
    spare = sorted(set(every) - drawn - held_out)
    n_replaced = min(len(drawn & held_out), len(spare))
    replacements = generator.choice(spare, n_replaced, replace=False).tolist() if n_replaced else []
    return (drawn - held_out).union(replacements)


def _legacy(rng: int) -> np.random.RandomState:
    # published splits were drawn from numpy's old generator, and only it draws them again
    return np.random.RandomState(rng)


def hold_out_genes(genes: Genes, kind: str, fraction: float, rng: int, test_genes: Sequence[str] = ()) -> Sets:
    """Keep all perturbations of some genes from training, and test the kind of perturbation of them that was asked for.

    What touches a held-out gene and is not tested is in no set.
    """
    generator = np.random.default_rng(rng)
    singles = [several for several in genes.values() if len(several) == 1]
    combos = [several for several in genes.values() if len(several) > 1]
    # genes that must be held out together for one perturbation of the kind to be testable
    together = singles if kind == "single" else combos
    if kind == "combo_seen1":
        together = [(gene,) for gene in sorted({gene for several in combos for gene in several})]
    n_genes = max(1, int(fraction * len(seen_in(genes, genes))))
    sets: Sets = {name: [] for name in SETS}
    for _ in range(_MAX_DRAWS):
        order = [together[index] for index in generator.permutation(len(together))]
        test = set(test_genes) or _first_genes(order, n_genes, set())
        sets = _sets_without(genes, kind, {"val": _first_genes(order, n_genes, test), "test": test})
        if all(sets.values()):
            break
    return sets


def _first_genes(order: Sequence[tuple[str, ...]], n_genes: int, taken: set[str]) -> set[str]:
    chosen: set[str] = set()
    for several in order:
        if len(chosen) >= n_genes:
            break
        if not taken.intersection(several):
            chosen.update(several)
    return chosen


def _sets_without(genes: Genes, kind: str, held_out: Mapping[str, set[str]]) -> Sets:
    untouched = seen_in(genes, genes).difference(*held_out.values())
    sets: Sets = {"train": [name for name, several in genes.items() if untouched.issuperset(several)]}
    seen = seen_in(sets["train"], genes)
    for name, own in held_out.items():
        touching = [one for one, several in genes.items() if own.intersection(several) and own | seen >= set(several)]
        sets[name] = subgroups(touching, genes, seen)["unseen_single" if kind == "single" else kind]
    return sets


def hold_out_combos(genes: Genes, fraction: float, rng: int, test_perturbations: Sequence[str] = ()) -> Sets:
    """Test perturbations of several genes, each of which stays in another perturbation of training."""
    combos = [name for name, several in genes.items() if len(several) > 1]
    left = Counter(gene for several in genes.values() for gene in several)
    left.subtract(gene for name in test_perturbations for gene in genes[name])
    if unseen := sorted(gene for gene, n in left.items() if n < 1):
        msg = (
            f"Expected each gene of `test_perturbations` in another perturbation too, found {first_of(unseen)} in no "
            "other. Test fewer of them, or pass `kind='custom'`."
        )
        raise ValueError(msg)
    n_held = max(1, int(fraction * len(combos))) * (1 if test_perturbations else 2)
    held: list[str] = []
    for index in np.random.default_rng(rng).permutation(len(combos)):
        name = combos[index]
        if len(held) < n_held and name not in test_perturbations and all(left[gene] > 1 for gene in genes[name]):
            held.append(name)
            left.subtract(genes[name])
    test = list(test_perturbations) or held[: (len(held) + 1) // 2]
    val = [name for name in held if name not in test]
    return {"train": [name for name in genes if name not in {*test, *val}], "val": val, "test": test}


def hold_out_validation(genes: Genes, fraction: float, rng: int) -> Sets:
    """Keep a fraction of all perturbations for validation, and none for a test."""
    order = [list(genes)[index] for index in np.random.default_rng(rng).permutation(len(genes))]
    n_val = max(1, int(fraction * len(order)))
    return {"train": order[n_val:], "val": order[:n_val], "test": []}


def seen_in(perturbations: Iterable[str], genes: Genes) -> set[str]:
    """Genes of perturbations."""
    return {gene for name in perturbations for gene in genes[name]}


def refuse_empty(kind: str, sets: Sets, genes: Genes) -> None:
    """Refuse a split that leaves a set empty which the kind needs."""
    needed = {"no_test": ("train", "val"), "no_split": ("train",), "custom": ("train",)}.get(kind, SETS)
    if not (missing := [part for part in needed if not sets[part]]):
        return
    n_combos = sum(len(several) > 1 for several in genes.values())
    found = f"{len(genes) - n_combos} perturbations of one gene and {n_combos} of several"
    if kind.startswith("combo") and not n_combos:
        msg = f"Expected perturbations of two genes for kind={kind!r}, found {found}. Split with kind='simulation'."
    else:
        msg = (
            f"Expected perturbations for each of {', '.join(needed)} with kind={kind!r}, found none for "
            f"{', '.join(missing)} among {found}. Change the fractions or `rng`, name the sets with kind='custom', or "
            "choose a kind that these perturbations allow."
        )
    raise ValueError(msg)
