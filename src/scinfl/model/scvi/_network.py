"""A module of scvi-tools whose parameters a key can lock and sites can own."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from scinfl.nn import Table

_CLASSIFICATION_RATIO = 50  # of scvi-tools
_ROWS_STD = {"px_r": 1.0}  # as scvi-tools draws it; others start at zero there
_OTHER_STD = 0.3

Batch = tuple[Tensor, Tensor, Tensor]
"""Values (cells × features), codes of labels and of sites."""


class SiteColumns(nn.Module):
    """Linear layer whose last columns belong to one site each.

    Parameters
    ----------
    linear
        Layer that reads features first, then a one-hot code of the site.
    sites
        Names of the sites.
    """

    def __init__(self, linear: nn.Linear, sites: Sequence[Any]) -> None:
        super().__init__()
        n_inputs, has_bias = linear.in_features - len(sites), linear.bias is not None
        self.linear = nn.Linear(n_inputs, linear.out_features, bias=has_bias)
        std = 1 / math.sqrt(3 * linear.in_features)
        self.columns = nn.ModuleList(Table([str(site)], linear.out_features, std=std) for site in sites)
        with torch.no_grad():
            self.linear.weight.copy_(linear.weight[:, :n_inputs])
            if has_bias:
                self.linear.bias.copy_(linear.bias)
            for number, column in enumerate(self.columns, n_inputs):
                column.weight.copy_(linear.weight[:, number])  # type: ignore[operator]

    def weight(self, present: Collection[int] | None) -> Tensor:
        """Weight of the whole layer; columns of sites that are not present get no gradient."""
        columns = [
            column() if present is None or number in present else column().detach()
            for number, column in enumerate(self.columns)
        ]
        return torch.cat([self.linear.weight, torch.cat(columns).T], dim=1)


class ScviNetwork(nn.Module):
    """A module of scvi-tools, with the columns of each site and the rows of each feature as parts of their own.

    Parameters
    ----------
    native
        Module of scvi-tools, which is taken apart.
    by_site
        Names of the weights whose last columns belong to sites.
    sites, features
        Names in order.
    """

    metric_names = ("loss",)

    def __init__(
        self, native: nn.Module, by_site: Sequence[str], sites: Sequence[Any], features: Sequence[str]
    ) -> None:
        super().__init__()
        self.native = native
        self.epochs_done = 0.0
        self.layer_names = [name.removesuffix(".weight") for name in by_site]
        layers = [native.get_submodule(name) for name in self.layer_names]
        self.site_columns = nn.ModuleList(SiteColumns(layer, sites) for layer in layers)  # type: ignore[arg-type]
        for layer in layers:
            for what in ("weight", "bias"):
                if getattr(layer, what) is not None:
                    _vacate(layer, what)
        raw = {name: p for name, p in native.named_parameters(recurse=False) if p.requires_grad}
        self.row_shapes = {name: tuple(p.shape) for name, p in raw.items()}
        self.rows = nn.ModuleDict()
        for name, parameter in raw.items():
            if len(parameter) != len(features):
                msg = f"Expected parameters of layers or features, found '{name}' of shape {tuple(parameter.shape)}."
                raise ValueError(msg)
            values = parameter.detach().reshape(len(features), -1)
            table = Table(features, values.shape[1], std=_ROWS_STD.get(name, _OTHER_STD))
            with torch.no_grad():
                table.weight.copy_(values)
            self.rows[name] = table
            _vacate(native, name)
        self._freeze_unused(len(sites), len(features))

    def _freeze_unused(self, n_sites: int, n_features: int) -> None:
        """Leave alone what no loss depends on, so that it does not leave a site either."""
        for name, module in self.native.named_modules():
            if type(module) is not nn.Linear and any(p.requires_grad for p in module.parameters(recurse=False)):
                msg = f"Expected parameters of linear layers or features, found a {type(module).__name__} ('{name}')."
                raise ValueError(msg)
        n = max(n_sites, 2)
        codes = torch.arange(n) % n_sites
        self.loss((torch.ones(n, n_features), torch.zeros(n, dtype=torch.long), codes)).backward()
        for parameter in self.parameters():
            parameter.requires_grad_(parameter.requires_grad and parameter.grad is not None)
            parameter.grad = None

    # ---- training

    def schedule(self, epochs_done: float) -> None:
        """Learn how many epochs of the whole run are over, of which the weight of the KL divergence depends."""
        self.epochs_done = epochs_done

    def loss(self, batch: Any, *, n_epochs_kl_warmup: int | None = None) -> Tensor:
        """Loss of scvi-tools, whose KL divergences weigh more from epoch to epoch of the whole run."""
        weight = 1.0
        if n_epochs_kl_warmup:
            weight = min(1.0, math.floor(self.epochs_done + 1e-9) / n_epochs_kl_warmup)
        return self._outputs(batch, weight).loss

    @torch.no_grad()
    def evaluate(self, batches: Any) -> dict[str, float]:
        """Mean per cell of the loss with the full KL divergence, with latent samples that are always the same."""
        total, n = 0.0, 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for batch in batches:
                found = self._outputs(batch, 1.0)
                own = (found.reconstruction_loss_sum + found.kl_local_sum).item()
                if found.classification_loss is not None:
                    own += _CLASSIFICATION_RATIO * found.classification_loss.item() * len(batch[0])
                total, n = total + own, n + len(batch[0])
        return {"loss": total / n}

    def _outputs(self, batch: Batch, kl_weight: float) -> Any:
        options: dict[str, Any] = {"kl_weight": kl_weight}
        if hasattr(self.native, "classifier"):
            x, labels, sites = batch
            n_labels: Any = self.native.n_labels
            labelled = labels < n_labels
            if bool(labelled.any()):
                own = (x[labelled], labels[labelled], sites[labelled])
                options |= {"labelled_tensors": _tensors(own), "classification_ratio": _CLASSIFICATION_RATIO}
        with self._assembled(batch[2].unique().tolist()):
            return self.native(_tensors(batch), loss_kwargs=options)[2]

    # ---- prediction

    def latent(self, batch: Batch) -> Tensor:
        """Mean of the latent code (cells × dimensions)."""
        with self._assembled(None):
            return self.native(_tensors(batch), compute_loss=False)[0]["qz"].loc

    def probabilities(self, batch: Batch) -> Tensor:
        """Probabilities of labels (cells × labels)."""
        x, _, sites = batch
        with self._assembled(None):
            scores = self.native.classify(x, batch_index=sites[:, None])  # type: ignore[operator]
        return torch.softmax(scores, dim=1) if self.native.classifier.logits else scores  # type: ignore[union-attr]

    # ---- as one

    @contextmanager
    def _assembled(self, present: Collection[int] | None) -> Iterator[None]:
        """The module of scvi-tools with all its parameters in place."""
        places = [self.native.get_submodule(name) for name in self.layer_names]
        try:
            for layer, parts in zip(places, self.site_columns, strict=True):
                layer.__dict__["weight"] = parts.weight(present)  # type: ignore[operator]
                if parts.linear.bias is not None:  # type: ignore[union-attr]
                    layer.__dict__["bias"] = parts.linear.bias  # type: ignore[union-attr]
            for name, table in self.rows.items():
                self.native.__dict__[name] = table().reshape(self.row_shapes[name])
            yield
        finally:
            vacated = [(layer, what) for layer in places for what in ("weight", "bias") if what in layer.__dict__]
            for module, what in [*vacated, *((self.native, name) for name in self.rows)]:
                module.__dict__[what] = torch.empty(0)  # copies and moves to a device need no graph of a pass

    @torch.no_grad()
    def native_state(self) -> dict[str, Tensor]:
        """State of the module of scvi-tools as it was before it was taken apart."""
        state = dict(self.native.state_dict())
        for name, parts in zip(self.layer_names, self.site_columns, strict=True):
            state[f"{name}.weight"] = parts.weight(None)  # type: ignore[operator]
            if parts.linear.bias is not None:  # type: ignore[union-attr]
                state[f"{name}.bias"] = parts.linear.bias  # type: ignore[union-attr]
        state |= {name: table().reshape(self.row_shapes[name]) for name, table in self.rows.items()}
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


def _vacate(module: nn.Module, what: str) -> None:
    """Make a parameter a plain attribute, to be filled for each pass."""
    delattr(module, what)
    module.__dict__[what] = torch.empty(0)


def _tensors(batch: Batch) -> dict[str, Tensor]:
    """A batch as scvi-tools names its parts."""
    x, labels, sites = batch
    return {"X": x, "labels": labels[:, None], "batch": sites[:, None]}
