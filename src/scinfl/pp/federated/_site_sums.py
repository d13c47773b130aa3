"""Sums that sites take over their own rows, their mean over all sites, and a record of what left each site."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scinfl import _names
from scinfl._checks import complete_column, first_of, owns_data, told_apart, values_of, whole_number
from scinfl.federation import Payload, Protection, State, Update, means_of
from scinfl.federation.rounds import are_elsewhere
from scinfl.privacy import Key, PayloadLinter
from scinfl.privacy.aggregation import default_protections

logger = logging.getLogger(__name__)

Matrix: TypeAlias = Any
"""Dense array or compressed sparse rows, cells × features."""

T = TypeVar("T")

_ROWS = 4096
_LARGEST = 2.0**40  # the widest bound of a keyed sum
_PAYLOAD = "payload"
_LINTER = PayloadLinter(allow=["coordinates"])  # of prototypes among components, not of spots or of the key


class SiteSums:
    """The sites of one AnnData, which agree on means and keep a record of what they sent.

    Parameters
    ----------
    adata
        Annotated data with the rows of all sites.
    function
        Name of the function that asks, for the record.
    site_key
        Column of ``adata.obs`` with the site of each row.
    rows
        Rows of each site, in place of such a column; a site without rows adds zeros.
    key
        Secret key of the sites; ``None`` sends plain sums.
    min_cells
        Least number of rows of a site.
    protections
        What guards the sums in place of keyed ones.
    of
        What the rows are of, where sums over other rows are taken as well; part of the purpose of each sum.
    payload
        Record of several such sums; one of its own by default.

    Raises
    ------
    KeyError
        If there is no such column.
    ValueError
        If a protection does not sum, ``adata`` is a view or backed, a row has no site, or a site has too few rows.
    """

    def __init__(
        self,
        adata: AnnData,
        function: str,
        *,
        site_key: str = "",
        rows: Mapping[str, np.ndarray] | None = None,
        key: Key | None,
        min_cells: int = 1,
        protections: Sequence[Protection] | None = None,
        of: str | None = None,
        payload: Payload | None = None,
    ) -> None:
        owns_data(adata, in_memory=True)
        self.rows = rows_by_site(adata, site_key, min_cells) if rows is None else dict(rows)
        self.protections = _guards(protections, key, len(self.rows))
        self._adata, self._function = adata, function
        self._n_cells: int | None = None
        self._agreed: str | None = None  # purpose that the total number of cells was agreed on for
        self._n_rounds: dict[str, int] = {}
        self._prefix = "" if of is None else f"{of}: "
        self.payload = sums_payload() if payload is None else payload

    @property
    def n_cells(self) -> int:
        """Cells of all sites, which they agree on with the first sum."""
        return self._n_cells or run(self.mean("cells", {site: {} for site in self.rows}))[1]

    def mean(self, purpose: str, sums: Mapping[str, State]) -> Computation[tuple[State, int]]:
        """Mean over the cells of all sites of what each site summed over its own, and the number of cells."""
        (pooled,) = yield [_Asked(self, self._prefix + purpose, sums)]
        self._n_cells = self._n_cells or round(pooled.weight)
        return pooled.state, round(pooled.weight)

    def updates(self, purpose: str, sums: Mapping[str, State]) -> tuple[list[Update], bool | str]:
        """What the sites send, and whether they have to agree on their number of cells."""
        number = self._n_rounds[purpose] = self._n_rounds.get(purpose, 0) + 1
        updates = []
        for site, state in sums.items():
            n = len(self.rows[site])
            means = {name: np.asarray(array, np.float64) / max(n, 1) for name, array in state.items()}
            self._check_size(site, means)
            updates.append(Update(site, number, means, n, float(n), purpose=purpose))
        agree = number == 1 and (self._agreed or True)
        self._agreed = self._agreed or purpose
        return updates, agree

    def keep(self) -> None:
        """Write what left each site to ``.uns["infl"]["payload"]`` and to the log."""
        table = self.payload.table
        table.index = table.index.astype(str)
        self._adata.uns.setdefault(_names.UNS, {}).setdefault(_PAYLOAD, {})[self._function] = table
        log_sent(self._function, table)

    def _check_size(self, site: str, means: State) -> None:
        limit = _LARGEST if self.protections else np.finfo(np.float64).max
        largest = max((float(np.abs(array).max(initial=0)) for array in means.values()), default=0.0)
        if not largest <= limit:
            msg = (
                f"Expected means of up to {limit:g} to sum over sites, found {largest:g} at site '{site}'. "
                "Take the logarithm of the values, or divide all of them by a constant."
            )
            raise ValueError(msg)


class _Asked(NamedTuple):
    """What a computation needs to go on: the mean of these sums of its sites."""

    sites: SiteSums
    purpose: str
    sums: Mapping[str, State]


Computation: TypeAlias = Generator[list[_Asked], list[Update], T]
"""Asks for means, a list at a time, goes on with these, and returns a result."""


def run(computation: Computation[T]) -> T:
    """Result of a computation, for which the sites exchange sums."""
    means: list[Update] | None = None
    while True:
        try:
            asked = next(computation) if means is None else computation.send(means)
        except StopIteration as end:
            return end.value
        means = _exchange(asked)


def in_step(*computations: Computation[Any]) -> Computation[list[Any]]:
    """Results of computations that do not wait for each other: each exchange serves all of them."""
    results: list[Any] = [None] * len(computations)
    asked: dict[int, list[_Asked]] = {}

    def go_on(number: int, means: list[Update] | None) -> None:
        try:
            asked[number] = next(computations[number]) if means is None else computations[number].send(means)
        except StopIteration as end:
            results[number] = end.value

    for number in range(len(computations)):
        go_on(number, None)
    while asked:
        turn, asked = asked, {}
        means = yield [one for own in turn.values() for one in own]
        for number, own in turn.items():
            go_on(number, means[: len(own)])
            means = means[len(own) :]
    return results


def _exchange(asked: Sequence[_Asked]) -> list[Update]:
    """Means of all that is asked for; those with the same protections travel together."""
    means: dict[int, Update] = {}
    channels: dict[tuple[int, int], list[int]] = {}
    for number, one in enumerate(asked):
        channels.setdefault((id(one.sites.protections), id(one.sites.payload)), []).append(number)
    for numbers in channels.values():
        sites = asked[numbers[0]].sites
        groups, agree = zip(*(asked[number].sites.updates(*asked[number][1:]) for number in numbers), strict=True)
        found = means_of(groups, sites.protections, payload=sites.payload, agree=agree)
        means |= zip(numbers, found, strict=True)
    return [means[number] for number in range(len(asked))]


def sums_payload() -> Payload:
    """Record of what leaves with sums."""
    return Payload(_LINTER.check)


def log_sent(function: str, table: pd.DataFrame) -> None:
    """Write what left each site to the log."""
    for site, sent in table.groupby("site", sort=False):
        arrays = ", ".join(
            f"{array} ({shape}, {'masked ' if masked else ''}{dtype}) × {rounds}"
            for array, shape, dtype, rounds, masked in sent[["array", "shape", "type", "rounds", "masked"]].to_numpy()
        )
        logger.info("%s: site '%s' sent %s: %d bytes.", function, site, arrays, sent["bytes"].sum())


def _guards(protections: Sequence[Protection] | None, key: Key | None, n_sites: int) -> Sequence[Protection]:
    """What guards the sums of so many sites; a single one sends nothing, unless the others are elsewhere."""
    if protections is None:
        return default_protections(key, n_sites)
    for protection in protections:
        if not (protection.sums or protection.watches):
            name = type(protection).__name__
            msg = (
                f"Expected protections that sum, found {name}: what it does to training does nothing for sums over "
                "cells, which would leave as they are. Use a `KeyedSum` or a `PairwiseSum`."
            )
            raise ValueError(msg)
    return protections if n_sites > 1 or are_elsewhere(protections) else ()


def rows_by_site(adata: AnnData, site_key: str, min_cells: int) -> dict[str, np.ndarray]:
    """Rows of each site, in the order of the categories or of the names."""
    whole_number("min_cells", min_cells, 1)
    column = complete_column(adata, site_key, "site_key", "a site for every row")
    column = told_apart(column, f"adata.obs['{site_key}']").astype("category")
    codes = column.cat.codes.to_numpy()
    rows = {str(site): np.flatnonzero(codes == code) for code, site in enumerate(column.cat.categories)}
    if not rows:
        msg = f"Expected adata.obs['{site_key}'] to name at least 1 site, found an AnnData without rows."
        raise ValueError(msg)
    for site, own in rows.items():
        if len(own) < min_cells:
            cure = f"Drop the site with `adata[adata.obs['{site_key}'] != '{site}'].copy()`, or lower `min_cells`"
            if not len(own):
                cure = f"Drop it with `adata.obs['{site_key}'].cat.remove_unused_categories()`"
            msg = f"Expected at least {min_cells} cells at every site, found {len(own)} at site '{site}'. {cure}."
            raise ValueError(msg)
    return rows


def matrix_of(adata: AnnData, layer: str | None, rows: Mapping[str, np.ndarray]) -> Matrix:
    """X or a layer as dense or compressed sparse rows, finite at every site."""
    matrix = values_of(adata, layer)
    check_finite(matrix, list(map(str, adata.var_names)), rows)
    return matrix


def check_finite(matrix: Matrix, names: list[str], rows: Mapping[str, np.ndarray]) -> None:
    """Refuse missing and infinite values; names the site and the features where they are."""
    if np.isfinite(matrix.data if sparse.issparse(matrix) else matrix).all():
        return
    for site, own in rows.items():
        block = matrix[own]
        if sparse.issparse(block):
            odd = np.bincount(block.indices[~np.isfinite(block.data)], minlength=block.shape[1])
        else:
            odd = (~np.isfinite(block)).sum(0)
        if odd.any():
            where = first_of([names[int(column)] for column in np.flatnonzero(odd)])
            msg = (
                f"Expected finite values, found {int(odd.sum())} that are missing (NaN) or infinite at site '{site}': "
                f"{where}. Drop these features at all sites, or impute them."
            )
            raise ValueError(msg)


def blocks(matrix: Matrix, rows: np.ndarray, columns: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, Matrix]]:
    """Rows of a site in blocks of float64, with their numbers, so that no more than a block is ever copied."""
    for start in range(0, len(rows), _ROWS):
        own = rows[start : start + _ROWS]
        block = matrix[own]
        if columns is not None:
            block = block[:, columns]
        yield own, block.astype(np.float64)


def column_sums(block: Matrix) -> np.ndarray:
    """Sum of each feature (float64)."""
    return np.asarray(block.sum(0), np.float64).ravel()
