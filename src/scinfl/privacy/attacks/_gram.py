"""Alignment of a stolen first layer with networks of one's own, by the Gram matrix of its columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from scinfl.nn import folded
from scinfl.privacy.attacks._model_stealing import Loss, _forget, _stripped

_HOT, _COLD = 1.2, 0.12  # temperatures of the search, in standard deviations of a product of similarities, times √n
_TOGETHER = 0.1  # share of the columns that move at once


@dataclass(frozen=True)
class GramAlignment:
    """What a search for the order of the features found.

    Parameters
    ----------
    order
        For every column of the stolen layer, the feature that it is taken to read.
    signs
        Sign of every column; all of them together may be wrong.
    score
        How well the Gram matrices agree under this order, see :class:`GramEvidence`.
    scores
        That of every restart.
    """

    order: np.ndarray
    signs: np.ndarray
    score: float
    scores: np.ndarray


class GramEvidence:
    r"""What an attacker knows of the order of the columns of a locked first layer.

    Signs, an order and bounded scales leave :math:`|W^\top W|` known up to relabelling. With :math:`C` the cosines of
    the stolen columns, :math:`R` the mean cosines of those of the attacker's own networks, and :math:`\ell, r` the
    centred logarithms of their norms, an order :math:`\pi` with signs :math:`s` scores

    .. math::
        E(\pi, s) = \frac{1}{\sigma_C \sigma_R}\sum_{i < j} s_i s_j C_{ij} R_{\pi(i) \pi(j)}
        - \lambda \sum_i (\ell_i - r_{\pi(i)})^2

    Parameters
    ----------
    weight
        Stolen layer (units × features), or a difference of two.
    references
        First layers of networks of one's own, in the order of the features.
    rank
        Keep so many directions of the stolen layer, to take noise off; all by default.
    norms
        :math:`\lambda`, in place of about the inverse variance of the logarithm of a bounded scale.
    """

    def __init__(
        self, weight: np.ndarray, references: Sequence[np.ndarray], *, rank: int | None = None, norms: float = 10.0
    ) -> None:
        stolen = np.asarray(weight, dtype=np.float64)
        if rank is not None:
            left, values, right = np.linalg.svd(stolen, full_matrices=False)
            stolen = (left[:, :rank] * values[:rank]) @ right[:rank]
        grams, sizes = zip(*map(_gram, references), strict=True)
        columns, size = _gram(stolen)
        features = np.mean(grams, axis=0)
        upper = np.triu_indices(len(columns), 1)
        self.columns, self.features = columns / columns[upper].std(), features / features[upper].std()
        expected = np.mean(sizes, axis=0)
        self.single = -norms * np.square(size[:, None] - expected)

    def score(self, order: np.ndarray, signs: np.ndarray) -> float:
        """How well an order with signs fits.

        Parameters
        ----------
        order
            For every column, the feature that it is taken to read.
        signs
            Sign of every column.
        """
        both = np.outer(signs, signs) * self.columns * self.features[np.ix_(order, order)]
        return float(both.sum() / 2 + self.single[np.arange(len(order)), order].sum())


def _gram(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of columns without the diagonal, and centred logarithms of their norms."""
    norm = np.maximum(np.linalg.norm(np.asarray(weight, dtype=np.float64), axis=0), 1e-300)
    cosines = (weight / norm).T @ (weight / norm)
    np.fill_diagonal(cosines, 0)
    size = np.log(norm)
    return cosines, size - size.mean()


def align_gram(
    evidence: GramEvidence, *, n_restarts: int = 20, n_steps: int = 20_000, rng: int = 0, progress: bool = False
) -> GramAlignment:
    """Search for the order and signs of the columns of a locked first layer, by annealing.

    All restarts go along together. In a step a tenth of the columns is paired at random; every pair draws again whether
    to swap features, and both signs, from what the other columns say at the present temperature (heat bath).

    Parameters
    ----------
    evidence
        What is known.
    n_restarts, n_steps, rng
        Search. Most restarts fail; one that is right is recognised by its score.
    progress
        Show a progress bar.

    Examples
    --------
    >>> import numpy as np
    >>> from scinfl.privacy import attacks
    >>> generator = np.random.default_rng(0)
    >>> layer = generator.normal(size=(30, 12)) @ generator.normal(size=(12, 12))
    >>> order, signs = generator.permutation(12), generator.choice([-1.0, 1.0], 12)
    >>> evidence = attacks.GramEvidence(layer[:, order] * signs, [layer])
    >>> found = attacks.align_gram(evidence, n_steps=2_000)
    >>> bool((found.order == order).all()), abs(round(float(found.signs @ signs)))
    (True, 12)
    """
    search = _Search(evidence, n_restarts, np.random.default_rng(rng))
    n = len(evidence.columns)
    for done in tqdm(np.linspace(0, 1, n_steps), disable=not progress, unit="step", desc="Aligning"):
        search.step(np.float32(np.sqrt(n) * _HOT * (_COLD / _HOT) ** done))
    scores = np.array([evidence.score(*found) for found in zip(search.order, search.signs, strict=True)])
    best = int(scores.argmax())
    return GramAlignment(search.order[best], search.signs[best].astype(np.float64), float(scores[best]), scores)


