"""Simple rules for the change of a perturbation, and which of them to trust: fitted by leaving conditions out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from scipy.optimize import nnls

from scinfl._linear_rule import LinearRule
from scinfl.model.gears._shrinkage import AT_LEAST, share_of

Genes: TypeAlias = tuple[str, ...]

RULES = {
    "single": ("mean of singles", "mean", "none", "smooth", "smoother", "linear"),
    "seen": ("additive", "mean", "none", "strongest", "slopes", "smooth", "interaction", "smoother interaction"),
    "unseen": ("additive", "mean", "none", "smooth", "smoother", "linear"),
}
"""Rules by kind of perturbation: one gene, genes that were all perturbed alone, others. The first is the default."""
SIMPLE = 3  # the first of them need no fit
_AT_MOST = 400  # conditions that rules are judged by
_RIDGES = (0.3, 3.0)
_LEVEL = 10.0  # variance of what all perturbations share, in those of one gene
_N_TOP = 20
_INSIDE = 0.6827  # share of values within one standard deviation


@dataclass(frozen=True)
class Weights:
    """Share of each rule, and the expected error by gene, for one kind of perturbation."""

    rules: np.ndarray
    error: np.ndarray


@dataclass(frozen=True)
class Rules:
    r"""What simple rules predict from the mean changes of the training conditions.

    - *none*, *mean* of all conditions, *mean of singles*, *additive* (sum of single changes; a gene that was never
      perturbed alone counts with the mean of those that were);
    - *strongest*: of the single changes of a gene's expression the largest;
    - *slopes*: the sum of single changes times a slope of each measured gene, shrunk towards that of all;
    - *smooth*: ridge regression of all conditions on their genes and on those that are alike,
      :math:`Y_c = \sum_{a \in c} (\mu + \theta_a)` with the covariance :math:`k_{ab} = (\delta_{ab} + S_{ab}) / 2` of
      :math:`\theta`, where :math:`S` is the similarity;
    - *interaction*: the same of what combinations differ from the sum of their singles, where pairs are alike by
      genes, by similarity, and by the correlation of single changes, of which products are terms too;
    - *linear*: :class:`~scinfl._linear_rule.LinearRule`.

    Conditions that are left out are taken out of a regression by its inverse,
    :math:`Y_H - \hat Y_H = [(A^{-1})_{HH}]^{-1} (A^{-1} Y)_H` with :math:`A = K + \rho I`.
    """

    conditions: tuple[Genes, ...]
    changes: np.ndarray  # conditions × genes
    vocabulary: Mapping[str, int]  # place of every perturbed gene in the similarity
    similarity: np.ndarray  # positive semidefinite, 1 on the diagonal
    columns: Mapping[str, int]  # of the measured genes in the changes

    def predict(
        self,
        genes: Genes,
        weights: Mapping[str, Weights],
        *,
        leave_out: bool = False,
        near: Mapping[str, np.ndarray] | None = None,
    ) -> np.ndarray:
        """Weighted mean of the rules for a set of genes; with ``leave_out`` without what is known of this set.

        ``near`` has the similarity of genes that are not in the vocabulary to those in it.
        """
        hidden = self._hidden(genes) if leave_out else np.zeros(0, int)
        kind = self.kind(genes, hidden)
        return weights[kind].rules @ self.experts(genes, kind, hidden, near or {})

    def kind(self, genes: Genes, hidden: np.ndarray | None = None) -> str:
        """Which of :data:`RULES` a set of genes is predicted by."""
        if len(genes) == 1:
            return "single"
        aside = set() if hidden is None else set(hidden.tolist())
        return "seen" if all(self._single.get(gene, -1) not in {-1, *aside} for gene in genes) else "unseen"

    def fit(self) -> dict[str, Weights]:
        """Weights of the rules for each kind of perturbation, from conditions that are left out in turn."""
        return {kind: self._fit(kind) for kind in RULES}

    def experts(
        self, genes: Genes, kind: str, hidden: np.ndarray, near: Mapping[str, np.ndarray] | None = None
    ) -> np.ndarray:
        """Each rule's change (rules × genes)."""
        zero = np.zeros(self.changes.shape[1])
        mean = self._mean(np.ones(len(self.conditions), bool), hidden, zero)
        fill = self._mean(self._n_genes == 1, hidden, mean)
        aside = {-1, *hidden.tolist()}
        rows = [self._single.get(gene, -1) for gene in genes]
        parts = [fill if row in aside else self.changes[row] for row in rows]
        total = np.sum(parts, axis=0)
        first = fill if kind == "single" else total
        places = [self.vocabulary[gene] for gene in genes if gene in self.vocabulary]
        likeness = self._smooth.base[places].sum(0) + self._of_strangers(near or {}, genes)
        smooth = self._smooth.predict(genes, likeness, hidden)
        if kind != "seen":
            return np.stack([first, mean, zero, *smooth, self._linear.predict(genes, hidden)])
        strongest = np.take_along_axis(np.stack(parts), np.abs(parts).argmax(0)[None], 0)[0]
        rest = self._interaction.predict(genes, self._interaction.base[places].sum(0), hidden)
        slopes = total * self._slopes(hidden)
        return np.stack([first, mean, zero, strongest, slopes, smooth[0], *(total + left for left in rest)])

    def _of_strangers(self, near: Mapping[str, np.ndarray], genes: Genes) -> np.ndarray:
        """What genes that are not in the vocabulary have in common with those in it."""
        rows = [near[gene] / 2 + _LEVEL for gene in genes if gene not in self.vocabulary]
        return np.sum(rows, axis=0) if rows else np.zeros(len(self.similarity))

    def _mean(self, chosen: np.ndarray, hidden: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
        rows = hidden[chosen[hidden]]
        n = int(chosen.sum()) - len(rows)
        return (self._totals[bool(chosen.all())] - self.changes[rows].sum(0)) / n if n else otherwise

    # ---- weights

    def _fit(self, kind: str) -> Weights:
        rules, n_genes = len(RULES[kind]), self.changes.shape[1]
        default = np.eye(rules)[0]
        found = list(self._left_out(kind))
        found = found[:: -(-len(found) // _AT_MOST) or 1]
        if len({row for row, _ in found}) < AT_LEAST:
            return Weights(default, np.full(n_genes, np.nan))
        owner = np.array([row for row, _ in found])
        predicted = [self.experts(self.conditions[row], kind, hidden) for row, hidden in found]
        square, product = np.zeros((len(found), rules, rules)), np.zeros((len(found), rules))
        for index, (row, each) in enumerate(zip(owner, predicted, strict=True)):
            top = np.argsort(-np.abs(self.changes[row]))[:_N_TOP]
            square[index] = each[:, top] @ each[:, top].T / len(top)
            product[index] = each[:, top] @ self.changes[row, top] / len(top)
        best = int(np.argmin([square[:, r, r].sum() - 2 * product[:, r].sum() for r in range(SIMPLE)]))
        start = np.eye(rules)[best]
        others = {row: _convex(square[owner != row].sum(0), product[owner != row].sum(0)) for row in set(owner)}
        move = np.stack([others[row] for row in owner]) - start
        agreement = np.einsum("ne,ne->n", move, product - square @ start)
        power = np.einsum("ne,nef,nf->n", move, square, move)
        count = [_by_owner(values, owner) for values in (agreement, power)]
        share = share_of(*count)
        weights = start + share * (_convex(square.sum(0), product.sum(0)) - start)
        left = np.stack(
            [
                self.changes[row] - (start + share * own) @ each
                for row, own, each in zip(owner, move, predicted, strict=True)
            ]
        )
        spread = np.sqrt(np.square(left).mean(0))
        usual = np.stack([np.sqrt(np.square(left[owner != row]).mean(0)) for row in owner])
        ratio = np.abs(left)[usual > 0] / usual[usual > 0]
        level = min(_INSIDE * (1 + 1 / len(count[0])), 1)  # conformal: one more condition is to come
        return Weights(weights, spread * (np.quantile(ratio, level) if ratio.size else 1.0))

    def _left_out(self, kind: str) -> Iterator[tuple[int, np.ndarray]]:
        """Conditions to judge a kind by, and what is left out for each."""
        for row, genes in enumerate(self.conditions):
            if kind == "seen" and self.kind(genes) == "seen":
                yield row, np.array([row])
            elif kind == "single" and len(genes) == 1:
                yield row, self._with(genes[0])
            elif kind == "unseen" and len(genes) > 1:
                for gene in genes:
                    yield row, self._with(gene)

    def _hidden(self, genes: Genes) -> np.ndarray:
        if len(genes) == 1:
            return self._with(genes[0])
        return np.array([self._row[genes]] if genes in self._row else [], dtype=int)

    def _with(self, gene: str) -> np.ndarray:
        return np.array(self._rows_with.get(gene, []), dtype=int)

    # ---- what the rules are made of

    @cached_property
    def _single(self) -> dict[str, int]:
        return {genes[0]: row for row, genes in enumerate(self.conditions) if len(genes) == 1}

    @cached_property
    def _row(self) -> dict[Genes, int]:
        return {genes: row for row, genes in enumerate(self.conditions)}

    @cached_property
    def _rows_with(self) -> dict[str, list[int]]:
        rows: dict[str, list[int]] = {}
        for row, genes in enumerate(self.conditions):
            for gene in genes:
                rows.setdefault(gene, []).append(row)
        return rows

    @cached_property
    def _totals(self) -> tuple[np.ndarray, np.ndarray]:
        """Sum over single perturbations, and over all conditions."""
        return self.changes[self._n_genes == 1].sum(0), self.changes.sum(0)

    @cached_property
    def _n_genes(self) -> np.ndarray:
        return np.array([len(genes) for genes in self.conditions], dtype=int)

    @cached_property
    def _seen(self) -> np.ndarray:
        """Combinations of which all singles were measured."""
        return np.array([r for r, genes in enumerate(self.conditions) if self.kind(genes) == "seen"], dtype=int)

    @cached_property
    def _sums(self) -> np.ndarray:
        """Sum of single changes of each of them."""
        sums = [self.changes[[self._single[g] for g in self.conditions[row]]].sum(0) for row in self._seen]
        return np.reshape(sums, (len(self._seen), self.changes.shape[1]))

    def _slopes(self, hidden: np.ndarray) -> np.ndarray:
        rows = ~np.isin(self._seen, hidden)
        x, y = self._sums[rows], self.changes[self._seen[rows]]
        square, product = np.square(x).sum(0), (x * y).sum(0)
        if square.sum() <= 0:
            return np.ones(self.changes.shape[1])
        pull = square.mean()
        return (product + pull * product.sum() / square.sum()) / (square + pull)

    @cached_property
    def _smooth(self) -> _Regression:
        base = (np.eye(len(self.similarity)) + self.similarity) / 2 + _LEVEL  # the level is that of all genes
        return _Regression(self._row, self.changes, self._members(self.conditions), base, powers=False)

    @cached_property
    def _interaction(self) -> _Regression:
        profiles = np.zeros((len(self.similarity), self.changes.shape[1]))
        for gene, row in self._single.items():
            profiles[self.vocabulary[gene]] = self.changes[row] / max(np.linalg.norm(self.changes[row]), 1e-300)
        base = (np.eye(len(self.similarity)) + self.similarity + profiles @ profiles.T) / 6
        rows = {self.conditions[row]: int(row) for row in self._seen}
        return _Regression(rows, self.changes[self._seen] - self._sums, self._members(list(rows)), base, powers=True)

    @cached_property
    def _linear(self) -> LinearRule:
        return LinearRule(self.changes, self.conditions, self.columns)

    def _members(self, sets: Sequence[Genes]) -> np.ndarray:
        result = np.zeros((len(sets), len(self.similarity)))
        for row, genes in enumerate(sets):
            result[row, [self.vocabulary[gene] for gene in genes]] = 1
        return result


class _Regression:
    """Ridge regressions on sets of genes, from which conditions can be left out."""

    def __init__(
        self, rows: Mapping[Genes, int], values: np.ndarray, members: np.ndarray, base: np.ndarray, *, powers: bool
    ) -> None:
        self._places = {genes: place for place, genes in enumerate(rows)}
        self._place_of = {row: place for place, row in enumerate(rows.values())}
        self._values, self._members, self._powers, self.base = values, members, powers, base
        kernel = self._covariance(members @ base)
        self._inverses = [np.linalg.inv(kernel + ridge * np.eye(len(kernel))) for ridge in _RIDGES]
        self._solved = [inverse @ values for inverse in self._inverses]

    def _covariance(self, near: np.ndarray) -> np.ndarray:
        """Of sets with the conditions, from what the genes of each set have in common with all (sets × genes)."""
        kernel = near @ self._members.T
        return (kernel + np.square(kernel) + 1) / 3 if self._powers else kernel

    def predict(self, genes: Genes, near: np.ndarray, hidden: np.ndarray) -> list[np.ndarray]:
        """Prediction with each ridge, without the hidden conditions, of which the set is one if there are any."""
        own = self._places.get(genes, -1)
        if not len(hidden) or own < 0:
            cross = self._covariance(near)
            return [cross @ solved for solved in self._solved]
        aside = np.array([self._place_of[row] for row in hidden.tolist() if row in self._place_of])
        which = int(np.flatnonzero(aside == own)[0])
        return [
            self._values[own] - np.linalg.solve(inverse[np.ix_(aside, aside)], solved[aside])[which]
            for inverse, solved in zip(self._inverses, self._solved, strict=True)
        ]


def _convex(square: np.ndarray, product: np.ndarray) -> np.ndarray:
    """Non-negative weights that sum to one and minimise w'Qw − 2 b'w."""
    n, scale = len(product), max(np.trace(square) / len(product), 1e-300)
    root = np.linalg.cholesky(square / scale + 1e-6 * np.eye(n)).T
    target = np.linalg.solve(root.T, product / scale)
    heavy = 1e3
    found, _ = nnls(np.vstack([root, np.full(n, heavy)]), np.append(target, heavy))
    return np.asarray(found / found.sum())


def _by_owner(values: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Mean over what was left out of the same condition."""
    return np.array([values[owner == row].mean() for row in np.unique(owner)])
