"""Baselines that a network learns the rest of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

PRIORS = ("additive", "mean", None)


@dataclass(frozen=True)
class Prior:
    """Mean change of the training conditions, for what is known without a network.

    A prior is ``"additive"`` (sum of the changes of the single perturbations, the mean of the others where one was
    never perturbed alone), ``"mean"`` (of all other training conditions) or ``None`` (no change).
    """

    kind: str | None
    conditions: tuple[tuple[str, ...], ...]  # perturbed genes of each training condition
    changes: np.ndarray  # conditions × genes
    shrinkage: Mapping[str, float]  # share of the network's change that is added, by number of genes

    def predict(self, conditions: Sequence[Sequence[str]], *, leave_out: bool) -> np.ndarray:
        """Change of conditions (conditions × genes)."""
        changes = [self._one(tuple(genes), leave_out=leave_out) for genes in conditions]
        return np.stack(changes) if changes else np.zeros((0, self.changes.shape[1]))

    @property
    def moving(self) -> np.ndarray:
        """Genes (booleans) that changed in any training condition; all where none was measured."""
        if self.kind is None or not self.conditions:
            return np.ones(self.changes.shape[1], bool)
        return np.asarray(self.changes.any(axis=0))

    def is_measured(self, genes: Sequence[str]) -> bool:
        """Whether the prediction of a condition is what was measured in training."""
        return self.kind == "additive" and tuple(genes) in self.conditions

    def _one(self, genes: tuple[str, ...], *, leave_out: bool) -> np.ndarray:
        if self.kind is None or not genes or not self.conditions:
            return np.zeros(self.changes.shape[1])
        if not leave_out and self.is_measured(genes):
            return self.changes[self.conditions.index(genes)]
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


def pack_priors(priors: Mapping[str, Prior]) -> bytes:
    """Priors by site as safetensors."""
    about = {
        name: {"kind": prior.kind, "conditions": prior.conditions, "shrinkage": dict(prior.shrinkage)}
        for name, prior in priors.items()
    }
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)
    changes = {f"changes/{name}": np.ascontiguousarray(prior.changes) for name, prior in priors.items()}
    return save_tensors({"about": text, **changes})


def unpack_priors(content: bytes) -> dict[str, Prior]:
    """Inverse of :func:`pack_priors`."""
    arrays = load_tensors(content)
    about = json.loads(arrays["about"].tobytes())
    return {
        name: Prior(
            entry["kind"], tuple(map(tuple, entry["conditions"])), arrays[f"changes/{name}"], entry["shrinkage"]
        )
        for name, entry in about.items()
    }
