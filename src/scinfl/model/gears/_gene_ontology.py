"""How similar genes are by what is known about them: Jaccard indices of their ontology terms."""

from __future__ import annotations

import csv
import gzip
import os
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd
from scipy import sparse

from scinfl._checks import first_of, number_between, whole_number

COLUMNS = ("source", "target", "importance")
_GENE_HEADERS = ("symbol", "gene", "gene_symbol", "gene_name", "hgnc_symbol")
_TERM_HEADERS = ("go_id", "term", "go_term", "term_id", "go")
_ENDINGS = ".csv, .csv.gz, .tsv, .tsv.gz, .gmt or .gmt.gz"
_BLOCK_ENTRIES = 20_000_000  # shared terms that are held at a time, about 0.4 GB


def gene_similarity(
    source: pd.DataFrame | Mapping[str, Iterable[str]] | str | os.PathLike[str],
    genes: Collection[str] | None = None,
    *,
    min_similarity: float = 0.1,
) -> pd.DataFrame:
    """Pairs of genes that share terms of an ontology: ``source``, ``target`` and ``importance``.

    The importance of a pair is the Jaccard index |A ∩ B| / |A ∪ B| of the sets of terms A and B of its genes. Pairs
    above ``min_similarity`` are listed in both directions, and each gene that has terms with itself (1.0), as Roohani
    et al. (Nature Biotechnology 42:927, 2024) do for GEARS, sorted by target, then by source. The counts of shared
    terms come from products of the sparse genes × terms matrix, so the result is exact.

    ``source`` holds the terms of each gene: a mapping, or a path to a ``.tsv`` (a gene and a term a row; with a header,
    columns such as ``symbol`` and ``go_id`` are found among others) or a ``.gmt`` (term, description, genes …). Or it
    holds the similarities themselves, which are checked and kept in their order: a data frame, or a path to a ``.csv``;
    of a pair that occurs twice the larger importance counts. Files may be gzipped. Pairs of other genes than ``genes``
    are left out.
    """
    number_between("min_similarity", min_similarity, 0, 1)
    wanted = None if genes is None else set(map(str, genes))
    if isinstance(source, Mapping):
        return _jaccard(_pairs(source), wanted, min_similarity)
    if isinstance(source, pd.DataFrame):
        return _selected(_checked(source, "`gene_ontology`"), wanted)
    if not isinstance(source, str | os.PathLike):
        msg = (
            f"Expected `gene_ontology` to be a data frame, a mapping of gene to terms, or a path, found "
            f"{type(source).__name__}. Pass one of these."
        )
        raise TypeError(msg)
    path = Path(source)
    ending = _ending(path)
    if not path.is_file():
        msg = f"Expected a gene ontology at '{path}', found no file. Pass its path."
        raise FileNotFoundError(msg)
    if ending == ".csv":
        return _selected(_checked(_read_similarities(path), f"'{path}'"), wanted)
    return _jaccard(_read_terms(path) if ending == ".tsv" else _read_gmt(path), wanted, min_similarity)


def strongest_neighbours(table: pd.DataFrame, n_neighbours: int = 20) -> pd.DataFrame:
    """Rows of the most similar sources of each target, sorted by target, then by falling importance.

    A target is a source of its own in most tables, so ``n_neighbours + 1`` rows are kept of each. Rows of one
    importance keep their order in the table, as by ``table.groupby("target")`` with ``nlargest``.
    """
    whole_number("n_neighbours", n_neighbours, 1)
    table = _checked(table, "`table`")
    targets = pd.factorize(table["target"], sort=True)[0]
    order = np.lexsort((-table["importance"].to_numpy(), targets))  # stable
    sizes = np.bincount(targets)
    rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return table.iloc[order[rank <= n_neighbours]].reset_index(drop=True)


def _pairs(terms: Mapping[str, Iterable[str]]) -> pd.DataFrame:
    for gene, its_terms in terms.items():
        if isinstance(its_terms, str):
            msg = (
                f"Expected several terms for each gene, found the text {its_terms!r} for {gene!r}. "
                f"Pass a list or a set of terms, such as [{its_terms!r}]."
            )
            raise TypeError(msg)
    pairs = [(str(gene), str(term)) for gene, its_terms in terms.items() for term in its_terms]
    return pd.DataFrame(pairs, columns=["gene", "term"], dtype=object)


