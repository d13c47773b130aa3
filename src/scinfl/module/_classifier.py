"""Local learner of the Classifier: a multilayer perceptron and its loss."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scinfl.nn import MLP


class ClassifierModule(nn.Module):
    """Encoder and linear head; without hidden layers the head alone, which is multinomial regression.

    Parameters
    ----------
    n_input
        Features.
    n_labels
        Classes.
    n_hidden, n_layers, dropout, input_dropout, norm
        See :class:`~scinfl.nn.MLP`.

    Examples
    --------
    >>> import torch, scinfl as si
    >>> si.module.ClassifierModule(100, 4)(torch.ones(2, 100)).shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        n_input: int,
        n_labels: int,
        *,
        n_hidden: int = 256,
        n_layers: int = 2,
        dropout: float = 0.3,
        input_dropout: float = 0.2,
        norm: str | None = "layer",
    ) -> None:
        super().__init__()
        self.encoder = MLP(n_input, n_hidden, n_layers, dropout=dropout, input_dropout=input_dropout, norm=norm)
        self.head = nn.Linear(n_hidden if n_layers else n_input, n_labels)

    def fill_dropped(self, mean: Tensor | float) -> None:
        """Let features that are dropped in training take their mean at a site; 0 by default."""
        self.encoder[0].fill = mean  # type: ignore[assignment]

    @property
    def metric_names(self) -> list[str]:
        """Names of what :meth:`evaluate` returns."""
        return ["loss", "accuracy", "balanced_accuracy"]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (cells × labels) of features (cells × n_input)."""
        return self.head(self.encoder(x))

    def loss(self, batch: tuple[Tensor, Tensor], class_weight: Tensor | None = None) -> Tensor:
        """Cross-entropy of (features, label codes), weighted by class where weights are given."""
        x, codes = batch
        return F.cross_entropy(self(x), codes, weight=class_weight)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """Mean loss, accuracy and balanced accuracy over the classes that occur."""
        logits, codes = map(torch.cat, zip(*((self(x), codes) for x, codes in batches), strict=True))
        correct = (logits.argmax(1) == codes).double()
        per_class = [correct[codes == label].mean() for label in codes.unique()]
        return {
            "loss": F.cross_entropy(logits, codes).item(),
            "accuracy": correct.mean().item(),
            "balanced_accuracy": torch.stack(per_class).mean().item(),
        }
