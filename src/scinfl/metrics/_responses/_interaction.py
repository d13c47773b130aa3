"""Genetic interaction: how two perturbations together differ from the two alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from scinfl._checks import first_of, one_of, whole_number
from scinfl._conditions import CONTROL, SEPARATOR, canonical, genes_of
from scinfl.metrics._embedding._distance_correlation import distance_correlations
from scinfl.metrics._responses._theil_sen import theil_sen

_THRESHOLDS = {"redundancy": 0.7, "synergy": 1.15, "neomorphism": 0.8, "epistasis": 0.4, "suppression": 0.85}


def interaction(
    changes: pd.DataFrame,
    pairs: Sequence[str | tuple[str, str]],
    *,
    genes: Sequence[str] | None = None,
    thresholds: Mapping[str, float] | None = None,
    n_subsets: int = 100_000,
    control: str = CONTROL,
    rng: int = 1000,
) -> pd.DataFrame:
    r"""Score and name genetic interactions.

    The change by both perturbations is fitted by the changes by each, :math:`d_{AB} \approx c_1 d_A + c_2 d_B`, without
    intercept and robustly (Theil–Sen), as in Norman et al. (Science 2019) and in GEARS (Roohani et al. 2024):

    ``c1``, ``c2``
        Coefficients of ``first`` and ``second``.
    ``mag``
        :math:`\sqrt{c_1^2 + c_2^2}`. Exact additivity gives :math:`\sqrt 2`; measured doubles saturate, their median
        in Norman et al. is 1.02.
    ``dcor``, ``dcor_singles``, ``dcor_first``, ``dcor_second``
        Distance correlation (Székely, Rizzo & Bakirov 2007) of :math:`(d_A, d_B)` with :math:`d_{AB}`, of :math:`d_A`
        with :math:`d_B`, of :math:`d_A` and of :math:`d_B` with :math:`d_{AB}`.
    ``corr_fit``
        Pearson correlation of the fit with :math:`d_{AB}`.
    ``dominance``
        :math:`|\log_{10} |c_1 / c_2||`, of absolute values so that opposite signs have one too.
    ``eq_contr``
        Smaller by larger one of ``dcor_first`` and ``dcor_second``.
    ``type``
        The first of these that holds, else ``"additive"``:

        1. ``"redundancy"``: ``dcor_singles`` from 0.7 (the two do much the same),
        2. ``"synergy"``: ``mag`` from 1.15 (more than usual),
        3. ``"neomorphism"``: ``corr_fit`` up to 0.8 (something that neither does),
        4. ``"epistasis"``: ``dominance`` from 0.4 (one sets the phenotype),
        5. ``"suppression"``: ``mag`` up to 0.85 (less than usual).

    The thresholds are ours. Applied to the fits that Norman et al. published for 125 pairs they give 14 redundancies,
    35 synergies, 13 neomorphisms, 17 epistases, 14 suppressions and 32 additive pairs. Where doubles do not saturate,
    as with predictions of an additive model, raise those of ``mag``. Noise in the changes by single genes makes the
    coefficients and correlations too small: score well expressed genes and conditions with many cells.

    Parameters
    ----------
    changes
        Mean changes against the control, perturbations × genes, with a row for each gene of a pair and for the pair.
    pairs
        ``"A+B"`` or ``("A", "B")``.
    genes
        Columns to use, such as well expressed genes; all by default. Time grows with their square.
    thresholds
        Other thresholds by type.
    n_subsets
        Largest number of gene pairs that the fit goes through.
    control
        Name of the control.
    rng
        Seed of the pairs that are drawn if there are more.

    Returns
    -------
    Data frame with one row per pair (canonical name) and the columns ``first``, ``second`` (in the order of the
    alphabet) and those above. What a constant change leaves undefined is NaN.

    Raises
    ------
    ValueError
        If a pair is none, a row or gene is missing, values are not finite or a threshold has an unknown name.

    Examples
    --------
    >>> import numpy as np, pandas as pd, scinfl as si
    >>> one, other = np.random.default_rng(0).normal(size=(2, 60))
    >>> changes = pd.DataFrame([one, other, 0.9 * one + 0.1 * other], index=["A", "B", "A+B"])
    >>> si.metrics.interaction(changes, ["A+B"])[["c1", "type"]].round(2).to_numpy().tolist()
    [[0.9, 'epistasis']]
    """
    whole_number("n_subsets", n_subsets, 10)
    limits = dict(_THRESHOLDS)
    for name, limit in (thresholds or {}).items():
        one_of("thresholds", name, list(_THRESHOLDS))
        limits[name] = float(limit)
    names = [_pair_name(pair, control) for pair in pairs]
    table = _checked(changes, names, genes, control)
    scores = [_scores(table.loc[[*genes_of(name), name]].to_numpy(), n_subsets, rng) for name in dict.fromkeys(names)]
    index = pd.Index(dict.fromkeys(names), name="perturbation")
    found = pd.DataFrame(scores, index=index)
    members = [genes_of(name) for name in index]
    found.insert(0, "first", [own[0] for own in members])
    found.insert(1, "second", [own[1] for own in members])
    return found.assign(type=interaction_types(found, limits))


def interaction_types(scores: pd.DataFrame, limits: Mapping[str, float]) -> np.ndarray:
    """Name the type of each row of scores; comparisons with NaN do not hold."""
    holds = {
        "redundancy": scores["dcor_singles"] >= limits["redundancy"],
        "synergy": scores["mag"] >= limits["synergy"],
        "neomorphism": scores["corr_fit"] <= limits["neomorphism"],
        "epistasis": scores["dominance"] >= limits["epistasis"],
        "suppression": scores["mag"] <= limits["suppression"],
    }
    return np.select([condition.to_numpy() for condition in holds.values()], list(holds), "additive").astype(object)


def _scores(changes: np.ndarray, n_subsets: int, rng: int) -> dict[str, float]:
    """Scores of the changes by the first, the second and both (3 × genes)."""
    first, second, both = changes
    singles = changes[:2].T
    c1, c2 = theil_sen(singles, both, n_subsets=n_subsets, rng=rng)
    dcor, dcor_singles, dcor_first, dcor_second = distance_correlations(
        {"A": first, "B": second, "AB": both, "singles": singles},
        [("singles", "AB"), ("A", "B"), ("A", "AB"), ("B", "AB")],
    )
    fitted = c1 * first + c2 * second
    flat = min(fitted.std(), both.std()) == 0
    with np.errstate(divide="ignore", invalid="ignore"):
        dominance = float(np.abs(np.log10(np.abs(c1)) - np.log10(np.abs(c2))))
        eq_contr = float(np.divide(min(dcor_first, dcor_second), max(dcor_first, dcor_second)))
    return {
        "c1": float(c1),
        "c2": float(c2),
        "mag": float(np.hypot(c1, c2)),
        "dcor": dcor,
        "dcor_singles": dcor_singles,
        "dcor_first": dcor_first,
        "dcor_second": dcor_second,
        "corr_fit": np.nan if flat else float(np.corrcoef(fitted, both)[0, 1]),
        "dominance": dominance,
        "eq_contr": eq_contr,
    }


def _pair_name(pair: str | tuple[str, str], control: str) -> str:
    spelled = pair if isinstance(pair, str) else SEPARATOR.join(map(str, pair))
    name = canonical(spelled, control)
    if len(genes_of(name, control)) != 2:
        msg = f"Expected pairs of two genes like 'A+B' or ('A', 'B'), found {pair!r}."
        raise ValueError(msg)
    return name


def _checked(changes: pd.DataFrame, names: list[str], genes: Sequence[str] | None, control: str) -> pd.DataFrame:
    if not names:
        msg = "Expected at least one pair, found none."
        raise ValueError(msg)
    table = changes.set_axis([canonical(str(name), control) for name in changes.index], axis=0)
    wanted = list(dict.fromkeys(row for name in names for row in (*genes_of(name), name)))
    if missing := [row for row in wanted if row not in table.index]:
        msg = (
            f"Expected a row in `changes` for each gene of a pair and for the pair, found none for {first_of(missing)}."
        )
        raise ValueError(msg)
    table = table.loc[wanted].astype(np.float64)
    if repeated := list(table.index[table.index.duplicated()]):
        msg = f"Expected one row per perturbation in `changes`, found several for {first_of(repeated)}. Average them."
        raise ValueError(msg)
    if genes is not None:
        if absent := [gene for gene in genes if gene not in table.columns]:
            msg = f"Expected `genes` to name columns of `changes`, found others: {first_of(absent)}."
            raise ValueError(msg)
        table = table[list(genes)]
    if table.shape[1] < 3 or not np.isfinite(table.to_numpy()).all():
        msg = (
            f"Expected finite changes of at least 3 genes, found {table.shape[1]} genes or missing values. Drop these."
        )
        raise ValueError(msg)
    return table
