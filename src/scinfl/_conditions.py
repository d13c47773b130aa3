"""Names of perturbations: 'ctrl', 'A+ctrl', 'ctrl+A', 'A+B', 'A+B+C' as sets of genes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

CONTROL = "ctrl"
SEPARATOR = "+"


def genes_of(condition: str, control: str = CONTROL) -> tuple[str, ...]:
    """Perturbed genes of a condition, sorted, each once; none for the control.

    ``"A+ctrl"``, ``"ctrl+A"`` and ``"A"`` are the same perturbation, and so are ``"A+B"`` and ``"B+A"``. The part of
    the control is its whole name, whatever is in it.
    """
    condition = str(condition).strip()
    if condition == control:
        return ()
    parts = [part.strip() for part in condition.split(SEPARATOR)]
    if not all(parts):
        msg = (
            f"Expected a condition like '{control}', 'A+{control}', 'A' or 'A+B', found {condition!r}. "
            "Rename it, or drop these cells."
        )
        raise ValueError(msg)
    return tuple(sorted({part for part in parts if part not in (control, CONTROL)}))


def canonical(condition: str, control: str = CONTROL) -> str:
    """One name for a set of perturbed genes: ``"A"`` or ``"A+B"`` in the order of the alphabet, or the control's."""
    return name_of(genes_of(condition, control), control)


def name_of(genes: Iterable[str], control: str = CONTROL) -> str:
    """Name of perturbed genes in their order, ``"A"`` or ``"A+B"``; the control's of none."""
    return SEPARATOR.join(genes) or control


def named_as_gears(genes: Sequence[str]) -> str:
    """Name of perturbed genes as GEARS publishes it: a single one is ``"A+ctrl"``."""
    return name_of([*genes, CONTROL] if len(genes) == 1 else genes)


def canonical_names(conditions: Iterable[str], control: str = CONTROL) -> Mapping[str, str]:
    """Canonical name of each condition that occurs."""
    return {condition: canonical(condition, control) for condition in dict.fromkeys(map(str, conditions))}