def _jaccard(pairs: pd.DataFrame, wanted: set[str] | None, min_similarity: float) -> pd.DataFrame:
    """Similar pairs among genes, block by block of targets so that memory stays bounded."""
    known = pairs["gene"]
    if wanted is not None:
        pairs = pairs[known.isin(wanted)]
    if pairs.empty:
        asked = "genes with terms" if wanted is None else f"terms for the genes {first_of(sorted(wanted))}"
        msg = (
            f"Expected {asked}, found none; the source knows {first_of(known.unique().tolist()) or 'no genes'}. "
            "Use gene names of the same kind."
        )
        raise ValueError(msg)
    incidence, names = _incidence(pairs)
    n_terms = np.diff(incidence.indptr)
    by_term = incidence.T.tocsr()
    found = [
        _similar(incidence[block], by_term, n_terms, start, min_similarity)
        for start, block in _blocks(incidence, n_terms)
    ]
    targets, sources, importance = (np.concatenate(part) for part in zip(*found, strict=True))
    table = _table(names[sources], names[targets], importance)
    return _not_empty(table, f"pairs more similar than {min_similarity}")


def _incidence(pairs: pd.DataFrame) -> tuple[sparse.csr_array, np.ndarray]:
    """Genes × terms matrix of ones, and the names of its rows, sorted."""
    rows, names = pd.factorize(pairs["gene"], sort=True)
    columns = pd.factorize(pairs["term"])[0]
    matrix = sparse.csr_array((np.ones(len(rows), np.int32), (rows, columns)))
    matrix.data[:] = 1  # a pair that is listed twice counts once
    return matrix, np.asarray(names, dtype=object)


def _blocks(incidence: sparse.csr_array, n_terms: np.ndarray) -> Iterator[tuple[int, slice]]:
    """Runs of rows whose shared terms fit into memory together."""
    genes_of_term = np.bincount(incidence.indices, minlength=incidence.shape[1])
    reach = np.add.reduceat(genes_of_term[incidence.indices], incidence.indptr[:-1])
    run = np.cumsum(np.minimum(reach, len(n_terms))) // _BLOCK_ENTRIES
    starts = np.flatnonzero(np.diff(run, prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(run)], strict=True):
        yield int(start), slice(int(start), int(stop))


