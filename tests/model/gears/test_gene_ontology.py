"""Similarity of genes by their terms."""

from __future__ import annotations

import gzip
import pickle

import numpy as np
import pandas as pd
import pytest

from scinfl.model.gears import _gene_ontology
from scinfl.model.gears._gene_ontology import COLUMNS, gene_similarity, strongest_neighbours


def make_terms(n_genes: int = 60, n_terms: int = 40, rng: int = 0) -> dict[str, set[str]]:
    generator = np.random.default_rng(rng)
    return {
        f"gene_{i}": {f"GO:{t}" for t in generator.choice(n_terms, size=generator.integers(1, 12), replace=False)}
        for i in range(n_genes)
    }


def naive(terms, min_similarity=0.1):
    rows = [
        (source, target, len(terms[source] & terms[target]) / len(terms[source] | terms[target]))
        for target in sorted(terms)
        for source in sorted(terms)
    ]
    return pd.DataFrame([row for row in rows if row[2] > min_similarity], columns=COLUMNS)


def write(path, text):
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


TERMS = {"A": {"t1", "t2", "t3"}, "B": {"t1", "t2"}, "NA": {"t1"}}
ROWS = [(gene, term) for gene, its_terms in TERMS.items() for term in sorted(its_terms)]
TSV = "".join(f"{gene}\t{term}\n" for gene, term in ROWS)


@pytest.mark.parametrize("min_similarity", [0, 0.1, 0.25, 0.5])
def test_similarities_equal_those_of_python_sets_bit_by_bit(min_similarity):
    terms = make_terms()
    pd.testing.assert_frame_equal(
        gene_similarity(terms, min_similarity=min_similarity), naive(terms, min_similarity), check_exact=True
    )


def test_small_blocks_give_the_same_table(monkeypatch):
    terms = make_terms()
    whole = gene_similarity(terms)
    monkeypatch.setattr(_gene_ontology, "_BLOCK_ENTRIES", 100)
    pd.testing.assert_frame_equal(gene_similarity(terms), whole, check_exact=True)


def test_a_pair_at_the_threshold_is_left_out():
    tenth = {"A": ["x"], "B": [f"t{i}" for i in range(9)] + ["x"]}  # 1 of 10 terms
    assert len(gene_similarity(tenth)) == 2
    assert len(gene_similarity(tenth, min_similarity=0.0999)) == 4


@pytest.mark.parametrize(("numerator", "denominator"), [(1, 3), (3, 10), (2, 7), (6, 7), (7, 25)])
def test_rounding_loses_no_pair_just_above_the_threshold(numerator, denominator):
    terms = {"A": range(denominator), "B": range(numerator)}
    value = numerator / denominator
    assert len(gene_similarity(terms, min_similarity=value)) == 2
    assert len(gene_similarity(terms, min_similarity=np.nextafter(value, 0))) == 4


def test_every_gene_is_similar_to_itself_and_pairs_go_both_ways():
    table = gene_similarity(make_terms())
    own = table[table["source"] == table["target"]]
    assert len(own) == 60
    assert (own["importance"] == 1).all()
    mirrored = table.set_axis(["target", "source", "importance"], axis=1).sort_values(["target", "source"])
    pd.testing.assert_frame_equal(mirrored[list(COLUMNS)].reset_index(drop=True), table)


def test_chosen_genes_keep_their_similarities_and_unknown_ones_are_left_out():
    terms = make_terms()
    chosen = [f"gene_{i}" for i in range(0, 60, 3)]
    table = gene_similarity(terms, [*reversed(chosen), "unknown"])
    whole = naive(terms)
    expected = whole[whole["source"].isin(chosen) & whole["target"].isin(chosen)].reset_index(drop=True)
    pd.testing.assert_frame_equal(table, expected, check_exact=True)
    pd.testing.assert_frame_equal(gene_similarity(whole, chosen), expected, check_exact=True)


def test_order_and_repetition_of_terms_do_not_matter():
    terms = make_terms()
    shuffled = {gene: [*sorted(terms[gene]), *terms[gene]] for gene in reversed(terms)}
    pd.testing.assert_frame_equal(gene_similarity(shuffled), gene_similarity(terms))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("go.tsv", TSV),
        ("go.tsv.gz", TSV + TSV),
        ("go.tsv", "gene\tterm\n" + TSV),
        ("GO.TSV", "Symbol\tGO_ID\r\n" + TSV.replace("\n", "\r\n")),
        ("go.tsv", "go_id\tevidence\tsymbol\n" + "".join(f"{term}\tIDA\t{gene}\n" for gene, term in ROWS)),
        ("go.tsv", TSV + "\tt1\nB\t\n"),
        ("go.gmt", "t1\tdescription\tA\tB\tNA\nt2\t\tA\tB\t\n\nt3\tna\tA\n"),
        ("go.gmt.gz", "t1\tdescription\tA\tB\tNA\nt2\t\tA\tB\nt3\tna\tA\n"),
    ],
)
def test_files_of_terms_give_the_same_table(tmp_path, name, text):
    path = write(tmp_path / name, text)
    for source in (path, str(path)):
        pd.testing.assert_frame_equal(gene_similarity(source), naive(TERMS))


