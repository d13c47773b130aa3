"""Baselines that a network learns the rest of."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from scinfl.model.gears._rules import RULES, Rules, Weights

Likeness: TypeAlias = Callable[[Sequence[str]], np.ndarray]
"""Similarity of genes (genes × genes, positive semidefinite, 1 on the diagonal)."""
PRIORS = ("fitted", "additive", "mean", None)


@dataclass(frozen=True)
class Prior:
    """Mean change of the training conditions, for what is known without a network.

    A prior is ``"fitted"`` (a mean of simple rules, weighted by how well they predict conditions that are left out, see
    :class:`Rules`), ``"additive"`` (sum of the changes of the single perturbations, the mean of the others where one
    was never perturbed alone), ``"mean"`` (of all other training conditions) or ``None`` (no change).
    """

    kind: str | None
    conditions: tuple[tuple[str, ...], ...]  # perturbed genes of each training condition
    changes: np.ndarray  # conditions × genes
    shrinkage: Mapping[str, float]  # share of the network's change that is added, by number of genes
    genes: Sequence[str] = ()  # names of the measured genes
    noise: np.ndarray | float = 0.0  # variance of the controls that all changes are of

    weights: Mapping[str, Weights] = field(default_factory=dict)  # of the rules, if fitted
    _fitted: list[Rules] = field(default_factory=list, init=False, repr=False, compare=False)

    def fit(self, alike: Likeness) -> Prior:
        """The same with weights of the rules."""
        known = self.kind == "fitted" and self.conditions
        return replace(self, weights=self._rules(alike).fit()) if known else self

    def predict(
        self, conditions: Sequence[Sequence[str]], *, leave_out: bool, alike: Likeness | None = None
    ) -> np.ndarray:
        """Change of conditions (conditions × genes); the similarity of genes must be the same in every call."""
        sets, alike = [tuple(genes) for genes in conditions], alike or _none_alike
        if self.weights and not self._fitted:  # what takes long: inverses of conditions × conditions
            self._fitted.append(self._rules(alike))
        near = self._near({gene for genes in sets for gene in genes}, alike)
        changes = [self._one(genes, near, leave_out=leave_out) for genes in sets]
        return np.stack(changes) if changes else np.zeros((0, self.changes.shape[1]))

    def error(self, conditions: Sequence[Sequence[str]]) -> np.ndarray | None:
        """Expected error of predictions (conditions × genes), where it is known how well left-out conditions fit.

        Left-out conditions are compared with the same controls as the others. So the noise of these, and of as many
        that a new perturbation is compared with, is added.
        """
        if not self.weights:
            return None
        rules, none = self._rules(_none_alike), np.full(self.changes.shape[1], np.nan)
        known = [bool(genes) and not self.is_measured(genes) for genes in conditions]
        errors = [
            np.sqrt(self.weights[rules.kind(tuple(genes))].error ** 2 + 2 * np.asarray(self.noise)) if judged else none
            for genes, judged in zip(conditions, known, strict=True)
        ]
        return np.stack(errors)

    def _rules(self, alike: Likeness) -> Rules:
        genes = sorted({gene for genes in self.conditions for gene in genes})
        places = {gene: place for place, gene in enumerate(genes)}
        columns = {gene: column for column, gene in enumerate(self.genes)}
        return Rules(self.conditions, np.asarray(self.changes, np.float64), places, alike(genes), columns)

    def _near(self, genes: set[str], alike: Likeness) -> dict[str, np.ndarray]:
        """Similarity of genes that no training condition has to those of the training conditions."""
        known = list(self._fitted[0].vocabulary) if self._fitted else []
        others = sorted(genes.difference(known))
        if not known or not others:
            return {}
        return dict(zip(others, alike([*known, *others])[len(known) :, : len(known)], strict=True))

    @property
    def moving(self) -> np.ndarray:
        """Genes (booleans) that changed in any training condition; all where none was measured."""
        if self.kind is None or not self.conditions:
            return np.ones(self.changes.shape[1], bool)
        return np.asarray(self.changes.any(axis=0))

    def is_measured(self, genes: Sequence[str]) -> bool:
        """Whether the prediction of a condition is what was measured in training."""
        return self.kind in ("fitted", "additive") and tuple(genes) in self.conditions

    def _one(self, genes: tuple[str, ...], near: Mapping[str, np.ndarray], *, leave_out: bool) -> np.ndarray:
        if self.kind is None or not genes or not self.conditions:
            return np.zeros(self.changes.shape[1])
        if not leave_out and self.is_measured(genes):
            return self.changes[self.conditions.index(genes)]
        if self._fitted:
            return self._fitted[0].predict(genes, self.weights, leave_out=leave_out, near=near)
        others: list[tuple[str, ...]] = [other for other in self.conditions if other != genes]
        singles: list[tuple[str, ...]] = [other for other in others if len(other) == 1] or others
        if self.kind == "mean":
            return self._mean(others)
        if len(genes) == 1:
            return self._mean(singles)
        rows = {other[0]: row for row, other in enumerate(self.conditions) if len(other) == 1}
        return np.sum([self.changes[rows[gene]] if gene in rows else self._mean(singles) for gene in genes], axis=0)

    def _mean(self, conditions: list[tuple[str, ...]]) -> np.ndarray:
        if not conditions:
            return np.zeros(self.changes.shape[1])
        wanted = set(conditions)
        return self.changes[[condition in wanted for condition in self.conditions]].mean(0)


def _none_alike(genes: Sequence[str]) -> np.ndarray:
    return np.eye(len(genes))


def pack_priors(priors: Mapping[str, Prior]) -> bytes:
    """Priors by site as safetensors."""
    about = {
        name: {
            "kind": prior.kind,
            "conditions": prior.conditions,
            "shrinkage": dict(prior.shrinkage),
            "genes": list(prior.genes),
        }
        for name, prior in priors.items()
    }
    arrays = {"about": np.frombuffer(json.dumps(about).encode(), np.uint8)}
    for name, prior in priors.items():
        arrays[f"changes/{name}"] = np.ascontiguousarray(prior.changes)
        arrays[f"noise/{name}"] = np.asarray(prior.noise, np.float64)
        for kind, own in prior.weights.items():
            arrays |= {f"rules/{kind}/{name}": own.rules, f"error/{kind}/{name}": own.error}
    return save_tensors(arrays)


def unpack_priors(content: bytes) -> dict[str, Prior]:
    """Inverse of :func:`pack_priors`."""
    arrays = load_tensors(content)
    about = json.loads(arrays["about"].tobytes())
    return {
        name: Prior(
            entry["kind"],
            tuple(map(tuple, entry["conditions"])),
            arrays[f"changes/{name}"],
            entry["shrinkage"],
            tuple(entry.get("genes", ())),
            arrays.get(f"noise/{name}", 0.0),
            {
                kind: Weights(_of_all(kind, arrays[f"rules/{kind}/{name}"]), arrays[f"error/{kind}/{name}"])
                for kind in RULES
                if f"rules/{kind}/{name}" in arrays
            },
        )
        for name, entry in about.items()
    }


def _of_all(kind: str, weights: np.ndarray) -> np.ndarray:
    """Weights of all rules; those that came later have none in older files."""
    return np.pad(weights, (0, len(RULES[kind]) - len(weights)))
