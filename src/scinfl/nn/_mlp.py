"""Multilayer perceptron."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from scinfl.nn._keyed import folded
from scinfl.nn._sparse_rows import SparseRows


class FeatureDropout(nn.Dropout):
    """Dropout of features, which take the value ``fill`` in place of 0: their mean, where they are not centred."""

    fill: Tensor | float = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Drop features (cells × features) in training."""
        return F.dropout(x - self.fill, self.p, self.training) + self.fill


class MLP(nn.Sequential):
    r"""Hidden layers of a linear map, a normalisation, GELU and dropout each.

    .. math:: h_{l+1} = \text{dropout}(\text{GELU}(\text{norm}(W_l h_l + b_l)))

    Parameters
    ----------
    n_input
        Features.
    n_hidden
        Units of each hidden layer.
    n_layers
        Hidden layers.
    dropout, input_dropout
        Probability to drop a hidden unit and a feature, in training.
    norm
        ``"layer"`` (stores no statistics), ``"batch"`` or ``None``.

    Examples
    --------
    >>> import torch, scinfl as si
    >>> si.nn.MLP(100, 16, n_layers=2)(torch.ones(4, 100)).shape
    torch.Size([4, 16])
    """

    def __init__(
        self,
        n_input: int,
        n_hidden: int,
        n_layers: int = 2,
        *,
        dropout: float = 0.1,
        input_dropout: float = 0.0,
        norm: str | None = "layer",
    ) -> None:
        blocks: list[nn.Module] = [FeatureDropout(input_dropout)]
        for number in range(n_layers):
            blocks.append(nn.Linear(n_input if number == 0 else n_hidden, n_hidden))
            if norm is not None:
                blocks.append({"layer": nn.LayerNorm, "batch": nn.BatchNorm1d}[norm](n_hidden))
            blocks += [nn.GELU(), nn.Dropout(dropout)]
        super().__init__(*blocks)
        self.input_dropout = input_dropout

    def forward(self, x: Tensor | SparseRows) -> Tensor:
        """Map (cells × n_input) to (cells × n_hidden)."""
        if isinstance(x, Tensor):
            return super().forward(x)
        _, *rest = self
        plain = folded(rest[0]) if rest else None
        if plain is None:
            return super().forward(x.to_dense())
        hidden = x.dropout(self.input_dropout, training=self.training).linear(*plain)
        for layer in rest[1:]:
            hidden = layer(hidden)
        return hidden