@pytest.mark.parametrize("name", ["go.csv", "go.csv.gz"])
@pytest.mark.parametrize("index", [True, False])
def test_a_file_of_similarities_is_kept_as_it_is(tmp_path, name, index):
    table = naive(TERMS).sample(frac=1, random_state=0)
    table.to_csv(tmp_path / name, index=index)
    pd.testing.assert_frame_equal(gene_similarity(tmp_path / name), table.reset_index(drop=True))


def test_a_table_of_similarities_is_kept_as_it_is_and_not_changed():
    table = pd.DataFrame({"importance": [1, 0, 5], "source": ["A", "B", "A"], "target": ["B", "C", "C"], "note": "x"})
    table = table.astype({"source": "category"}).set_axis([3, 1, 2])
    before = table.copy()
    kept = gene_similarity(table, min_similarity=0.9)
    assert list(kept) == list(COLUMNS)
    assert kept["source"].tolist() == ["A", "B", "A"]
    assert kept["importance"].tolist() == [1.0, 0.0, 5.0]
    kept.loc[:, "importance"] = 7.0
    kept.loc[:, "source"] = "Z"
    pd.testing.assert_frame_equal(table, before)


def test_a_pair_that_occurs_twice_counts_once_with_its_larger_importance():
    table = pd.DataFrame({"source": ["A", "B", "A"], "target": ["C", "C", "C"], "importance": [0.2, 0.3, 0.4]})
    kept = gene_similarity(table)
    assert kept["source"].tolist() == ["B", "A"]
    assert kept["importance"].tolist() == [0.3, 0.4]


@pytest.mark.parametrize("n_neighbours", [1, 3, 20, 500])
@pytest.mark.parametrize("shuffled", [True, False])
def test_the_strongest_neighbours_are_those_of_nlargest_with_its_order_of_ties(n_neighbours, shuffled):
    table = gene_similarity(make_terms(n_terms=12), min_similarity=0)
    assert table.duplicated(["target", "importance"]).mean() > 0.3  # many ties
    if shuffled:
        table = table.sample(frac=1, random_state=0).reset_index(drop=True)
    strongest = strongest_neighbours(table, n_neighbours)
    ordered = table.sort_values("importance", ascending=False, kind="stable").groupby("target").head(n_neighbours + 1)
    expected = ordered.sort_values("target", kind="stable").reset_index(drop=True)
    pd.testing.assert_frame_equal(strongest, expected)
    chosen = table.groupby("target")["importance"].nlargest(n_neighbours + 1).index.get_level_values(1)
    pairs = ["target", "source"]
    same = table.loc[chosen].sort_values(pairs).reset_index(drop=True)
    pd.testing.assert_frame_equal(strongest.sort_values(pairs).reset_index(drop=True), same)
    assert strongest["target"].value_counts().max() <= n_neighbours + 1


def test_targets_with_few_sources_keep_them_all():
    table = pd.DataFrame({"source": ["A", "B", "B"], "target": ["A", "A", "B"], "importance": [1.0, 0.5, 1.0]})
    pd.testing.assert_frame_equal(strongest_neighbours(table.astype({"source": "category"})), table)


def test_the_ontology_of_all_human_genes_is_exact_for_chosen_ones(shared):
    path = shared("go/gene2go_human_direct.tsv.gz")
    table = pd.read_csv(path, sep="\t", keep_default_na=False)
    terms = table.groupby("symbol")["go_id"].agg(set)
    chosen = terms.sample(150, random_state=0).to_dict()
    pd.testing.assert_frame_equal(gene_similarity(path, list(chosen)), naive(chosen), check_exact=True)


def test_the_ontology_of_the_norman_genes_loads_and_agrees_with_the_terms(shared):
    published = gene_similarity(shared("go/go_norman2019.csv"))
    assert len(published) == 2065
    own = published[published["source"] == published["target"]]
    assert (own["importance"] == 1).all()
    assert set(strongest_neighbours(published)["target"]) == set(published["target"])
    computed = gene_similarity(shared("go/gene2go_human_direct.tsv.gz"), own["source"])
    both = computed.merge(published, on=["source", "target"])
    assert len(both) == len(computed)
    np.testing.assert_allclose(both["importance_x"], both["importance_y"], rtol=1e-12)


