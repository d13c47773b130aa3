"""Who was in the training data, from how well a network knows each cell."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest, norm
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from scinfl._checks import number_between, whole_number


def confidence(network: nn.Module, x: Tensor, y: Tensor) -> np.ndarray:
    r"""How sure a network is of the right label, :math:`\log p_y - \log(1 - p_y)`, nearly normal over networks.

    By itself it is the loss threshold attack (Yeom et al. 2018): training cells have it higher.

    Parameters
    ----------
    network
        Network with its key.
    x, y
        Cells (n × features) and label codes.

    Examples
    --------
    >>> import torch, scinfl as si
    >>> network = torch.nn.Identity()  # its input is what it says
    >>> si.privacy.attacks.confidence(network, torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 0]))
    array([ 2., -3.])
    """
    was_training = network.training
    with torch.no_grad():
        logits = network.eval()(x).double()
    network.train(was_training)
    own = logits.gather(1, y[:, None])[:, 0]
    others = logits.scatter(1, y[:, None], -torch.inf).logsumexp(1)
    return (own - others).numpy()


def loss_drop(before: nn.Module, after: nn.Module, x: Tensor, y: Tensor) -> np.ndarray:
    """How much surer of each cell a network became: membership from one update alone.

    Parameters
    ----------
    before, after
        Network as it was sent to the site, and as it came back.
    x, y
        Cells (n × features) and label codes.
    """
    return confidence(after, x, y) - confidence(before, x, y)


def train_shadows(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    n_models: int = 16,
    share: float = 0.5,
    n_epochs: int = 60,
    batch_size: int = 32,
    lr: float = 6e-3,
    weight_decay: float = 0.01,
    groups: np.ndarray | None = None,
    after_each: Callable[[], object] | None = None,
    rng: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Train networks of the same shape on random parts of cells, to see what being inside does to each.

    Parameters
    ----------
    network
        Plain network of the same shape; left as it is.
    x, y
        Cells (n × features) and label codes, of the attacker or the auditor.
    n_models
        Number of networks.
    share
        Share of the cells, or groups, in each.
    n_epochs, batch_size, lr, weight_decay
        Training by AdamW, as a site trains.
    groups
        Donor of each cell: a donor is inside with all cells or with none.
    after_each
        Called after each network.
    rng
        Seed.

    Returns
    -------
    Confidence of every network (networks × cells), and whether the cell was inside.
    """
    whole_number("n_models", n_models, 1)
    number_between("share", share, 0.05, 0.95)
    units = np.arange(len(x)) if groups is None else np.unique(groups, return_inverse=True)[1]
    generator = np.random.default_rng(rng)
    n_units = int(units.max()) + 1
    found, inside = np.empty((n_models, len(x))), np.empty((n_models, len(x)), dtype=bool)
    for number in range(n_models):
        chosen = np.zeros(n_units, dtype=bool)
        chosen[generator.permutation(n_units)[: round(share * n_units)]] = True
        inside[number] = chosen[units]
        rows = torch.from_numpy(np.flatnonzero(inside[number]))
        seed = int(generator.integers(2**31))
        shadow = _trained(network, x[rows], y[rows], n_epochs, batch_size, lr, weight_decay, seed)
        found[number] = confidence(shadow, x, y)
        if after_each is not None:
            after_each()
    return found, inside


def likelihood_ratio(target: np.ndarray, shadows: np.ndarray, inside: np.ndarray, *, online: bool = True) -> np.ndarray:
    r"""Score each cell by how the network under attack compares with shadow networks (LiRA, Carlini et al. 2022).

    Online, :math:`\log p(\phi \mid \text{in}) - \log p(\phi \mid \text{out})` with normal distributions of the
    confidence :math:`\phi` of networks with and without the cell; offline, how far :math:`\phi` lies above those
    without. The deviation is pooled over all cells, as is better with few networks, and one for both: averaged networks
    are less extreme than single ones, and with two deviations the wider distribution would claim all that is odd.

    Parameters
    ----------
    target
        Confidence of the network under attack (cells).
    shadows, inside
        What :func:`train_shadows` gave.
    online
        Use networks that had the cell, too.

    Returns
    -------
    Higher for cells more likely inside; NaN for cells without the networks that it takes.

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> inside = np.array([[True, False], [False, True]] * 4)
    >>> shadows = np.where(inside, 3.0, 1.0) + np.linspace(-0.1, 0.1, 8)[:, None]
    >>> score = si.privacy.attacks.likelihood_ratio(np.array([3.0, 1.0]), shadows, inside)
    >>> bool(score[0] > 0 > score[1])
    True
    """
    without_mean, squares, freedom = _moments(shadows, ~inside)
    if not online:
        return (target - without_mean) / _deviation(squares, freedom)
    with_mean, more_squares, more_freedom = _moments(shadows, inside)
    deviation = _deviation(squares + more_squares, freedom + more_freedom)
    return norm.logpdf(target, with_mean, deviation) - norm.logpdf(target, without_mean, deviation)


