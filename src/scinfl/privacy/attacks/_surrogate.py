"""Further model stealing: learn the permutation, match units to a network of one's own, distil, or compare versions.

As the others, each attack uses a copy without the key, and keeps its best checkpoint by the score it is judged with.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scinfl.nn import PooledLinear, keyed_layers, unkeyed
from scinfl.privacy.attacks._gram import GramEvidence, align_gram, train_references
from scinfl.privacy.attacks._model_stealing import (
    _copied,
    _forgotten,
    _freeze_but,
    _put,
    _stripped,
    _SurrogateVector,
    _train,
    fine_tune,
    fitted_anew,
)
from scinfl.privacy.attacks._reconstruction import recover_input
from scinfl.privacy.attacks._without_key import Score


def fit_permutation(
    network: nn.Module, x: Tensor, y: Tensor, score: Score, *, n_steps: int = 300, lr: float = 3e-2, rng: int = 0
) -> float:
    """Freeze the weights and learn a soft permutation, signs and scales of the inputs of every keyed layer.

    Permutations are relaxed to doubly stochastic matrices (Gumbel-Sinkhorn, Mena et al. 2018).

    Parameters
    ----------
    network, x, y, score, n_steps, lr, rng
        See :func:`train_from_scratch`.
    """
    stolen = _copied(network, rng)
    names = list(keyed_layers(stolen))
    stolen = unkeyed(stolen)
    generator = torch.Generator().manual_seed(rng)
    for name in names:
        layer = stolen.get_submodule(name)
        if isinstance(layer, nn.Linear):
            _put(stolen, name, _SoftPermutation(layer, generator))
    return _train(stolen, _freeze_but(stolen, _SoftPermutation), x, y, score, n_steps, lr, rng)


class _SoftPermutation(nn.Module):
    """A fixed linear layer that reads its inputs in an order to be learned."""

    def __init__(self, linear: nn.Linear, generator: torch.Generator) -> None:
        super().__init__()
        self.linear = linear
        n = linear.in_features
        self.order = nn.Parameter(0.1 * torch.randn(n, n, generator=generator))
        self.signs = nn.Parameter(0.5 * torch.randn(n, generator=generator))
        self.output_scale = nn.Parameter(torch.ones(linear.out_features))
        self.shift = nn.Parameter(torch.zeros(linear.out_features))

    def forward(self, x: Tensor) -> Tensor:
        log = self.order * 5
        for _ in range(8):
            log = log - log.logsumexp(1, keepdim=True)
            log = log - log.logsumexp(0, keepdim=True)
        mixed = F.linear(x, log.exp()) * torch.tanh(self.signs)
        return self.linear(mixed) * self.output_scale + self.shift


def match_surrogate(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    score: Score,
    *,
    n_references: int = 2,
    n_restarts: int = 3,
    n_alignment_steps: int = 1_000_000,
    n_steps: int = 600,
    lr: float = 3e-3,
    rng: int = 0,
) -> float:
    """Put the inputs of the stolen first layer into the order that networks of one's own suggest, and build on it.

    Columns and their signs are aligned by the Gram matrix, see :func:`align_gram`; the other layers start afresh.

    Parameters
    ----------
    n_references
        Networks of one's own, trained on the samples for as many steps.
    n_restarts, n_alignment_steps
        Search for the order.
    network, x, y, score, n_steps, lr, rng
        See :func:`train_from_scratch`.
    """
    stolen = _stripped(network, rng)
    name = next(name for name, module in stolen.named_modules() if isinstance(module, nn.Linear))
    columns = stolen.get_submodule(name).weight.detach().double().numpy()  # type: ignore[operator]
    references = train_references(network, name, x, y, n_references=n_references, n_steps=n_steps, lr=lr, rng=rng)
    found = align_gram(GramEvidence(columns, references), n_restarts=n_restarts, n_steps=n_alignment_steps, rng=rng)
    own = _forgotten(network, rng)
    with torch.no_grad():
        opened = torch.from_numpy((columns * found.signs)[:, np.argsort(found.order)])
        own.get_submodule(name).weight.copy_(opened)  # type: ignore[operator]
    return _train(own, own.parameters(), x, y, score, n_steps, lr, rng)


def distil(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    score: Score,
    *,
    public: Tensor,
    n_steps: int = 600,
    lr: float = 3e-3,
    rng: int = 0,
) -> float:
    """Train a network of one's own on predictions of the stolen one for unlabelled cells, then on the labelled ones.

    No party is queried: the stolen network predicts without its key.

    Parameters
    ----------
    public
        Unlabelled cells (n × features).
    network, x, y, score, n_steps, lr, rng
        See :func:`train_from_scratch`; it is trained twice, as a pupil and then on labels.
    """
    with torch.inference_mode():
        answers = _stripped(network, rng).eval()(public).softmax(1)
    pupil = fitted_anew(network, public, answers.clone(), n_steps=n_steps, lr=lr, rng=rng)
    return _train(pupil, pupil.parameters(), x, y, score, n_steps, lr, rng)


def average_versions(
    networks: Sequence[nn.Module],
    x: Tensor,
    y: Tensor,
    score: Score,
    *,
    n_steps: int = 600,
    lr: float = 3e-3,
    rng: int = 0,
) -> float:
    """Average the weights of several versions of a model, each locked with another key, and fine-tune the mean.

    What a lock adds at random would average out; an order of units does not.

    Parameters
    ----------
    networks
        Stolen networks; left as they are.
    x, y, score, n_steps, lr, rng
        See :func:`train_from_scratch`.
    """
    mean = copy.deepcopy(networks[0])
    others = [dict(network.named_parameters()) for network in networks]
    with torch.no_grad():
        for name, parameter in mean.named_parameters():
            parameter.copy_(torch.stack([own[name] for own in others]).mean(0))
    return fine_tune(mean, x, y, score, n_steps=n_steps, lr=lr, rng=rng)


def extract_pooled_key(change: Mapping[str, np.ndarray]) -> np.ndarray:
    """Read the pooled vector of the second published form off one update in the open.

    The modulator of every layer reads the same vector and nothing else, so the gradients of its first weight and bias
    give it exactly (see :func:`recover_input`), whatever the size of the batch.

    Parameters
    ----------
    change
        Changes, or gradients, by name.

    Returns
    -------
    Pooled vector (16).

    Raises
    ------
    KeyError
        If there is no modulator among the changes.
    """
    ends = "meta.modulator.0.weight"
    names = [name for name in change if name.endswith(ends)]
    if not names:
        msg = "Expected the change of a modulator of key scheme 'pooled', found none. Other schemes have none."
        raise KeyError(msg)
    pairs = [(change[name], change[name.removesuffix("weight") + "bias"]) for name in names]
    weight, bias = (np.concatenate([np.asarray(pair[side]) for pair in pairs]) for side in (0, 1))
    return recover_input(weight, bias)


def use_pooled_key(network: nn.Module, vector: np.ndarray) -> nn.Module:
    """Copy of a stolen network of the second published form that computes with a pooled vector."""
    stolen = copy.deepcopy(network)
    pooled = nn.Parameter(torch.from_numpy(np.asarray(vector, dtype=np.float32)), requires_grad=False)
    for name, layer in keyed_layers(stolen).items():
        if isinstance(layer, PooledLinear):
            _put(stolen, name, _SurrogateVector(layer, pooled))
    return stolen.eval()
