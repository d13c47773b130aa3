"""What leaves each site: a list to read before training, and to keep afterwards."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from scinfl.federation._protection import Protection
from scinfl.federation._update import Update

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["site", "purpose", "array", "shape", "type", "rounds", "bytes", "masked", "norm"]
_WEIGHT = "weight"


class Payload:
    """One record per site, purpose and array, of all that leaves the sites of a run.

    ``bytes`` are those of all rounds together; a round that had to be sent again counts once. ``masked`` means that the
    server cannot read an array (a keyed or pairwise sum, a homomorphic one); what it can read has a ``norm``, the
    largest Euclidean one of all rounds. In addition to arrays a site sends its weight and its mean metrics.

    Parameters
    ----------
    inspect
        Looks at every update at its site, before anything protects it, and raises if it holds what must not leave, for
        example :meth:`scinfl.privacy.PayloadLinter.check`.
    planned
        List what would leave instead: nothing is encoded or combined, and norms are those before protections.

    Examples
    --------
    >>> import numpy as np
    >>> from scinfl.federation import Payload, Update, mean_of
    >>> updates = [Update(site, 0, {"mean": np.array([3.0, 4.0])}, 10, 10.0, purpose="means") for site in "ab"]
    >>> payload = Payload()
    >>> _ = mean_of(updates, payload=payload)
    >>> payload.table[["site", "array", "shape", "bytes", "masked", "norm"]]
      site   array shape  bytes  masked  norm
    0    a    mean     2     16   False   5.0
    1    a  weight     1      8   False  10.0
    2    b    mean     2     16   False   5.0
    3    b  weight     1      8   False  10.0
    """

    def __init__(self, inspect: Callable[[Update], None] | None = None, *, planned: bool = False) -> None:
        self.planned = planned
        self._rows: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._inspect = inspect

    @contextmanager
    def inspected(self, inspect: Callable[[Update], None]) -> Iterator[None]:
        """Let updates be looked at by another function, which may know secrets, for as long as this lasts.

        Parameters
        ----------
        inspect
            In place of the usual one.
        """
        usual, self._inspect = self._inspect, inspect
        try:
            yield
        finally:
            self._inspect = usual

    def check(self, updates: Sequence[Update]) -> None:
        """Look at updates before they are encoded.

        Parameters
        ----------
        updates
            As the sites made them.
        """
        if self._inspect is not None:
            for update in updates:
                self._inspect(update)

    def add(self, updates: Sequence[Update], encoded: Sequence[Update]) -> None:
        """Record what left in one sum.

        Parameters
        ----------
        updates
            Before they were masked.
        encoded
            As they were sent.
        """
        for update, sent in zip(updates, encoded, strict=True):
            masked = sent.state.keys() != update.state.keys()
            kinds = ", ".join(sorted({str(array.dtype) for array in sent.state.values()}))
            self._add(update, sent, kinds if masked else None, sent.n_bytes, 1)

    def plan(self, updates: Sequence[Update], protections: Sequence[Protection], n_rounds: int = 1) -> None:
        """List what would leave in so many sums.

        Parameters
        ----------
        updates
            As the sites made them.
        protections
            What would guard them.
        n_rounds
            How often, at most.
        """
        summing = next((protection for protection in protections if protection.sums), None)
        for update in updates:
            n_bytes = (summing or Protection()).bytes_of(_n_values(update))
            self._add(update, update, None if summing is None else "masked", n_bytes, n_rounds)

    def add_totals(self, protections: Sequence[Protection], purpose: str, weights: Mapping[str, float]) -> None:
        """Record the weights that sites hide in a sum of their own to agree on the total.

        Parameters
        ----------
        protections
            What guards the updates.
        purpose
            What the weights are for.
        weights
            Weight of every site.
        """
        for protection in protections:
            if protection.sums:
                for site in weights:
                    self._put(site, f"total of {purpose}", _WEIGHT, (), "masked", 1, protection.bytes_of(1), math.nan)

    def extend(self, table: pd.DataFrame) -> None:
        """Take over the records of sums that were made elsewhere, for example by ``scinfl.pp``.

        Parameters
        ----------
        table
            What :attr:`table` of another payload gave.
        """
        for record in table[COLUMNS].to_dict("records"):
            self._rows[len(self._rows), record["site"], record["purpose"], record["array"]] = record

    @property
    def table(self) -> pd.DataFrame:
        """All records, as they came."""
        import pandas as pd

        return pd.DataFrame(list(self._rows.values()), columns=COLUMNS)

    def records(self) -> list[dict[str, Any]]:
        """All records as json can hold them, for an audit log."""
        return [{**row, "norm": None if math.isnan(row["norm"]) else row["norm"]} for row in self._rows.values()]

    def _add(self, update: Update, sent: Update, masked: str | None, n_bytes: int, n_rounds: int) -> None:
        """Record one update; the bytes of a masked one are shared among its values."""
        values: dict[str, np.ndarray] = dict(sent.state if masked is None else update.state)
        scalars = {_WEIGHT: update.weight, **{f"metric {name}": value for name, value in update.metrics.items()}}
        values |= {name: np.asarray(value, np.float64) for name, value in scalars.items()}
        total, done, counted = _n_values(update), 0, 0
        for name, array in values.items():
            done += array.size
            own = array.nbytes if masked is None else n_bytes * done // total - counted
            counted += own
            norm = float(np.linalg.norm(np.ravel(array))) if masked is None else math.nan
            kind = str(array.dtype) if masked is None else masked
            self._put(update.site, update.purpose, name, array.shape, kind, n_rounds, own * n_rounds, norm, masked)

    def _put(
        self,
        site: str,
        purpose: str,
        array: str,
        shape: tuple[int, ...],
        kind: str,
        n_rounds: int,
        n_bytes: int,
        norm: float,
        masked: str | None = "masked",
    ) -> None:
        row = self._rows.setdefault(
            (site, purpose, array, shape),
            {
                "site": site,
                "purpose": purpose,
                "array": array,
                "shape": " × ".join(map(str, shape)) or "1",
                "type": kind,
                "rounds": 0,
                "bytes": 0,
                "masked": masked is not None,
                "norm": norm,
            },
        )
        row["rounds"] += n_rounds
        row["bytes"] += n_bytes
        row["norm"] = max(row["norm"], norm)

    def __repr__(self) -> str:
        return f"Payload({len(self._rows)} records, planned={self.planned})"


def _n_values(update: Update) -> int:
    """Numbers in an update: arrays, weight and metrics."""
    return sum(array.size for array in update.state.values()) + 1 + len(update.metrics)
