"""A module of scvi-tools whose parameters a key can lock and sites can own."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from scinfl import nn as keyed_nn
from scinfl._checks import first_of
from scinfl._names import GENES, PEAKS, PROTEINS
from scinfl.model.scvi._features import slices_of
from scinfl.model.scvi._native_layers import prepared, vacate
from scinfl.model.scvi._site_columns import Layout, SiteColumns, SiteSlices

_CLASSIFICATION_RATIO = 50  # of scvi-tools
_TENSORS = {GENES: "X", PEAKS: "atac", PROTEINS: "proteins"}

Batch = tuple[Tensor, Tensor, Tensor]
"""Values (cells × features), codes of labels and of sites."""


class ScviNetwork(nn.Module):
    """A module of scvi-tools, with the columns of each site and the rows of each feature as parts of their own.

    Parameters
    ----------
    native
        Module of scvi-tools, which is taken apart.
    by_site
        Parameters of which each site owns a part, with the axis of the sites.
    sites, features, labels
        Names in order.
    modalities
        Number of features of each modality, in order; none where all features are of one kind.
    classifies
        Whether it learns labels.
    is_mosaic
        Whether cells can lack a modality.
    """

    metric_names = ("loss",)

    def __init__(
        self,
        native: nn.Module,
        by_site: Mapping[str, int],
        *,
        sites: Sequence[Any],
        features: Sequence[str],
        labels: Sequence[Any],
        modalities: Mapping[str, int],
        classifies: bool,
        is_mosaic: bool,
    ) -> None:
        super().__init__()
        self.native, self.classifies = prepared(native), classifies
        self.epochs_done, self.n_epochs_kl_warmup = 0.0, 0
        self.modalities = slices_of(modalities)
        known = [*(list(features)[own] for own in self.modalities.values()), list(features), list(map(str, labels))]
        self.places = list(by_site)
        self.site_columns = nn.ModuleList()
        for name, axis in by_site.items():
            module, what = self._place(name)
            if isinstance(module, nn.Linear):
                self.site_columns.append(SiteColumns(module, sites))
                vacate(module, "weight", "bias")
            else:
                self.site_columns.append(SiteSlices(getattr(module, what), axis, sites, known))
                vacate(module, what)
        self.rows, self.layouts = nn.ModuleDict(), {}
        for name in self._raw_names():
            module, what = self._place(name)
            self.layouts[name] = layout = Layout.of(tuple(getattr(module, what).shape), known, name)
            self.rows[name.replace(".", "/")] = layout.table(getattr(module, what))
            vacate(module, what)
        self.n_sites = len(sites)
        self.trained = self._used(len(features))
        """Parameters that the loss depends on: others do not leave a site."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in self.trained)
        self.modality_parts = {
            name: self.trained - self._used(len(features), without=own)
            for name, own in self.modalities.items()
            if is_mosaic
        }
        """Parameters that only cells with a modality train."""

    def columns_of(self, site: int) -> list[str]:
        """Beginnings of the names of parameters that a site owns."""
        return [f"site_columns.{number}.columns.{site}." for number in range(len(self.site_columns))]

    def _place(self, name: str) -> tuple[nn.Module, str]:
        """Module and attribute of a parameter of scvi-tools."""
        path, _, what = name.rpartition(".")
        return self.native.get_submodule(path), what

    def _raw_names(self) -> list[str]:
        """Trained parameters that are not those of linear layers."""
        named = [name for name, p in self.native.named_parameters() if p.requires_grad and p.numel()]
        return [name for name in named if type(self._place(name)[0]) is not nn.Linear]

    def _used(self, n_features: int, *, without: slice | None = None) -> frozenset[str]:
        """Names of the parameters that the loss of cells of all sites depends on, which may lack a modality."""
        n = max(self.n_sites, 2)
        values = torch.ones(n, n_features)
        if without is not None:
            values[:, without] = 0
        self.loss((values, torch.zeros(n, dtype=torch.long), torch.arange(n) % self.n_sites)).backward()
        found = frozenset(name for name, p in self.named_parameters() if p.grad is not None and bool(p.grad.any()))
        self.zero_grad(set_to_none=True)
        return found

    def measured(self, values: Any, site: str) -> list[str]:
        """Modalities that a site measured.

        Raises
        ------
        ValueError
            If it did not measure one without which the network cannot be trained.
        """
        found = [name for name, own in self.modalities.items() if values[:, own].sum() > 0]
        if lacking := [name for name in self.modalities if name not in [*found, *self.modality_parts]]:
            msg = (
                f"Expected counts of {first_of(lacking)} at every site, found none at '{site}': zeros would be learned "
                "as if they were measured. Leave that site out, or train a MULTIVI."
            )
            raise ValueError(msg)
        return found

    # ---- training

    def train_parts(self, sites: Collection[int], measured: Collection[str], n_epochs_kl_warmup: int | None) -> None:
        """Train what a site has part in: its own columns, and what its modalities reach.

        Parameters
        ----------
        sites
            Codes of the sites whose columns are trained.
        measured
            Modalities of their cells.
        n_epochs_kl_warmup
            Epochs of the whole run until the KL divergence has its full weight.
        """
        self.n_epochs_kl_warmup = n_epochs_kl_warmup or 0
        absent = {name for modality, own in self.modality_parts.items() if modality not in measured for name in own}
        others = tuple(name for site in range(self.n_sites) if site not in sites for name in self.columns_of(site))
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in self.trained - absent and not name.startswith(others))

    def schedule(self, epochs_done: float) -> None:
        """Learn how many epochs of the whole run are over, of which the weight of the KL divergence depends."""
        self.epochs_done = epochs_done

    def loss(self, batch: Any) -> Tensor:
        """Loss of scvi-tools, whose KL divergences weigh more from epoch to epoch of the whole run."""
        weight = 1.0
        if self.n_epochs_kl_warmup:
            weight = min(1.0, math.floor(self.epochs_done + 1e-9) / self.n_epochs_kl_warmup)
        return self._outputs(batch, weight).loss + self._classification(batch)

    @torch.no_grad()
    def evaluate(self, batches: Any) -> dict[str, float]:
        """Mean per cell of the loss with the full KL divergence, with latent samples that are always the same."""
        total, n = 0.0, 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for batch in batches:
                own = _of_cells(self._outputs(batch, 1.0)).mean() + self._classification(batch)
                total, n = total + own.item() * len(batch[0]), n + len(batch[0])
        return {"loss": total / n}

    def losses(self, batch: Batch) -> Tensor:
        """Negative evidence lower bound of each cell, with latent samples that are always the same."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return _of_cells(self._outputs(batch, 1.0))

    def _outputs(self, batch: Batch, kl_weight: float) -> Any:
        with self._assembled():
            return self.native(self._tensors(batch), loss_kwargs={"kl_weight": kl_weight})[2]

    def _classification(self, batch: Batch) -> Tensor:
        """Loss of the classifier over the labelled cells of a batch; none where there are none."""
        if not self.classifies:
            return torch.zeros(())
        _, labels, _ = batch
        scores = self._scores(batch)
        is_labelled = labels < scores.shape[1]
        each = nn.functional.cross_entropy(scores, labels.clamp_max(scores.shape[1] - 1), reduction="none")
        return _CLASSIFICATION_RATIO * (each * is_labelled).sum() / is_labelled.sum().clamp_min(1)

    def _scores(self, batch: Batch) -> Tensor:
        """What the classifier makes of cells (cells × labels)."""
        x, _, sites = batch
        with self._assembled():
            return self.native.classify(x, batch_index=sites[:, None])  # type: ignore[operator]

    def _tensors(self, batch: Batch) -> dict[str, Tensor]:
        """A batch as scvi-tools names its parts."""
        x, labels, sites = batch
        parts = {_TENSORS[name]: x[:, own] for name, own in self.modalities.items()} or {"X": x}
        return {**parts, "labels": labels[:, None], "batch": sites[:, None], "ind_x": torch.zeros_like(sites)[:, None]}

    # ---- prediction

    def latent(self, batch: Batch) -> Tensor:
        """Mean of the latent code (cells × dimensions)."""
        with self._assembled():
            found = self.native(self._tensors(batch), compute_loss=False)[0]
        return found["qz"].loc if "qz" in found else found["qz_m"]

    def expected(self, batch: Batch) -> Tensor:
        """Expected counts (cells × features, of several modalities the genes alone), or probabilities of peaks."""
        with self._assembled():
            found = self.native(self._tensors(batch), compute_loss=False)[1]
        if "px_rate" in found:
            return found["px_rate"]
        if "px_" in found:
            return found["px_"]["rate"]
        return found["px"] if isinstance(found["px"], Tensor) else found["px"].mean

    def probabilities(self, batch: Batch) -> Tensor:
        """Probabilities of labels (cells × labels)."""
        scores = self._scores(batch)
        return torch.softmax(scores, dim=1) if self.native.classifier.logits else scores  # type: ignore[union-attr]

    # ---- as one

    def _arrays(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters of scvi-tools that are stored as parts, put together."""
        for name, parts in zip(self.places, self.site_columns, strict=True):
            yield name, parts()
            if isinstance(parts, SiteColumns) and parts.linear.bias is not None:
                yield f"{name.removesuffix('weight')}bias", parts.linear.bias
        for name, layout in self.layouts.items():
            yield name, layout.array(self.rows[name.replace(".", "/")]())

    @contextmanager
    def _assembled(self) -> Iterator[None]:
        """The module of scvi-tools with all its parameters in place."""
        filled, own = [], dict(vars(self.native))
        try:
            for name, array in self._arrays():
                module, what = self._place(name)
                module.__dict__[what] = array
                filled.append((module, what))
            yield
        finally:  # copies and moves to a device need no graph of a pass
            for module, what in filled:
                module.__dict__[what] = torch.empty(0)
            vars(self.native).clear()
            vars(self.native).update(own)  # some modules keep what they computed last

    @torch.no_grad()
    def native_state(self) -> dict[str, Tensor]:
        """State of the module of scvi-tools as it was before it was taken apart."""
        state = {**self.native.state_dict(), **dict(self._arrays())}
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


def without_key(network: nn.Module) -> ScviNetwork:
    """A copy of a network without keyed layers, which computes what it does with the key that it has, or with none."""
    found: Any = copy.deepcopy(network)
    if layers := keyed_nn.keyed_layers(network):
        is_set = all(layer.is_set for layer in layers.values())
        plain = keyed_nn.unlock(network, network.state_dict()) if is_set else network.state_dict()
        found = keyed_nn.unkeyed(found)
        found.load_state_dict({name: plain[name] for name in found.state_dict()})
    return found.eval()


def _of_cells(found: Any) -> Tensor:
    """Negative evidence lower bound of each cell, of what scvi-tools computed."""
    parts = [*found.reconstruction_loss.values(), *found.kl_local.values()]
    return torch.stack([part for part in parts if isinstance(part, Tensor) and part.ndim]).sum(0)
