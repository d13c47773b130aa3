"""Layers of scvi-tools whose parameters are put in for each pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _Lookup(nn.Module):
    """An embedding whose rows are put in for each pass; that of scvi-tools loads no state without them."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.weight: Any = embedding.weight
        self.embedding_dim = embedding.embedding_dim

    def forward(self, codes: Tensor) -> Tensor:
        """Rows of these codes."""
        return nn.functional.embedding(codes, self.weight)


class _Empty(nn.Module):
    """A linear layer to no features, of a modality that nobody measured: nothing to key, nothing to train."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight.requires_grad_(False), linear.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """No features of each cell."""
        return x.new_zeros(*x.shape[:-1], 0)


def prepared(native: nn.Module) -> nn.Module:
    """A module with its embeddings and empty layers swapped, in place."""
    for parent in list(native.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Embedding):
                parent.register_module(name, _Lookup(child))
            elif isinstance(child, nn.Linear) and not child.out_features:
                parent.register_module(name, _Empty(child))
    return native


def vacate(module: nn.Module, *names: str) -> None:
    """Make parameters plain attributes, to be filled for each pass."""
    for what in names:
        if getattr(module, what) is not None:
            delattr(module, what)
            module.__dict__[what] = torch.empty(0)