def _similar(
    block: sparse.csr_array, by_term: sparse.csr_array, n_terms: np.ndarray, start: int, min_similarity: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets, sources and Jaccard indices of a block of targets."""
    shared = block @ by_term
    per_target = np.diff(shared.indptr)
    targets = np.repeat(np.arange(start, start + block.shape[0], dtype=np.int32), per_target)
    # the union is no smaller than A: this spares exact values for most pairs; rounding must lose none
    least = np.floor(min_similarity * n_terms[start : start + block.shape[0]] * (1 - 1e-9)).astype(np.int32)
    likely = np.flatnonzero(shared.data > np.repeat(least, per_target))
    targets, sources, both = targets[likely], shared.indices[likely], shared.data[likely]
    importance = both / (n_terms[targets] + n_terms[sources] - both)
    kept = importance > min_similarity
    ends = np.cumsum(np.bincount(targets[kept] - start, minlength=block.shape[0]))
    similar = sparse.csr_array((importance[kept], sources[kept], np.append(0, ends)), shape=shared.shape)
    similar.sort_indices()
    return targets[kept], similar.indices, similar.data


def _checked(table: pd.DataFrame, place: str) -> pd.DataFrame:
    """The three columns of a table of similarities, checked."""
    if missing := [column for column in COLUMNS if column not in table]:
        msg = (
            f"Expected the columns source, target and importance in {place}, found "
            f"{first_of(list(table)) or 'none'} without {first_of(missing)}. Rename the columns; genes and their "
            "terms can be given as a tsv file of two columns, or passed as a mapping, "
            "`table.groupby('gene')['term'].agg(set).to_dict()`."
        )
        raise ValueError(msg)
    importance = pd.to_numeric(table["importance"], errors="coerce").to_numpy(float)
    bad = ~np.isfinite(importance) | (importance < 0)
    nameless = (table["source"].isna() | table["target"].isna()).to_numpy()
    for rows, what in ((bad, "finite importances from 0"), (nameless, "a source and a target in every row")):
        if rows.any():
            first = int(np.flatnonzero(rows)[0])
            msg = (
                f"Expected {what} in {place}, found {int(rows.sum())} other rows, the first: "
                f"{', '.join(map(str, table[list(COLUMNS)].iloc[first]))} (row {first}). Correct or drop them."
            )
            raise ValueError(msg)
    checked = _table(_texts(table["source"]), _texts(table["target"]), importance)
    return _not_empty(checked, f"rows in {place}")


def _texts(names: pd.Series) -> np.ndarray:
    """Names as an array of texts; millions of names that are texts already are not copied."""
    texts = names.to_numpy(object)
    return texts if pd.api.types.infer_dtype(texts) == "string" else names.astype(str).to_numpy(object)


def _table(source: np.ndarray, target: np.ndarray, importance: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(dict(zip(COLUMNS, (source, target, importance), strict=True)), copy=False)


def _selected(table: pd.DataFrame, wanted: set[str] | None) -> pd.DataFrame:
    """Pairs of the wanted genes, each once."""
    if wanted is not None:
        table = table[table["source"].isin(wanted) & table["target"].isin(wanted)]
        table = _not_empty(table, f"pairs of the genes {first_of(sorted(wanted))}")
    if table.duplicated(["source", "target"]).any():
        table = table.loc[table.groupby(["source", "target"])["importance"].idxmax().sort_values()]
    return table.reset_index(drop=True)


def _not_empty(table: pd.DataFrame, what: str) -> pd.DataFrame:
    if table.empty:
        msg = f"Expected pairs of genes, found no {what}. Use gene names of the same kind, or a table of pairs."
        raise ValueError(msg)
    return table


def _ending(path: Path) -> str:
    name = path.name.lower()
    if ".pkl" in name or ".pickle" in name:
        msg = (
            f"Expected a table ({_ENDINGS}), found the pickle '{path}': opening such a file runs whatever code it "
            "holds. Where you trust it, write its mapping of gene to terms as a table: "
            "`pd.Series(terms).map(list).explode().to_csv('terms.tsv', sep='\\t', header=False)`."
        )
        raise ValueError(msg)
    ending = Path(name.removesuffix(".gz")).suffix
    if ending not in {".csv", ".tsv", ".gmt"}:
        msg = f"Expected a file that ends in {_ENDINGS}, found '{path}'. Save it in one of these forms."
        raise ValueError(msg)
    return ending


@contextmanager
def _text_of(path: Path) -> Iterator[TextIO]:
    """Text of a file; its first bytes, not its name, say whether it is compressed."""
    with path.open("rb") as file:
        is_compressed = file.read(2) == b"\x1f\x8b"
    opened: Any = gzip.open if is_compressed else open
    try:
        with opened(path, "rt", encoding="utf-8-sig") as text:
            yield text
    except UnicodeDecodeError as error:
        msg = (
            f"Expected text in UTF-8 in '{path}', found other bytes ({error.reason}). Save it as UTF-8, for example "
            "with `iconv -f latin1 -t utf8`."
        )
        raise ValueError(msg) from error
    except (EOFError, zlib.error, gzip.BadGzipFile, pd.errors.ParserError) as error:
        msg = f"Expected a whole table in '{path}', found one that cannot be read ({error}). Download or save it again."
        raise ValueError(msg) from error


def _read_similarities(path: Path) -> pd.DataFrame:
    # genes may be called "NA" or "nan", and millions of rows name few genes
    dtype, missing = {"source": "category", "target": "category"}, {"importance": ["", "NA", "NaN", "nan"]}
    try:
        with _text_of(path) as file:
            return pd.read_csv(file, dtype=dtype, keep_default_na=False, na_values=missing)
    except pd.errors.EmptyDataError:
        return pd.DataFrame(columns=list(COLUMNS))


def _read_terms(path: Path) -> pd.DataFrame:
    """Genes and terms of a tab-separated table."""
    try:
        with _text_of(path) as file:
            table = pd.read_csv(file, sep="\t", header=None, dtype=str, keep_default_na=False, quoting=csv.QUOTE_NONE)
    except pd.errors.EmptyDataError:
        table = pd.DataFrame(columns=range(2), dtype=str)
    header = [str(name).strip().lower() for name in table.iloc[0]] if len(table) else []
    gene, term = (next((name for name in names if name in header), None) for names in (_GENE_HEADERS, _TERM_HEADERS))
    if gene is not None and term is not None:
        table = table.iloc[1:, [header.index(gene), header.index(term)]]
    elif table.shape[1] != 2:
        msg = (
            f"Expected two columns, gene and term, in '{path}', or a header with one of {', '.join(_GENE_HEADERS)} and "
            f"one of {', '.join(_TERM_HEADERS)}, found {first_of(header)}. Rename or drop columns."
        )
        raise ValueError(msg)
    table = table.set_axis(["gene", "term"], axis=1).apply(lambda column: column.str.strip())
    return table[(table["gene"] != "") & (table["term"] != "")]


def _read_gmt(path: Path) -> pd.DataFrame:
    """Genes and terms of a file with a term, a description and genes in each line."""
    with _text_of(path) as file:
        lines = [line.rstrip("\r\n").split("\t") for line in file if line.strip()]
    if short := [number for number, fields in enumerate(lines, 1) if len(fields) < 3]:
        msg = (
            f"Expected a term, a description and genes, separated by tabs, in each line of '{path}', found fewer in "
            f"{len(short)} lines, the first of them line {short[0]}. Correct them, or rename a table to '.tsv'."
        )
        raise ValueError(msg)
    pairs = [(gene.strip(), fields[0].strip()) for fields in lines for gene in fields[2:] if gene.strip()]
    return pd.DataFrame(pairs, columns=["gene", "term"], dtype=object)
