"""How well the response to perturbations was predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from scinfl._checks import first_of, warn, whole_number
from scinfl._conditions import CONTROL, genes_of
from scinfl.metrics._responses._cells import Prediction, cell_scores
from scinfl.metrics._responses._differential import condition_moments, rank_genes
from scinfl.metrics._responses._differential import top_genes as best_genes
from scinfl.metrics._responses._discrimination import against_perturbed, discrimination, tested_genes, tested_scores
from scinfl.metrics._responses._inputs import (
    aligned_cells,
    aligned_control,
    aligned_predictions,
    condition_codes,
    gene_positions,
    subgroup_of,
)
from scinfl.metrics._responses._scores import Profiles, change, mean_scores

_MORE_TOPS = (50, 100, 200)
_N_VARIABLE = 200


def perturbation(
    predicted: pd.DataFrame,
    cells: np.ndarray | sparse.spmatrix | sparse.sparray,
    conditions: Sequence[str] | np.ndarray | pd.Series,
    *,
    control_mean: np.ndarray | pd.Series,
    perturbed_mean: np.ndarray | pd.Series | None = None,
    genes: Sequence[str] | None = None,
    control: str = CONTROL,
    n_top: int = 20,
    subgroups: Mapping[str, str] | Mapping[str, Sequence[str]] | None = None,
    top_genes: Mapping[str, Any] | None = None,
    predicted_cells: Mapping[str, Any] | None = None,
    control_cells: Any = None,
    rng: int = 0,
) -> pd.DataFrame:
    r"""Scores of predicted mean expression, by perturbation.

    The scores of GEARS (Roohani, Huang & Leskovec, Nature Biotechnology 2024) and a few more, over all genes and over
    those that respond most. With :math:`\hat y_p` the predicted and :math:`y_p` the measured
    mean of a perturbation, the predicted change is :math:`\hat y_p - c` and the measured one :math:`y_p - c'`, where
    :math:`c` (``control_mean``) is the mean of the control cells that the prediction started from and :math:`c'` that
    of the control cells in ``cells``. These have to be different cells: a control mean that is subtracted from both
    sides puts the same noise into both and inflates the Pearson correlation of the change, even for a useless
    prediction.

    ``mse``, ``pearson``, ``r2``, ``pearson_delta``
        Of the means over all genes (R² is 1 − residual / total sum of squares), and the correlation of the changes,
        which a prediction of no change has none of.
    ``mse_de``, ``pearson_de``, ``r2_de``, ``pearson_delta_de``
        Over the ``n_top`` most differential genes.
    ``{mse,pearson,pearson_delta}_top{20,50,100,200}_de``, ``…_top200_hvg``
        Over other sets; ``hvg`` are the genes whose means vary most over the conditions scored and the control.
    ``{mse,pearson,pearson_delta}_top20_de_non_zero``, ``…_non_dropout``
        Over the first genes with a measured mean that is not 0 (``non_dropout``: or is 0 in the control too).
    ``frac_correct_direction``, ``…_top{20,50,100,200}_de``, ``…_top20_de_nonzero``
        Share of genes that are predicted to change the way they do.
    ``frac_{correct,opposite,zero}_direction_{non_zero,non_dropout}``, ``…_top20_{non_zero,non_dropout}``
        Share of genes that change the predicted way, the other way, or on one side only.
    ``opposite_direction_de``
        Share of the ``n_top`` genes predicted the other way; 0 for a prediction of no change.
    ``hit_rate``
        Share of the ``n_top`` genes whose predicted change lies between the whiskers (1.5 × interquartile range) of the
        cells, as :func:`scinfl.pl.perturbation` draws them.
    ``frac_in_range``, ``frac_in_range_25_75``, ``frac_in_range_40_60``, ``frac_in_range_45_55``
        Share of the ``n_top`` genes whose predicted mean lies in the range, or these percentiles, of the cells.
    ``mean_sigma``, ``std_sigma``, ``frac_sigma_below_1``, ``frac_sigma_below_2``
        Distance of the means in standard deviations of the cells: mean and deviation over the ``n_top`` genes, and the
        share below. These and the ranges also with ``_non_zero`` and ``_non_dropout``.
    ``fold_change_gap_{all,downreg_0.33,downreg_0.1,upreg_3,upreg_10}``
        Mean distance of predicted and measured fold change, for genes with a measured mean from 0.5 that fall below or
        rise above so many times.
    ``energy_distance``
        Between predicted and measured cells on the ``n_top`` genes (Székely & Rizzo 2013); only with
        ``predicted_cells`` or ``control_cells``.
    ``discrimination_{l1,l2,cosine}``
        Perturbation discrimination score: the share of the other perturbations whose measured change is farther from
        the prediction than that of its own, ties counting half; 0.5 is chance, and what one and the same prediction for
        all gets. The genes perturbed are left out of the distances (Wu et al., arXiv 2408.10609; Roohani et al., Cell
        188:3370, 2025). With ``l2`` it is the centroid accuracy of Systema (Viñas Torné et al., Nature Biotechnology
        2025).
    ``de_overlap``, ``de_direction``
        Of the genes that differ from the control by Welch's t test at a false discovery rate of 5 %: the share among
        equally many with the largest predicted change, and the share that is predicted to change the way they do. NaN
        where no gene does.
    ``pearson_delta_perturbed``
        Correlation of the changes against ``perturbed_mean`` instead of the control: what all perturbations have in
        common counts for nothing (Systema, as above). Only with ``perturbed_mean``.

    The 20 in these names is ``n_top``. What cannot be computed is NaN: a correlation with a constant, or the best 200
    of fewer genes.

    Parameters
    ----------
    predicted
        Predicted mean expression, perturbations × genes, without the control.
    cells
        Measured expression (cells × genes) of the perturbations and of control cells.
    conditions
        Condition of each cell: ``"ctrl"``, ``"A+ctrl"``, ``"A"``, ``"A+B"`` in any order. Other perturbations than
        those of ``predicted`` are left out.
    control_mean
        Mean expression (genes) of the control cells that the prediction started from.
    perturbed_mean
        Mean expression (genes) over the perturbations that the prediction was trained on.
    genes
        Names of the columns of ``cells``; those of ``predicted`` by default.
    control
        Name of the control.
    n_top
        Number of most differential genes.
    subgroups
        Subgroup of each perturbation, or the perturbations of each subgroup.
    top_genes
        Differential genes found elsewhere, most differential first: what :func:`scinfl.pp.perturbations` wrote to
        ``adata.uns["infl"]["perturbations"]``, or names by perturbation under ``"top_de"``, ``"top_non_zero_de"`` and
        ``"top_non_dropout_de"``. What is absent is found by a t test of the cells.
    predicted_cells
        Predicted single cells (cells × genes) by perturbation.
    control_cells
        Control cells (cells × genes) that the prediction started from: where single cells were not predicted, each of
        them moves by the predicted change.
    rng
        Seed of the cells drawn for the energy distance.

    Returns
    -------
    Tidy data frame with the columns ``perturbation`` (canonical name), ``metric``, ``value`` and ``subgroup``.

    Raises
    ------
    ValueError
        If genes or lengths differ, a perturbation or the control has no cells, a perturbation has no subgroup, or
        values are not finite.

    Warns
    -----
    UserWarning
        If ``control_mean`` is the mean of the control cells in ``cells``.

    Examples
    --------
    >>> import numpy as np, pandas as pd, scinfl as si
    >>> cells = np.random.default_rng(0).poisson(2.0, (90, 40)).astype(float)
    >>> conditions = np.repeat(["ctrl", "A+ctrl", "A+B"], 30)
    >>> start, cells, conditions = cells[:15].mean(0), cells[15:], conditions[15:]
    >>> predicted = pd.DataFrame([start, start + 1], index=["A", "B+A"], columns=[f"g{i}" for i in range(40)])
    >>> table = si.metrics.perturbation(predicted, cells, conditions, control_mean=start)
    >>> table.query("metric == 'frac_opposite_direction_top20_non_dropout'")["perturbation"].to_list()
    ['A', 'A+B']
    """
    whole_number("n_top", n_top, 1)
    predicted = aligned_predictions(predicted, cells, genes, control)
    names = list(predicted.index)
    groups = subgroup_of(subgroups, names, control)
    codes = condition_codes(conditions, cells, names, control)
    start = aligned_control(control_mean, predicted.columns)
    drawn = aligned_cells(predicted_cells, names, cells.shape[1], control)
    if control_cells is not None and control_cells.shape[1:] != (cells.shape[1],):
        found = control_cells.shape
        msg = f"Expected `control_cells` to be cells × {cells.shape[1]} genes, found the shape {found}. Select genes."
        raise ValueError(msg)
    if not (codes >= 0).all():
        cells, codes = cells[np.flatnonzero(codes >= 0)], codes[codes >= 0]
    cells = sparse.csr_array(cells) if sparse.issparse(cells) else np.asarray(cells)
    n, mean, variance = _moments(cells, codes, predicted)
    if np.allclose(start, mean[-1], rtol=1e-6, atol=1e-9):
        msg = (
            "Expected `control_mean` to be of other control cells than those in `cells`, found the same mean. The "
            "noise that both changes share inflates the score 'pearson_delta'. Split the control cells in two."
        )
        warn(msg)
    guess, measured, here = predicted.to_numpy(np.float64), mean[:-1], mean[-1]
    profiles = Profiles(guess, measured, change(guess, start), change(measured, here))
    order = rank_genes(measured, variance[:-1], n[:-1], here, variance[-1], n[-1])
    sets = _gene_sets(order, mean, n_top, gene_positions(top_genes, predicted, control))
    scores = mean_scores(profiles, here, start, sets, measured != 0, (measured != 0) | (here == 0), n_top)
    best = {"": sets[f"top{n_top}_de"], "_non_zero": sets["non_zero"], "_non_dropout": sets["non_dropout"]}
    own = [np.flatnonzero(np.isin(predicted.columns, genes_of(name, control))) for name in names]
    scores |= discrimination(profiles.predicted_change, profiles.measured_change, own)
    tested = tested_genes(measured, variance[:-1], n[:-1], (here, variance[-1], n[-1]))
    scores |= tested_scores(profiles.predicted_change, profiles.measured_change, tested)
    if perturbed_mean is not None:
        scores |= against_perturbed(guess, measured, aligned_control(perturbed_mean, predicted.columns))
    generator = np.random.default_rng(rng)
    by_cell = [
        cell_scores(
            cells[np.flatnonzero(codes == number)],
            {suffix: positions[number] for suffix, positions in best.items()},
            Prediction(guess[number], start, drawn.get(name), control_cells),
            here,
            generator,
        )
        for number, name in enumerate(names)
    ]
    scores |= {str(name): column.to_numpy() for name, column in pd.DataFrame(by_cell).items()}
    return pd.DataFrame(
        {
            "perturbation": np.repeat(names, len(scores)),
            "metric": np.tile(list(scores), len(names)),
            "value": np.column_stack(list(scores.values())).ravel(),
            "subgroup": np.repeat([groups[name] for name in names], len(scores)),
        }
    )


def perturbation_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean of each score, over all perturbations and by subgroup.

    Parameters
    ----------
    table
        What :func:`perturbation` returned. Columns of yours, such as ``method`` or ``seed``, are kept apart.

    Returns
    -------
    Data frame with the columns ``metric``, ``subgroup`` (``"all"`` first), ``value`` (mean without NaN; NaN if there is
    nothing else) and ``n`` (perturbations with a value), after your own columns.

    Raises
    ------
    ValueError
        If a column is missing.

    Examples
    --------
    >>> import pandas as pd, scinfl as si
    >>> table = pd.DataFrame(
    ...     {"perturbation": ["A", "B"], "metric": "mse", "value": [1.0, 3.0], "subgroup": ["seen", "unseen"]}
    ... )
    >>> si.metrics.perturbation_summary(table)["value"].to_list()
    [2.0, 1.0, 3.0]
    """
    needed = ["perturbation", "metric", "value", "subgroup"]
    if missing := [column for column in needed if column not in table]:
        msg = (
            f"Expected the columns {', '.join(needed)}, found no {first_of(missing)}. "
            "Make the table with `scinfl.metrics.perturbation`."
        )
        raise ValueError(msg)
    own = [str(column) for column in table.columns if column not in needed]
    by_group = table[table["subgroup"] != "all"]
    stacked = pd.concat([table.assign(subgroup="all"), by_group], ignore_index=True)
    grouped = stacked.groupby([*own, "metric", "subgroup"], sort=False, observed=True)["value"]
    return grouped.agg(value="mean", n="count").reset_index()