class _Search:
    """Orders and signs of all restarts, and the field that each column feels at each feature."""

    def __init__(self, evidence: GramEvidence, n_restarts: int, generator: np.random.Generator) -> None:
        self._columns, self._features, self._single = (
            array.astype(np.float32) for array in (evidence.columns, evidence.features, evidence.single)
        )
        n = len(self._columns)
        self._generator = generator
        self.order = np.stack([generator.permutation(n) for _ in range(n_restarts)])
        self.signs = generator.choice(np.array([-1, 1], np.float32), (n_restarts, n))
        self._field = self._columns @ (self.signs[:, :, None] * self._features[self.order])
        self._n_pairs = max(1, round(_TOGETHER * n / 2))
        self._all = np.arange(n_restarts)[:, None]
        self._options = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], np.float32)

    def step(self, temperature: np.float32) -> None:
        """Draw some pairs of columns again, the same columns in all restarts."""
        chosen = self._generator.permutation(len(self._columns))[: 2 * self._n_pairs]
        one, two = chosen[: self._n_pairs], chosen[self._n_pairs :]
        a, b = self.order[:, one], self.order[:, two]
        signs_a, signs_b = self.signs[:, one], self.signs[:, two]
        between = self._columns[one, two]
        link = between * self._features[a, b]
        field = self._field
        stay = (field[self._all, one, a] - signs_b * link, field[self._all, two, b] - signs_a * link)
        swap = (field[self._all, one, b], field[self._all, two, a])
        alone = (self._single[one, a] + self._single[two, b], self._single[one, b] + self._single[two, a])
        energy = np.concatenate(
            [
                first[..., None] * self._options[:, 0] + second[..., None] * self._options[:, 1]
                + (link[..., None] * self._options.prod(1)) + own[..., None]
                for (first, second), own in zip((stay, swap), alone, strict=True)
            ],
            axis=-1,
        )  # fmt: skip
        noise = -np.log(-np.log(self._generator.random(energy.shape, dtype=np.float32) + 1e-12) + 1e-12)
        drawn = (energy / temperature + noise).argmax(-1)
        is_swap, option = drawn >= 4, self._options[drawn % 4]
        before = self.signs[:, chosen, None] * self._features[self.order[:, chosen]]
        self.order[:, one], self.order[:, two] = np.where(is_swap, b, a), np.where(is_swap, a, b)
        self.signs[:, one], self.signs[:, two] = option[..., 0], option[..., 1]
        after = self.signs[:, chosen, None] * self._features[self.order[:, chosen]]
        self._field += self._columns[:, chosen] @ (after - before)


def train_references(
    network: nn.Module,
    layer: str,
    x: Tensor,
    y: Tensor,
    *,
    n_references: int = 8,
    loss: Loss = F.cross_entropy,
    n_steps: int = 2000,
    lr: float = 3e-3,
    weight_decay: float = 5e-4,
    rng: int = 0,
) -> list[np.ndarray]:
    """Train networks of the same shape on samples of one's own; returns a layer of each (units × features).

    Parameters
    ----------
    network
        Stolen network, for its shape.
    layer
        Name of the layer.
    x, y, loss
        Samples, and what is known of them.
    n_references, n_steps, lr, weight_decay, rng
        Training.
    """
    found = []
    for seed in range(rng, rng + n_references):
        own = _stripped(network, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _forget(own)
            optimizer = torch.optim.AdamW(own.parameters(), lr, weight_decay=weight_decay, fused=True)
            own.train()
            for _ in range(n_steps):
                rows = torch.randint(len(x), (min(32, len(x)),))
                optimizer.zero_grad()
                loss(own(x[rows]), y[rows]).backward()
                optimizer.step()
        found.append(folded(own.get_submodule(layer))[0].detach().double().numpy())  # type: ignore[index]
    return found
