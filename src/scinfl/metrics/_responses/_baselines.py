"""What simple rules predict, to hold a model against."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pandas as pd

from scinfl._checks import first_of, number_between, whole_number
from scinfl._conditions import CONTROL, canonical, genes_of
from scinfl._linear_rule import LinearRule


def perturbation_baselines(
    changes: pd.DataFrame,
    perturbations: Sequence[str],
    *,
    similarity: pd.DataFrame | None = None,
    n_components: int = 10,
    ridge: float = 0.1,
    control: str = CONTROL,
) -> dict[str, pd.DataFrame]:
    r"""Predict mean changes by rules without a network.

    ``"no change"``
        0 everywhere.
    ``"train mean"``
        The mean over the training perturbations, the same for all.
    ``"nearest"``
        The mean over the training perturbations that share most perturbed genes with the one to predict; the train mean
        where none shares any.
    ``"additive"``
        The sum of the changes by the single genes; one that was never perturbed alone counts with the mean of those
        that were. Left out if none was.
    ``"linear"``
        :math:`Y \approx G W P^\top + b` (Ahlmann-Eltze, Huber & Anders, Nature Methods 2025): rows of :math:`G` are
        the first ``n_components`` principal component scores of the genes in the training changes :math:`Y` (genes ×
        perturbations), rows of :math:`P` those of the perturbed gene, or the sum of the perturbed genes; one that is
        not measured counts with 0. :math:`b` is the train mean, and

        .. math:: W = (G^\top G + \lambda I)^{-1} G^\top (Y - b) P\, (P^\top P + \lambda I)^{-1} .

    ``"similar"``
        As additive, but a gene that was never perturbed alone counts with the mean of its neighbours in
        ``similarity`` that were, weighted by their similarity. Only with ``similarity``.

    A model that is not better than these has learnt no more than they contain.

    Parameters
    ----------
    changes
        Mean changes of the training perturbations against the training control, perturbations × genes.
    perturbations
        What to predict.
    similarity
        Pairs of similar genes, for example by Gene Ontology: the columns ``source``, ``target`` and ``importance``.
    n_components
        Principal components of ``"linear"``; at most as many as there are training perturbations or genes.
    ridge
        :math:`\lambda` of ``"linear"``.
    control
        Name of the control.

    Returns
    -------
    Predicted changes (perturbations × genes) by baseline. The index holds canonical names, each once.

    Raises
    ------
    ValueError
        If there is nothing to learn from or to predict, the control is among the perturbations, or values are not
        finite.

    Examples
    --------
    >>> import pandas as pd, scinfl as si
    >>> changes = pd.DataFrame({"A": [1.0, 0.0], "B": [0.0, 2.0]}, index=["A+ctrl", "B+ctrl"])
    >>> si.metrics.perturbation_baselines(changes, ["B+A"])["additive"].loc["A+B"].to_list()
    [1.0, 2.0]
    """
    whole_number("n_components", n_components, 1)
    number_between("ridge", ridge, 0, 1e12, open_low=True)
    names = _canonical_once(perturbations, "perturbations", control)
    trained = _checked(changes, control)
    values = trained.to_numpy(np.float64)
    members = [genes_of(name) for name in names]
    predicted = {
        "no change": np.zeros((len(names), values.shape[1])),
        "train mean": np.tile(values.mean(0), (len(names), 1)),
    }
    owners = [genes_of(name) for name in trained.index]
    predicted["nearest"] = np.stack([_nearest(own, owners, values) for own in members])
    singles = {own[0]: row for own, row in zip(owners, values, strict=True) if len(own) == 1}
    if singles:
        predicted["additive"] = _sum_of_singles(members, singles)
    columns = {gene: number for number, gene in enumerate(map(str, trained.columns))}
    linear = LinearRule(values, owners, columns, n_components=n_components, ridge=ridge)
    predicted["linear"] = np.stack([linear.predict(own) for own in members])
    if similarity is not None:
        if not singles:
            msg = "Expected single perturbations in `changes` for `similarity` to weigh, found none. Leave it out."
            raise ValueError(msg)
        wanted = {gene for own in members for gene in own}
        predicted["similar"] = _sum_of_singles(members, _neighbours(similarity, singles, wanted) | singles, singles)
    index = pd.Index(names, name="perturbation")
    return {name: pd.DataFrame(table, index, trained.columns) for name, table in predicted.items()}


def _canonical_once(perturbations: Sequence[str], what: str, control: str) -> list[str]:
    names = list(dict.fromkeys(canonical(str(name), control) for name in perturbations))
    if not names or control in names:
        found = f"the control '{control}'" if names else "none"
        msg = f"Expected `{what}` to hold perturbations, found {found}. Name conditions like 'A' or 'A+B'."
        raise ValueError(msg)
    return names


def _checked(changes: pd.DataFrame, control: str) -> pd.DataFrame:
    names = _canonical_once(list(changes.index), "changes", control)
    if len(names) < len(changes):
        spelled = [canonical(str(name), control) for name in changes.index]
        repeated = sorted({name for name in spelled if spelled.count(name) > 1})
        msg = f"Expected one row per perturbation in `changes`, found several for {first_of(repeated)}. Average them."
        raise ValueError(msg)
    if not np.isfinite(changes.to_numpy(np.float64)).all():
        msg = "Expected finite numbers in `changes`, found missing or infinite ones. Drop these genes or perturbations."
        raise ValueError(msg)
    return changes.set_axis(names, axis=0)


def _sum_of_singles(
    members: list[tuple[str, ...]], known: dict[str, np.ndarray], trained: dict[str, np.ndarray] | None = None
) -> np.ndarray:
    """Sum over the perturbed genes; the mean of the trained ones replaces one that is unknown."""
    average = np.mean(np.stack(list((trained or known).values())), axis=0)
    changes = defaultdict(lambda: average, known)
    return np.stack([np.stack([changes[gene] for gene in own]).sum(0) for own in members])


def _nearest(wanted: tuple[str, ...], owners: Sequence[tuple[str, ...]], values: np.ndarray) -> np.ndarray:
    """Mean change of the perturbations that share most genes with the wanted one."""
    shared = np.array([len({*wanted} & {*own}) for own in owners])
    return values[shared == shared.max()].mean(0)


def _neighbours(similarity: pd.DataFrame, singles: dict[str, np.ndarray], wanted: set[str]) -> dict[str, np.ndarray]:
    """Weighted mean of the single changes of the genes that are similar to each wanted gene."""
    if missing := [column for column in ("source", "target", "importance") if column not in similarity]:
        msg = f"Expected the columns source, target and importance in `similarity`, found no {first_of(missing)}."
        raise ValueError(msg)
    pairs = similarity[similarity["source"].isin(list(singles)) & similarity["target"].isin(wanted - set(singles))]
    pairs = pairs[pairs["importance"] > 0]
    return {
        str(gene): np.average(
            np.stack([singles[source] for source in own["source"]]), axis=0, weights=own["importance"]
        )
        for gene, own in pairs.groupby("target")
    }