def by_group(scores: np.ndarray, member: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean score of each donor, and whether any of the cells was inside.

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> score, member = si.privacy.attacks.by_group(
    ...     np.array([1.0, 3.0, 0.0]), np.array([True, True, False]), np.array(["a", "a", "b"])
    ... )
    >>> score.tolist(), member.tolist()
    ([2.0, 0.0], [True, False])
    """
    table = pd.DataFrame({"score": scores, "member": member, "group": groups}).groupby("group", sort=True)
    return table["score"].mean().to_numpy(), table["member"].any().to_numpy()


def membership_scores(scores: np.ndarray, member: np.ndarray, *, rng: int = 0) -> pd.DataFrame:
    """Rate a membership attack, with intervals.

    Parameters
    ----------
    scores
        Higher where the attacker takes a cell for inside; cells with NaN are left out.
    member
        Whether it was.
    rng
        Seed of the halves and of the bootstrap.

    Returns
    -------
    Data frame with the rows ``auc`` (baseline 0.5, bootstrap interval), ``advantage`` (true less false positive rate at
    the threshold that was best on one half, on the other half; baseline 0), ``tpr_at_1%`` and ``tpr_at_0.1%``
    (baseline: the false positive rate; exact binomial interval, wider where redrawn outsiders set another threshold)
    and the columns ``value``, ``baseline``, ``low``, ``high`` (95 %). With fewer outsiders than 100 or 1000 the last
    two cannot be estimated and are NaN.

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> table = si.privacy.attacks.membership_scores(np.arange(400.0), np.arange(400) >= 200)
    >>> float(table.loc["auc", "value"])
    1.0
    """
    scores, member = np.asarray(scores, dtype=np.float64), np.asarray(member, dtype=bool)
    usable = ~np.isnan(scores)
    scores, member = scores[usable], member[usable]
    if member.all() or not member.any():
        msg = f"Expected cells inside and outside, found {int(member.sum())} inside of {len(member)}."
        raise ValueError(msg)
    generator = np.random.default_rng(rng)
    auc = float(roc_auc_score(member, scores))
    inside, outside = scores[member], scores[~member]
    drawn = [_auc(generator.choice(inside, len(inside)), generator.choice(outside, len(outside))) for _ in range(200)]
    rows = {"auc": (auc, 0.5, *np.quantile(drawn, [0.025, 0.975])), "advantage": _advantage(scores, member, generator)}
    for rate, name in ((0.01, "tpr_at_1%"), (0.001, "tpr_at_0.1%")):
        rows[name] = (np.nan, rate, np.nan, np.nan)
        if len(outside) * rate >= 1:
            hits = int((inside > _threshold(outside, rate)).sum())
            interval = binomtest(hits, len(inside)).proportion_ci(0.95, method="exact")
            thresholds = [_threshold(generator.choice(outside, len(outside)), rate) for _ in range(200)]
            redrawn = np.quantile([(inside > threshold).mean() for threshold in thresholds], [0.025, 0.975])
            rows[name] = (
                hits / len(inside),
                rate,
                min(interval.low, float(redrawn[0])),
                max(interval.high, float(redrawn[1])),
            )
    return pd.DataFrame(rows, index=["value", "baseline", "low", "high"]).T.astype(float)


def _threshold(outside: np.ndarray, rate: float) -> float:
    """Score above which lies at most this share of the outsiders."""
    return float(np.sort(outside)[-int(len(outside) * rate)])


def _advantage(scores: np.ndarray, member: np.ndarray, generator: np.random.Generator) -> tuple[float, ...]:
    half = generator.random(len(scores)) < 0.5
    half[np.flatnonzero(member)[0]] = half[np.flatnonzero(~member)[0]] = True
    half[np.flatnonzero(member)[-1]] = half[np.flatnonzero(~member)[-1]] = False
    thresholds = np.quantile(scores[half], np.linspace(0, 1, 101))
    above = scores[half][None] > thresholds[:, None]
    gain = above[:, member[half]].mean(1) - above[:, ~member[half]].mean(1)
    rest = scores[~half] > thresholds[gain.argmax()]
    inside, outside = rest[member[~half]], rest[~member[~half]]
    value = inside.mean() - outside.mean()
    error = 1.96 * np.sqrt(inside.var() / len(inside) + outside.var() / len(outside))
    return float(value), 0.0, float(value - error), float(value + error)


def _auc(inside: np.ndarray, outside: np.ndarray) -> float:
    order = np.sort(outside)
    below = np.searchsorted(order, inside, "left") + np.searchsorted(order, inside, "right")
    return float(below.mean() / (2 * len(outside)))


def _moments(values: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, float, int]:
    """Mean of each column over the chosen rows, and squares and degrees of freedom of all columns together."""
    n = chosen.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(chosen, values, 0).sum(0) / n
    squares = np.where(chosen, np.square(values - np.nan_to_num(mean)), 0).sum()
    return mean, float(squares), int(np.maximum(n - 1, 0).sum())


def _deviation(squares: float, freedom: int) -> float:
    return float(np.sqrt(squares / freedom)) + 1e-9 if freedom else 1.0


def _trained(
    network: nn.Module, x: Tensor, y: Tensor, n_epochs: int, batch_size: int, lr: float, decay: float, rng: int
) -> nn.Module:
    shadow = copy.deepcopy(network)
    order = torch.Generator().manual_seed(rng)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng)
        for module in shadow.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()  # type: ignore[operator]
        optimizer = torch.optim.AdamW(shadow.parameters(), lr, weight_decay=decay, fused=True)
        shadow.train()
        for _ in range(n_epochs):
            for rows in torch.randperm(len(x), generator=order).split(batch_size):
                optimizer.zero_grad()
                F.cross_entropy(shadow(x[rows]), y[rows]).backward()
                optimizer.step()
    return shadow.eval()
