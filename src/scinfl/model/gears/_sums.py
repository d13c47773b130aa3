"""What the sites of a perturbation experiment agree on before training, from sums that the server cannot read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from scinfl._checks import first_of, warn
from scinfl.federation import Payload, Protection, State, Update, mean_of
from scinfl.model.base._cells import Matrix
from scinfl.model.gears._coexpression import second_moments
from scinfl.model.gears._data import Condition, MeanChange, SiteCells


def pooled_second_moments(
    matrix: Matrix,
    sites: Mapping[str, SiteCells],
    protections: Sequence[Protection],
    payload: Payload | None = None,
) -> State:
    """Second moments over the control cells and single perturbations of all sites, as published."""
    updates = []
    for name, cells in sites.items():
        rows = _single_cells(cells)
        updates.append(
            Update(name, 0, second_moments(matrix, rows), len(rows), float(len(rows)), purpose="coexpression")
        )
    return mean_of(updates, protections, payload=payload).state


def own_second_moments(matrix: Matrix, cells: SiteCells) -> State:
    """The same for one site alone."""
    return second_moments(matrix, _single_cells(cells))


def _single_cells(cells: SiteCells) -> np.ndarray:
    chosen = [
        controls if not condition.genes else rows
        for condition, rows, controls in zip(cells.conditions, cells.rows, cells.controls, strict=True)
        if len(condition.genes) <= 1
    ]
    return np.concatenate(chosen)


def pooled_counts(
    conditions: Sequence[Condition],
    sites: Mapping[str, Mapping[Condition, int]],
    protections: Sequence[Protection],
    purpose: str,
    payload: Payload | None = None,
    *,
    agree: bool | str = True,
) -> dict[Condition, float]:
    """Cells of each condition over all sites."""
    updates = [
        Update(name, 0, {"counts": np.array([counts.get(c, 0) for c in conditions], np.float64)}, 1, purpose=purpose)
        for name, counts in sites.items()
    ]
    mean = mean_of(updates, protections, payload=payload, agree=agree)
    totals = mean.state["counts"] * mean.weight  # every site weighs 1
    return dict(zip(conditions, totals.tolist(), strict=True))


def pooled_changes(
    sets: Sequence[tuple[str, ...]],
    sites: Mapping[str, Sequence[MeanChange]],
    protections: Sequence[Protection],
    payload: Payload | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean change of each set of perturbed genes over the cells of all sites (sets × genes), and its noise by controls.

    A change is the mean over sites, weighted by cells, and so is what the controls add to it: a site with the share
    :math:`n_s / n` of the perturbed cells adds :math:`(n_s / n)^2` of the variance of its controls' mean.
    """
    rows = {genes: row for row, genes in enumerate(sets)}
    updates = []
    n_genes = next(len(one.change) for own in sites.values() for one in own)
    for name, own in sites.items():
        sums, counts = np.zeros((len(sets), n_genes)), np.zeros(len(sets))
        compared: dict[tuple[int, ...], float] = defaultdict(float)  # cells with the same controls
        for condition, n_cells, change, _ in own:
            if condition.genes:
                sums[rows[condition.genes]] += n_cells * change
                counts[rows[condition.genes]] += n_cells
                compared[condition.covariates] += n_cells
        noise = {one.condition.covariates: one.noise for one in own}
        controls = sum((n * n * noise[levels] for levels, n in compared.items()), np.zeros(n_genes))
        state = {"sums": sums, "counts": counts, "controls": controls}
        updates.append(Update(name, 0, state, 1, purpose="changes"))
    mean = mean_of(updates, protections, payload=payload)
    counts = np.maximum(mean.state["counts"], 1e-12)  # every site weighs 1
    changes = mean.state["sums"] / counts[:, None]
    return changes, np.maximum(mean.state["controls"], 0) / (mean.weight * counts.sum() ** 2)


def warn_of_few(left_out: Mapping[str, int], min_cells: int) -> None:
    if any(left_out.values()):
        warn(
            f"Left out perturbations at sites that have fewer than {min_cells} cells of them, or no two control cells "
            f"of the same covariates: {first_of([f'{n} at {site}' for site, n in left_out.items() if n], 10)}. Lower "
            "`min_cells` to keep them."
        )


def shares_of(
    sites: Mapping[str, SiteCells],
    protections: Sequence[Protection] | None,
    purpose: str,
    payload: Payload | None = None,
    *,
    conditions: Sequence[Condition] | None = None,
    agree: bool | str = True,
) -> dict[str, np.ndarray]:
    """Share of the cells of each condition that a site has; all of them where sites do not count together.

    ``conditions`` are those of all sites, where some are elsewhere.
    """
    if conditions is None:
        conditions = sorted({condition for cells in sites.values() for condition in cells.conditions})
    if protections is None or not conditions:
        return {name: np.ones(len(cells.conditions)) for name, cells in sites.items()}
    counts = {name: cells.counts() for name, cells in sites.items()}
    totals = pooled_counts(conditions, counts, protections, purpose, payload, agree=agree)
    return {
        name: np.array([counts[name][condition] / totals[condition] for condition in cells.conditions], np.float64)
        for name, cells in sites.items()
    }
