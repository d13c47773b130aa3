"""Alignment of a stolen first layer with networks of one's own, by the Gram matrix of its columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from scinfl.nn import Table, folded
from scinfl.privacy.attacks._gram_search import anneal
from scinfl.privacy.attacks._model_stealing import Loss, fitted_anew

_HOT, _COLD = 0.8, 0.1  # temperatures of the search, in standard deviations of a product of similarities, times √n
_SCALE = 0.17  # standard deviation of the logarithm of a bounded scale
_UNSURE = 2.0  # a stolen layer differs from a mean of references by more than they differ from it: factor of variance
_LEAST = 0.05  # variance of what a column says, at least


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
    the stolen columns and :math:`R` the mean cosines of those of the attacker's own networks (diagonals 0), an order
    :math:`\pi` with signs :math:`s` scores

    .. math::
        E(\pi, s) = \frac{1}{\sigma_C \sigma_R}\sum_{i < j} s_i s_j C_{ij} R_{\pi(i) \pi(j)}
        - \frac{\lambda}{2} \sum_i (v_i - r_{\pi(i)})^\top \Sigma^{-1} (v_i - r_{\pi(i)})

    where :math:`v_i` is what a column says by itself, whatever its sign, and its scale but for the first: logarithms of
    its norm, of the mean and of the fourth moment of its values over the norm, of :math:`\sum_j C_{ij}^2`, of
    :math:`\max_j |C_{ij}|` and of :math:`(C + (1 + \varepsilon) I)^{-1}_{ii}`, and :math:`(C^3)_{ii}^{1/3}`, each
    standardised over the columns; :math:`r` is its mean over the own networks, and :math:`\Sigma` from what these
    differ by. Without this second term a search seldom finds what the first one knows.

    Parameters
    ----------
    weight
        Stolen layer (units × features), or a difference of two.
    references
        First layers of networks of one's own, in the order of the features.
    rank
        Keep so many directions of the stolen layer, to take noise off; all by default.
    single
        :math:`\lambda`.
    """

    def __init__(
        self, weight: np.ndarray, references: Sequence[np.ndarray], *, rank: int | None = None, single: float = 6.0
    ) -> None:
        stolen = np.asarray(weight, dtype=np.float64)
        if rank is not None:
            left, values, right = np.linalg.svd(stolen, full_matrices=False)
            stolen = (left[:, :rank] * values[:rank]) @ right[:rank]
        grams, own, _ = zip(*map(_gram, references), strict=True)
        columns, says, spread = _gram(stolen)
        features, expected = np.mean(grams, axis=0), np.mean(own, axis=0)
        upper = np.triu_indices(len(columns), 1)
        self.columns, self.features = columns / columns[upper].std(), features / features[upper].std()
        differ = (np.stack(own) - expected).reshape(-1, says.shape[1])
        noise = _UNSURE * differ.T @ differ / max(len(differ) - len(says), 1) + _LEAST * np.eye(says.shape[1])
        noise[0, 0] += np.square(_SCALE / spread)
        off = says[:, None] - expected
        self.single = -single / 2 * np.einsum("cfk,kl,cfl->cf", off, np.linalg.inv(noise), off, optimize=True)

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


def _gram(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Cosines of columns without the diagonal, what each column says by itself, and the spread of logarithmic norms."""
    norm = np.maximum(np.linalg.norm(np.asarray(weight, dtype=np.float64), axis=0), 1e-300)
    unit = weight / norm
    cosines = unit.T @ unit
    np.fill_diagonal(cosines, 0)
    closed = np.square(cosines)
    size = np.log(norm)
    with np.errstate(divide="ignore"):
        columns = [
            size,
            np.log(np.abs(unit).mean(0)),
            np.log(np.square(np.square(unit)).mean(0)),
            np.log(closed.sum(0)),
            np.log(closed.max(0)),
            np.log(np.diag(np.linalg.inv(cosines + (1 + _LEAST) * np.eye(len(cosines))))),
            np.cbrt(((cosines @ cosines) * cosines).sum(0)),
        ]
    says = np.nan_to_num(np.stack(columns, axis=1), neginf=0.0)
    says -= says.mean(0)
    return cosines, says / np.maximum(says.std(0), 1e-12), float(max(size.std(), 1e-12))


def align_gram(
    evidence: GramEvidence,
    *,
    n_restarts: int = 20,
    n_steps: int = 12_000_000,
    rng: int = 0,
    progress: bool = False,
) -> GramAlignment:
    """Search for the order and signs of the columns of a locked first layer, by annealing.

    A step swaps the features of two columns or turns a sign; 12 million of them take a second or two for 120 features.

    Parameters
    ----------
    evidence
        What is known.
    n_restarts, n_steps, rng
        Search. Some restarts fail; one that is right is recognised by its score.
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
    >>> found = attacks.align_gram(evidence, n_restarts=5, n_steps=20_000)
    >>> bool((found.order == order).all()), abs(round(float(found.signs @ signs)))
    (True, 12)
    """
    columns, features, single = (a.astype(np.float32) for a in (evidence.columns, evidence.features, evidence.single))
    n, generator = len(columns), np.random.default_rng(rng)
    hot, cold = (float(temperature * np.sqrt(n)) for temperature in (_HOT, _COLD))
    found, scores = [], []
    for _ in tqdm(range(n_restarts), disable=not progress, unit="restart", desc="Aligning"):
        order, signs = generator.permutation(n), generator.choice(np.array([-1, 1], np.float32), n)
        anneal(columns, features, single, order, signs, n_steps, hot, cold, generator)
        found.append((order, signs.astype(np.float64)))
        scores.append(evidence.score(*found[-1]))
    best = int(np.argmax(scores))
    return GramAlignment(*found[best], scores[best], np.array(scores))


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
    rng: int = 0,
) -> list[np.ndarray]:
    """Train networks of the same shape on samples of one's own; returns a layer of each (units × features).

    Of a table it is the transposed one (columns × rows).

    Parameters
    ----------
    network
        Stolen network, for its shape.
    layer
        Name of the layer.
    x, y, loss
        Samples, and what is known of them.
    n_references, n_steps, lr, rng
        Training.
    """
    trained = (
        fitted_anew(network, x, y, loss=loss, n_steps=n_steps, lr=lr, rng=seed)
        for seed in range(rng, rng + n_references)
    )
    return [_columns(own.get_submodule(layer)) for own in trained]


def _columns(layer: nn.Module) -> np.ndarray:
    weight = layer.weight.T if isinstance(layer, Table) else folded(layer)[0]  # type: ignore[index]
    return weight.detach().double().numpy()
