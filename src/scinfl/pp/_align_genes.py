"""The same genes in the same order at all sites."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scinfl import _names
from scinfl._checks import first_of, indexable, layers_of, one_of, owns_data, unique, unmasked

logger = logging.getLogger(__name__)


def align_genes(
    adata: AnnData, others: Sequence[AnnData], *, how: Literal["intersection", "union"] = "intersection"
) -> None:
    """Give the AnnData of several sites the same genes (or any features) in the same order, in place.

    Sites exchange the names of their genes for this, and nothing else.

    Changes every AnnData as follows:

    ``.var_names``, ``.X``, ``.layers``, ``.var``, ``.varm``
        Genes of all sites (``"intersection"``) in the order of ``adata``, or of any site (``"union"``), those that
        ``adata`` lacks after the others. Genes that were not measured become 0 in X, layers and ``.varm``, and missing
        in ``.var`` (``False`` in columns of booleans). ``.raw`` is left alone.
    ``.uns["infl"]["align_genes"]``
        ``how``, and the names of genes ``dropped`` and ``filled`` with 0.

    Parameters
    ----------
    adata
        Annotated data of the first site, not a view.
    others
        Annotated data of the other sites.
    how
        ``"intersection"`` or ``"union"``. A gene that is 0 throughout a site because nobody measured it there looks
        like a difference between sites: prefer the intersection where it suffices.

    Raises
    ------
    ValueError
        If an AnnData is a view, names a gene twice or comes twice, there is no gene in common, or pairs of genes
        (``.varp``) would have to be filled.

    Examples
    --------
    >>> import scinfl as si
    >>> one = si.datasets.pbmc()
    >>> other = one[:, 100:][:, ::-1].copy()
    >>> si.pp.align_genes(one, [other])
    >>> one.n_vars, bool((one.var_names == other.var_names).all())
    (665, True)
    """
    one_of("how", how, ["intersection", "union"])
    if isinstance(others, AnnData):
        msg = "Expected `others` to be a list of AnnData, found one AnnData. Pass `[other]`."
        raise TypeError(msg)
    every = [adata, *others]
    _check(every)
    names = adata.var_names
    for other in others:
        if how == "intersection":
            names = names[names.isin(other.var_names)]
        else:
            names = names.append(other.var_names[~other.var_names.isin(names)])
    filled = [names[~names.isin(one.var_names)] for one in every]
    for number, (one, missing) in enumerate(zip(every, filled, strict=True)):
        if len(missing) and len(one.varp):
            msg = (
                f"Expected no pairs of genes in `.varp` to fill, found {list(one.varp)} in {_which(number)}. Delete "
                "them with `del adata.varp[name]`, or use how='intersection'."
            )
            raise ValueError(msg)
    for number, (one, missing) in enumerate(zip(every, filled, strict=True)):
        dropped = one.var_names[~one.var_names.isin(names)]
        if not one.var_names.equals(names):
            _replace(one, names)
        record = {"how": how, "dropped": np.array(dropped, str), "filled": np.array(missing, str)}
        one.uns.setdefault(_names.UNS, {})["align_genes"] = record
        logger.info("align_genes: %s dropped %d and filled %d genes.", _which(number), len(dropped), len(missing))


def _which(number: int) -> str:
    return "`adata`" if number == 0 else f"`others[{number - 1}]`"


def _check(every: Sequence[AnnData]) -> None:
    if len({id(one) for one in every}) < len(every):
        msg = "Expected different AnnData, found the same one twice in `adata` and `others`. Pass one for each site."
        raise ValueError(msg)
    for number, one in enumerate(every):
        owns_data(one, in_memory=True, where=f" in {_which(number)}")
        cure = "Sum or drop them, or name them apart with `adata.var_names_make_unique()` at all sites."
        unique(one.var_names, f"genes in {_which(number)}", cure)
    shared = every[0].var_names
    for number, one in enumerate(every):
        shared = shared[shared.isin(one.var_names)]
        if not len(shared):
            msg = (
                f"Expected genes in common, found none up to {_which(number)}: `adata` begins with "
                f"{first_of(list(every[0].var_names), 2)}, {_which(number)} with {first_of(list(one.var_names), 2)}. "
                "Use the same kind of names (symbols or identifiers) at all sites."
            )
            raise ValueError(msg)


def _replace(adata: AnnData, names: pd.Index) -> None:
    indexable(adata, inplace=True)
    positions = adata.var_names.get_indexer(names)
    if (positions >= 0).all():
        new = adata[:, positions].copy()
    else:
        new = AnnData(
            None if adata.X is None else _columns(adata.X, positions),
            obs=adata.obs,
            var=_reindexed(adata.var, names),
            uns=adata.uns,
            obsm=dict(adata.obsm),
            varm={name: _columns(values.T, positions).T for name, values in adata.varm.items()},
            obsp=dict(adata.obsp),
            layers={name: _columns(values, positions) for name, values in layers_of(adata).items()},
        )
        new.raw = adata.raw.to_adata() if adata.raw is not None else None
    # there is no public way to change the genes of an AnnData in place; scanpy's filters go this way too
    adata._init_as_actual(new)


def _columns(matrix: Any, positions: np.ndarray) -> Any:
    """Columns in a new order, 0 where the position is -1."""
    known = np.flatnonzero(positions >= 0)
    if sparse.issparse(matrix):
        shape = (matrix.shape[1], len(positions))
        selector = sparse.csr_matrix((np.ones(len(known), matrix.dtype), (positions[known], known)), shape=shape)
        return (matrix @ selector).asformat(matrix.format)
    matrix = unmasked(matrix)
    columns = np.zeros((matrix.shape[0], len(positions)), matrix.dtype)
    columns[:, known] = matrix[:, positions[known]]
    return columns


def _reindexed(var: pd.DataFrame, names: pd.Index) -> pd.DataFrame:
    """Rows in a new order; new rows are missing, or ``False``, so that a file can hold every column."""
    new = pd.DataFrame(index=names)
    for name in var:
        is_bool = pd.api.types.is_bool_dtype(var[name])
        new[name] = var[name].reindex(names, fill_value=False) if is_bool else var[name].reindex(names)
    return new
