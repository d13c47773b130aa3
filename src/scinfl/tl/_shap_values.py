"""SHAP values of a network that gives logits, by the package shap."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scinfl._extras import install_line


@dataclass(frozen=True)
class Shares:
    """SHAP values of some cells."""

    values: np.ndarray  # cells × features × labels
    expected: np.ndarray  # mean output over the background, by label
    gap: float  # sum of squares of what the values fail to add up to
    size: float  # sum of squares of what they should add up to


class _Output(nn.Module):
    """Centred logits or probabilities of a network."""

    def __init__(self, network: nn.Module, output: str) -> None:
        super().__init__()
        self.network, self.output = network, output

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        return torch.softmax(logits, 1) if self.output == "probability" else logits - logits.mean(1, keepdim=True)


def explain_network(
    network: nn.Module,
    x: np.ndarray,
    profiles: np.ndarray,
    *,
    output: str,
    method: str,
    n_draws: int,
    rng: int,
    device: torch.device,
) -> Shares:
    """SHAP values of cells against profiles."""
    wrapped = _Output(network, output).eval()

    @torch.inference_mode()
    def predict(rows: np.ndarray) -> np.ndarray:
        return wrapped(torch.as_tensor(rows, dtype=torch.float32, device=device)).double().cpu().numpy()

    expected, outputs = predict(profiles).mean(0), predict(x)
    with _own_numpy_seed():
        if method == "permutation":
            values = _by_permutations(predict, x, profiles, n_draws, rng)
        else:
            values = _by_gradients(wrapped, x, profiles, n_draws, rng, device)
    due = outputs - expected
    return Shares(values, expected, float(((due - values.sum(1)) ** 2).sum()), float((due**2).sum()))


def require_shap() -> None:
    """Refuse to go on without shap, which is an extra."""
    if find_spec("shap") is None:
        msg = f"Explanations need shap. Install it with `{install_line('explain')}`."
        raise ImportError(msg)


def _by_permutations(
    predict: Callable[[np.ndarray], np.ndarray], x: np.ndarray, profiles: np.ndarray, n_orders: int, rng: int
) -> np.ndarray:
    import shap

    masker = shap.maskers.Independent(profiles, max_samples=len(profiles))
    explainer = shap.PermutationExplainer(predict, masker, seed=rng)
    return explainer(x, max_evals=n_orders * (2 * x.shape[1] + 1), silent=True).values


def _by_gradients(
    network: nn.Module, x: np.ndarray, profiles: np.ndarray, n_points: int, rng: int, device: torch.device
) -> np.ndarray:
    import shap

    cells, background = (torch.as_tensor(part, dtype=torch.float32, device=device) for part in (x, profiles))
    explainer = shap.GradientExplainer(network, background)
    values: Any = explainer.shap_values(cells, nsamples=n_points, rseed=rng)
    return np.asarray(values, dtype=np.float64)


@contextmanager
def _own_numpy_seed() -> Iterator[None]:
    """Give numpy's global generator, which shap seeds, back as it was."""
    state = np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
