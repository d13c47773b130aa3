"""What of a split the user named: genes and perturbations to test, or all sets."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scinfl._checks import first_of, warn
from scinfl._conditions import canonical
from scinfl.pp.splits._rules import SETS, Genes, Sets, seen_in

_TAKERS = {
    "test_genes": ("simulation", "simulation_single", "single", "combo_seen0", "combo_seen1"),
    "test_perturbations": ("simulation", "simulation_single", "combo_seen2"),
    "custom": ("custom",),
}


def chosen_by_user(kind: str, genes: Genes, control: str, passed: Mapping[str, Any]) -> dict[str, Any]:
    """What the user named of the split, checked against the kind and the data."""
    chosen = {name: value for name, value in passed.items() if value is not None}
    for name in chosen:
        if kind not in _TAKERS[name]:
            msg = f"Expected `{name}` with a kind of {list(_TAKERS[name])} only, found kind={kind!r}. Leave it out."
            raise ValueError(msg)
    if kind == "custom" and not chosen:
        msg = "Expected `custom` to name the sets of kind='custom', found None. Pass a dictionary or a json file."
        raise ValueError(msg)
    if "test_perturbations" in chosen:
        chosen["test_perturbations"] = _canonical(chosen["test_perturbations"], control)
    fitting = {name for name in genes if kind != "combo_seen2" or len(genes[name]) > 1}
    for name, known in (("test_genes", seen_in(genes, genes)), ("test_perturbations", fitting)):
        if strange := [one for one in chosen.get(name, ()) if one not in known]:
            msg = (
                f"Expected `{name}` among those of adata that kind={kind!r} deals out, found {len(strange)} that are "
                f"not: {first_of(strange)}. Leave them out, or choose another kind."
            )
            raise ValueError(msg)
    return chosen


def custom_sets(custom: Mapping[str, Sequence[str]] | str | os.PathLike[str], genes: Genes, control: str) -> Sets:
    """Sets that the user named, by canonical names; the control is left out."""
    sets = {name: _canonical(several, control) for name, several in _read(custom).items()}
    n_sets = Counter(name for names in sets.values() for name in names)
    if twice := [name for name, n in n_sets.items() if n > 1]:
        msg = f"Expected each perturbation in one set of `custom`, found {first_of(twice)} in several. Keep one."
        raise ValueError(msg)
    if unnamed := [name for name in genes if name not in n_sets]:
        msg = (
            f"Expected every perturbation in a set of `custom`, found {len(unnamed)} in none: {first_of(unnamed, 20)}. "
            "Name them, or leave their cells out."
        )
        raise ValueError(msg)
    if strange := [name for name in n_sets if name not in genes]:
        msg = (
            f"Expected only perturbations of the cells in `custom`, ignored {len(strange)} others: {first_of(strange)}."
        )
        warn(msg)
    return {name: [one for one in sets.get(name, ()) if one in genes] for name in SETS}


def _canonical(names: Sequence[str], control: str) -> list[str]:
    found = dict.fromkeys(canonical(name, control) for name in names)
    return [name for name in found if name != control]


def _read(custom: Any) -> Mapping[str, Sequence[str]]:
    if isinstance(custom, str | os.PathLike):
        try:
            custom = json.loads(Path(custom).read_text("utf-8"))
        except ValueError as error:
            msg = f"Expected '{custom}' to be a json file, found something else ({error}). Write one with `json.dump`."
            raise ValueError(msg) from error
    fits = isinstance(custom, Mapping) and set(custom) <= set(SETS)
    if not fits or any(isinstance(names, str) or not isinstance(names, Iterable) for names in custom.values()):
        found = list(custom) if isinstance(custom, Mapping) else type(custom).__name__
        msg = (
            "Expected `custom` to be a dictionary (or the path of a json file) with a list of perturbations for each "
            f"of {list(SETS)}, found {found}."
        )
        raise ValueError(msg)
    return custom