def _moments(cells: Any, codes: np.ndarray, predicted: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count, mean and variance of the perturbations, the control last."""
    n, mean, variance = condition_moments(cells, codes, len(predicted) + 1)
    finite = np.isfinite(mean).all(0)
    if not finite.all():
        bad = list(predicted.columns[~finite])
        msg = f"Expected finite values in `cells`, found others in {len(bad)} genes: {first_of(bad)}. Impute or drop."
        raise ValueError(msg)
    # what sums leave of a gene that no cell expresses is rounding, and would make it a non-zero gene
    mean[np.abs(mean) <= 1e-9 * np.abs(mean).max(0)] = 0
    return n, mean, variance


def _gene_sets(order: np.ndarray, mean: np.ndarray, n_top: int, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Positions of genes, (perturbations, k), by the name that scores have at their end; -1 is none."""
    best = best_genes(order, mean[:-1], mean[-1], min(n_top, order.shape[1]))
    ranked = given.get("top_de", order)
    sets = {f"top{k}_de": _first(ranked, k) for k in sorted({n_top, *_MORE_TOPS})}
    for name in ("non_zero", "non_dropout"):
        key = f"top_{name}_de"
        sets[name] = given[key][:, :n_top] if key in given else _first(best[key], n_top)
    variable = np.argsort(-mean.var(0), kind="stable")
    sets[f"top{_N_VARIABLE}_hvg"] = np.tile(_first(variable[None], _N_VARIABLE), (len(order), 1))
    return sets


def _first(genes: np.ndarray, k: int) -> np.ndarray:
    """The first k columns; none at all if there are fewer, so that a name never denotes fewer genes."""
    return genes[:, :k] if genes.shape[1] >= k else np.full((len(genes), 1), -1)
