"""Gradients of single rows or groups, each clipped before they are added."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.func import functional_call, grad, vmap
from torch.overrides import TorchFunctionMode

_NUMBERS = 2**24  # of all gradients that are held at a time
_ROWS = 4096

ROWS_MIX = (
    "Expected rows that enter the loss one by one, found observations that mix several: the features of a spot hold "
    "those of its neighbours, so no noise on its gradient hides it. Guard whole sites with `UpdateDP` instead of "
    "`SampleDP`."
)


class PoissonBatch(NamedTuple):
    """Units that one step drew, each by itself.

    Parameters
    ----------
    x, codes
        Features, and codes of labels (and of sites), of their rows.
    unit
        Number of the unit of each row.
    n_expected
        Units that a step draws on average.
    noise_multiplier
        Noise of the step, over the largest norm.
    """

    x: Tensor
    codes: tuple[Tensor, ...]
    unit: np.ndarray
    n_expected: float
    noise_multiplier: float


def check_rows(train: Any, network: nn.Module, options: Mapping[str, Any]) -> None:
    """Refuse what lets one row change the gradients of others."""
    if not hasattr(train, "take"):
        raise ValueError(ROWS_MIX)
    mixing = [type(m).__name__ for m in network.modules() if hasattr(m, "running_mean")]
    if mixing:
        msg = (
            f"Expected layers that treat each row by itself, found {mixing[0]}: a mean and variance over the batch "
            "lets a row change the gradients of all others, past any clipping. Make the model with `norm='layer'`."
        )
        raise ValueError(msg)
    if options:
        msg = (
            f"Expected a plain loss, found the options {sorted(options)}: weights taken from the rows of a site "
            "let a row change the gradients of others. Train with `class_weight=None`."
        )
        raise ValueError(msg)
    some = tuple(tensor[:1] for tensor in train.take(torch.arange(min(1, len(train)))))
    with torch.random.fork_rng(devices=[]):
        try:
            clipped_sum(network, some, np.zeros(len(some[0]), int), 1.0)
        except RuntimeError as error:
            msg = (
                f"Expected a loss of each row by itself, found one of {type(network).__name__} that asks what a whole "
                "batch holds, so that gradients of single rows cannot be clipped. Guard whole sites with `UpdateDP` "
                "instead of `SampleDP`."
            )
            raise ValueError(msg) from error


class _RowByRow(TorchFunctionMode):
    """Does for each row what torch offers for a whole batch only: noise in place, codes, and values under a mask."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.normal_:
            return torch.randn(args[0].shape, dtype=args[0].dtype, device=args[0].device)
        if func is nn.functional.one_hot and len(args) + len(kwargs) == 2:
            codes, n = (*args, *kwargs.values())
            return (codes[..., None] == torch.arange(n, device=codes.device)).long()
        if func is Tensor.__setitem__ and isinstance(args[1], Tensor) and args[1].dtype is torch.bool:
            return args[0].masked_fill_(args[1], args[2])
        return func(*args, **kwargs)


@contextmanager
def _row_by_row() -> Iterator[None]:
    """Let distributions of torch be drawn from and scored under ``vmap``, without checks of their values."""
    before = getattr(Distribution, "_validate_args", __debug__)
    Distribution.set_default_validate_args(False)
    try:
        with _RowByRow():
            yield
    finally:
        Distribution.set_default_validate_args(before)


class _Loss(nn.Module):
    """The loss of a network as a forward pass, so that its parameters can be put in from outside."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *batch: Tensor) -> Tensor:
        return self.network.loss(batch)  # type: ignore[operator]


def clipped_sum(network: nn.Module, batch: tuple[Tensor, ...], unit: np.ndarray, max_norm: float) -> dict[str, Tensor]:
    r"""Sum over units of their gradients, none longer than :math:`C`.

    .. math:: \sum_u g_u \min\Big(1, \frac{C}{\lVert g_u \rVert}\Big)

    where :math:`g_u` is the gradient of the mean loss over the rows of unit :math:`u`, all parameters together. Units
    with the same number of rows go through the network side by side (:func:`torch.func.vmap`), so that any layer that
    treats rows one by one works, keyed ones included.

    Returns
    -------
    Sum by name of the trained parameter.
    """
    loss, names = _Loss(network), _names(network)
    parameters = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}

    def loss_of_a_unit(parameters: dict[str, Tensor], *batch: Tensor) -> Tensor:
        put_in = {f"network.{place}": parameters[name] for place, name in names.items()}
        return functional_call(loss, put_in, batch, tie_weights=False)

    gradients_of = vmap(grad(loss_of_a_unit), in_dims=(None, *[0] * len(batch)), randomness="different")
    for rows in _blocks(unit, sum(p.numel() for p in parameters.values())):
        with _row_by_row():
            gradients = gradients_of(parameters, *(tensor[rows.to(tensor.device)] for tensor in batch))
        norm = sum(g.flatten(1).square().sum(1) for g in gradients.values()).sqrt()
        if not norm.isfinite().all():  # what no number can clip is left out
            gradients = {name: g.nan_to_num(0, 0, 0) for name, g in gradients.items()}
        share = (max_norm / norm.clamp_min(1e-30)).clamp_max(1).where(norm.isfinite(), 0)
        for name, g in gradients.items():
            total[name] += torch.tensordot(share, g, dims=1)
    return total


def _names(network: nn.Module) -> dict[str, str]:
    """Name of the parameter at each place of the network; one parameter may be used at several.

    Torch would find these places itself, but then leaves a module that is used twice without its parameters.
    """
    known: dict[nn.Parameter, str] = {}
    places = {}
    for prefix, module in network.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                place = f"{prefix}.{own}" if prefix else own
                places[place] = known.setdefault(parameter, place)
    return places


def _blocks(unit: np.ndarray, n_parameters: int) -> Iterator[Tensor]:
    """Rows of units with equally many (units × rows), as many at a time as memory allows."""
    order = np.argsort(unit, kind="stable")
    _, number, sizes = np.unique(unit[order], return_inverse=True, return_counts=True)
    for size in np.unique(sizes):
        rows = torch.from_numpy(order[sizes[number] == size].reshape(-1, size))
        yield from rows.split(max(1, min(_NUMBERS // n_parameters, _ROWS // int(size))))