GOOD = {"source": ["A", "B"], "target": ["B", "A"], "importance": [0.5, 0.5]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"importance": [0.5, np.nan]},
            r"finite importances from 0 .*found 1 other rows, the first: B, A, nan \(row 1",
        ),
        ({"importance": [np.inf, 0.5]}, "finite importances"),
        ({"importance": [-0.1, 0.5]}, "finite importances"),
        ({"importance": ["high", "0.5"]}, "high"),
        ({"source": ["A", None]}, "a source and a target"),
        ({"source": [], "target": [], "importance": []}, "found no rows in `gene_ontology`"),
    ],
)
def test_similarities_that_are_none_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        gene_similarity(pd.DataFrame(GOOD | changes))
    with pytest.raises(ValueError, match=message.replace("`gene_ontology`", "`table`")):
        strongest_neighbours(pd.DataFrame(GOOD | changes))


def test_a_table_with_other_columns_is_refused_with_a_cure():
    table = pd.DataFrame({"gene": ["A"], "term": ["t1"]})
    with pytest.raises(ValueError, match=r"found gene, term without source, target, importance.*mapping"):
        gene_similarity(table)
    assert len(gene_similarity(table.groupby("gene")["term"].agg(set).to_dict())) == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("go.csv", "", "found no rows"),
        ("go.csv", "source,target,importance\n", "found no rows"),
        ("go.csv", "a,b\n1,2\n", "Expected the columns"),
        ("go.csv", "source,target,importance\nA,B,\n", "finite importances"),
        ("go.tsv", "", "found none; the source knows no genes"),
        ("go.tsv", "a\tb\tc\n1\t2\t3\n", "Expected two columns, gene and term.*found a, b, c"),
        ("go.tsv", "go_id\tontology\tterm\nGO:1\tBP\tlife\n", "Expected two columns"),
        ("go.gmt", "t1\tdescription\tA\nt2\tB\n", "the first of them line 2"),
        ("go.gmt", "", "found none"),
        ("go.gaf", "!gaf", "ends in .csv"),
        ("go", "", "ends in .csv"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        gene_similarity(write(tmp_path / name, text))


@pytest.mark.parametrize("name", ["gene2go_all.pkl", "gene2go.pickle", "gene2go.pkl.gz"])
def test_a_pickle_is_never_opened(tmp_path, name):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    path = tmp_path / name
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match=r"runs whatever code it holds.*to_csv"):
        gene_similarity(path)
    assert not (tmp_path / "sprung").exists()


def test_the_cure_for_a_pickle_works(tmp_path):
    pd.Series(TERMS).map(list).explode().to_csv(tmp_path / "terms.tsv", sep="\t", header=False)
    pd.testing.assert_frame_equal(gene_similarity(tmp_path / "terms.tsv"), naive(TERMS))


def test_other_bad_input_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="found no file"):
        gene_similarity(tmp_path / "go.csv")
    with pytest.raises(TypeError, match="found list"):
        gene_similarity(["A", "B"])
    with pytest.raises(TypeError, match=r"found the text 'GO:1' for 'A'"):
        gene_similarity({"A": "GO:1"})
    with pytest.raises(ValueError, match="min_similarity"):
        gene_similarity(TERMS, min_similarity=1.1)
    with pytest.raises(ValueError, match="no pairs more similar than 1"):
        gene_similarity(TERMS, min_similarity=1)
    with pytest.raises(ValueError, match="terms for the genes ENSG1, found none; the source knows A, B, NA"):
        gene_similarity(TERMS, ["ENSG1"])
    with pytest.raises(ValueError, match="no pairs of the genes ENSG1"):
        gene_similarity(pd.DataFrame(GOOD), ["ENSG1"])
    with pytest.raises(ValueError, match="n_neighbours"):
        strongest_neighbours(pd.DataFrame(GOOD), 0)
    assert len(gene_similarity({"A": ["t1"], "B": []})) == 1


@pytest.mark.parametrize("name", ["q.gmt", "q.gmt.gz", "q.tsv", "q.csv.gz"])
@pytest.mark.parametrize("compressed", [False, True])
def test_the_first_bytes_of_a_file_say_whether_it_is_compressed(tmp_path, name, compressed):
    text = {"gmt": "T\tna\tA\tB\n", "tsv": "A\tT\nB\tT\n", "csv": "source,target,importance\nA,B,1\nB,A,1\n"}
    data = text[name.split(".")[1]].encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if compressed else data)
    assert {"A", "B"} == set(gene_similarity(tmp_path / name)["source"])


@pytest.mark.parametrize("name", ["l.gmt", "l.tsv", "l.csv"])
def test_a_file_in_another_coding_is_named(tmp_path, name):
    (tmp_path / name).write_bytes("source,target,importance\tT\tB\u00e9,A,1\tC\n".encode("latin1"))
    with pytest.raises(ValueError, match=rf"Expected text in UTF-8 in '.*{name}'.*iconv"):
        gene_similarity(tmp_path / name)
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(b"A\tT\n" * 100)[:-12])
    with pytest.raises(ValueError, match=rf"Expected a whole table in '.*{name}.gz'"):
        gene_similarity(tmp_path / f"{name}.gz")
