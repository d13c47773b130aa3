"""What an attacker learns of the order of inputs or names from the Gram matrix of a stolen layer or table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from scinfl._audit._attack_target import AttackTarget
from scinfl._audit._findings import STEALING, finding
from scinfl.model.base import rekeyed
from scinfl.nn import CoordinateLinear, CoordinateTable, new_model_id
from scinfl.privacy import Key, attacks

MOST_COLUMNS = 1000
"""Whose order is searched for; evidence takes the square of them."""
_N_RANDOM = 100
Stolen = tuple[str, str, str, np.ndarray]
"""Adversary, form of the uploads, what is aligned, and the weights of it."""


@dataclass(frozen=True)
class AlignmentEffort:
    """How many networks of one's own, and how long a search."""

    n_references: int
    n_reference_steps: int
    n_restarts: int
    n_steps: int


def align(
    target: AttackTarget,
    name: str,
    x: Tensor,
    y: Tensor,
    effort: AlignmentEffort,
    *,
    reader: nn.Module | None = None,
    loss: attacks.Loss = F.cross_entropy,
    words: str = "",
    seen: Iterable[Stolen] = (),
) -> list[dict[str, Any]]:
    """Align a layer or table, and differences of versions that should hide the same, with networks of one's own.

    A search may fail where another one would not. So the true order is scored, too: where it scores higher than all
    that the search finds, the order can be known, whether or not this search found it.

    The values of a table have a secret sign each, so that of a table sizes of values are aligned.

    Parameters
    ----------
    target
        Model under attack.
    name
        Layer or table of its network.
    x, y, loss
        Samples of the attacker, what is known of them, and what networks of one's own are trained by.
    effort
        How much of it.
    reader
        Network that reads ``x``, with the network of the target as its ``network``; that itself by default.
    words
        Names the layer in the findings.
    seen
        What travelled of it.
    """
    layer: Any = target.network.get_submodule(name)
    if target.key is None or not isinstance(layer, CoordinateLinear | CoordinateTable):
        return []
    is_table = isinstance(layer, CoordinateTable)
    n = layer.out_features if is_table else layer.in_features
    if not 1 < n <= MOST_COLUMNS:
        return []
    form = _sizes if is_table else np.asarray
    order, signs = target.true_order(name), np.ones(n)
    if not is_table:
        signs = np.where(target.key.coordinates(f"{name}/input signs", (n,)) < 0, -1.0, 1.0)
    references = attacks.train_references(
        target.network if reader is None else reader,
        name if reader is None else f"network.{name}",
        x,
        y,
        n_references=effort.n_references,
        loss=loss,
        n_steps=effort.n_reference_steps,
        rng=target.rng,
    )
    generator, rows = np.random.default_rng(target.rng), []
    for adversary, uploads, what, weight in [*_stolen(target, name, is_table=is_table), *seen]:
        evidence = attacks.GramEvidence(form(weight), [form(own) for own in references])
        found = attacks.align_gram(evidence, n_restarts=effort.n_restarts, n_steps=effort.n_steps, rng=target.rng)
        random = [evidence.score(generator.permutation(n), generator.choice([-1.0, 1.0], n)) for _ in range(_N_RANDOM)]
        left = (evidence.score(order, signs) - np.mean(random)) / (found.score - np.mean(random))
        setting = f"{words}, {what}" if words else what
        row = partial(finding, "the key", adversary, "Gram alignment", uploads=uploads, setting=setting)
        share, luck = float((found.order == order).mean()), max(0.05, 5 / n)  # as many may fall into place by chance
        rows.append(row("share of the order", share, 1 / n, baseline_name="chance", margin=luck))
        rows.append(row("score of the true order", float(left), 1.0, baseline_name="best of the search", margin=0.0))
    return rows


def _stolen(target: AttackTarget, name: str, *, is_table: bool) -> Iterator[Stolen]:
    """Stored weights, and differences of two versions; of a table rows become columns."""
    assert target.key is not None  # noqa: S101
    weight = f"{name}.weight"
    stored = target.network.get_parameter(weight).detach()
    versions = {"final weights": stored}
    if target.hides_updates:
        for key, setting in ((target.key, "two saved versions"), (Key.generate(), "before and after `rekey`")):
            state = rekeyed(target.network, target.network.state_dict(), target.key, key, model_id=new_model_id())
            versions[setting] = state[weight] - stored
    for setting, version in versions.items():
        yield STEALING, "", setting, (version.T if is_table else version).numpy()


def _sizes(columns: np.ndarray) -> np.ndarray:
    """Sizes of values, beyond those that are usual in their row."""
    sizes = np.abs(columns)
    return sizes - sizes.mean(1, keepdims=True)
