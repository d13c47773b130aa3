"""How accurately a modality is imputed from the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from scinfl.federation import Payload, Protection, State, Update, mean_of
from scinfl.federation.rounds import are_elsewhere
from scinfl.model.spamosaic._measured import Measured
from scinfl.model.spamosaic._spatial_basis import SpatialBasis


def judge_imputation(
    modality: str,
    measured: Measured,
    values: np.ndarray,
    predicted: np.ndarray,
    basis: SpatialBasis,
    sites: Sequence[str],
    *,
    protections: Sequence[Protection],
    payload: Payload | None,
) -> State:
    r"""Shrinkage and error of what the other modalities predict, from sums over sites; nothing where no spot has both.

    With what is predicted, :math:`\hat x`, and measured, :math:`x`, the shrinkage :math:`s = \sum \langle \hat x, x
    \rangle / \sum \langle \hat x, \hat x \rangle`, kept within 0 and 1, is the factor on :math:`\hat x` with the least
    squared error.
    """
    known = np.isfinite(predicted).all(1)
    if not known.any() and not are_elsewhere(protections):
        return {}
    rows = {site: np.flatnonzero(known & (measured.site == site)) for site in sites}

    def mean(what: str, of_site: Callable[[np.ndarray], Mapping[str, np.ndarray]]) -> State:
        updates = []
        for site, own in rows.items():
            sums = {name: np.asarray(total / max(len(own), 1)) for name, total in of_site(own).items()}
            purpose = f"{modality}: {what} of imputation"
            updates.append(Update(site, 0, sums, len(own), float(len(own)), purpose=purpose))
        return mean_of(updates, protections, payload=payload).state

    def products(own: np.ndarray) -> dict[str, np.ndarray]:
        x, y = predicted[own].astype(np.float64), values[own].astype(np.float64)
        return {"predicted by measured": (x * y).sum(), "predicted by predicted": (x * x).sum()}

    sums = mean("shrinkage", products)
    shrinkage = float(np.clip(sums["predicted by measured"] / max(float(sums["predicted by predicted"]), 1e-12), 0, 1))

    def squares(own: np.ndarray) -> dict[str, np.ndarray]:
        missed = basis.normalised(measured, own) - basis.features(shrinkage * predicted[own])
        return {"square": np.square(missed, dtype=np.float64).sum(0)}

    return {"shrinkage": np.array([shrinkage]), "error": np.sqrt(mean("error", squares)["square"])}
