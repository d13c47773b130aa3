"""Generated Perturb-seq whose truth is known."""

from __future__ import annotations

from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scinfl._checks import number_between, whole_number
from scinfl._conditions import CONTROL, named_as_gears

_TERMS_PER_GENE = 6
_MASKING = 0.8


@dataclass(frozen=True)
class _Biology:
    """What the cells are drawn from; logarithms are natural."""

    activity: np.ndarray  # (n_perturbed, n_programmes): what perturbing a gene alone does to each programme
    loadings: np.ndarray  # (n_programmes, n_genes): log fold change of a gene per unit of a programme
    private: np.ndarray  # (n_perturbed, n_genes): what it does outside of programmes
    masks: np.ndarray  # (n_programmes,): programme that this one masks
    baseline: np.ndarray  # (n_genes,): log mean share of the controls
    pathway: np.ndarray  # (n_perturbed,)


def perturbseq_simulated(
    n_genes: int = 500,
    *,
    n_singles: int = 40,
    n_doubles: int = 30,
    n_cells: int = 40,
    n_controls: int = 400,
    n_programmes: int = 6,
    interaction: float = 1.0,
    ontology: float = 0.8,
    effect: float = 0.7,
    depth: float = 3000.0,
    rng: int = 0,
) -> AnnData:
    r"""Generate Perturb-seq with programmes, single and double perturbations, and an ontology that knows some of it.

    A gene :math:`q` belongs to a pathway; perturbing it moves the activities :math:`s_q` of a few programmes, much like
    the other genes of its pathway, and its own expression. The log fold change of a set of perturbations is

    .. math::
        \Delta = L^\top h\Big(\sum_q s_q\Big) + \sum_q p_q, \qquad
        h(s)_k = (1 - \iota)\, s_k + \iota\, \big(1 - 0.8\, a_{m(k)}\big) \tanh(s_k), \qquad
        a_k = \tanh^4(|s_k| / 1.5)

    where :math:`\iota` is ``interaction`` and :math:`a_{m(k)}` states how active the programme is that masks programme
    :math:`k`: effects saturate and programmes mask each other, a little after one perturbation and strongly after two.
    With :math:`\iota = 0` everything is additive in log space. Counts are Poisson with gamma noise and log-normal
    library sizes, which gives realistic dropout.

    Parameters
    ----------
    n_genes
        Measured genes; the perturbed ones are among them.
    n_singles, n_doubles
        Perturbed genes, and pairs of them.
    n_cells, n_controls
        Mean number of cells of a perturbation, and number of control cells.
    n_programmes
        Gene programmes.
    interaction
        :math:`\iota` in 0 … 1: how far double perturbations are from the sum of the single ones.
    ontology
        Share of a gene's terms that are those of its pathway, the rest being random: 0 knows nothing, 1 everything.
    effect
        Size of all effects.
    depth
        Median counts per cell.
    rng
        Seed.

    Returns
    -------
    Annotated data: log1p of counts per 10,000 in ``.X`` (sparse, float32), counts in ``.layers["counts"]``,
    ``.obs["condition"]`` in the form of GEARS (``"ctrl"``, ``"A+ctrl"``, ``"A+B"``), the terms of every perturbed gene
    in ``.uns["gene_terms"]`` and the true log fold changes (conditions × genes) in ``.uns["true_change"]``.

    Raises
    ------
    ValueError
        If a number is out of range, or there are more pairs asked for than there are.

    Examples
    --------
    >>> import scinfl as si
    >>> adata = si.datasets.perturbseq_simulated(100, n_singles=6, n_doubles=4, n_cells=10, n_controls=30)
    >>> adata.obs["condition"].nunique(), adata.uns["true_change"].shape
    (11, (10, 100))
    """
    for name, value, least in (
        ("n_genes", n_genes, 10),
        ("n_singles", n_singles, 2),
        ("n_doubles", n_doubles, 0),
        ("n_cells", n_cells, 2),
        ("n_controls", n_controls, 2),
        ("n_programmes", n_programmes, 2),
        ("rng", rng, 0),
    ):
        whole_number(name, value, least)
    number_between("interaction", interaction, 0, 1)
    number_between("ontology", ontology, 0, 1)
    number_between("effect", effect, 0, 10)
    number_between("depth", depth, 0, 1e6, open_low=True)
    if n_singles > n_genes or n_doubles > n_singles * (n_singles - 1) // 2:
        msg = (
            f"Expected at most {n_genes} perturbed genes and as many doubles as they have pairs, found {n_singles} "
            f"and {n_doubles}. Lower `n_singles` or `n_doubles`."
        )
        raise ValueError(msg)
    generator = np.random.default_rng(rng)
    genes = np.array([f"GENE{number:0{len(str(n_genes))}d}" for number in range(1, n_genes + 1)])
    perturbed = np.sort(generator.choice(n_genes, n_singles, replace=False))
    biology = _draw_biology(n_genes, perturbed, n_programmes, effect, generator)
    sets = [(index,) for index in range(n_singles)] + _draw_pairs(n_singles, n_doubles, generator)
    changes = np.stack([_change(biology, members, interaction) for members in sets])
    names = [named_as_gears([genes[perturbed[i]] for i in members]) for members in sets]
    sizes = [n_controls, *np.maximum(2, generator.poisson(n_cells, len(sets)))]
    counts = sparse.vstack(
        [
            _draw_counts(biology.baseline + change, size, depth, generator)
            for change, size in zip([np.zeros(n_genes), *changes], sizes, strict=True)
        ],
        format="csr",
    )
    obs = pd.DataFrame(
        {"condition": pd.Categorical(np.repeat([CONTROL, *names], sizes))},
        index=[f"cell_{number}" for number in range(counts.shape[0])],
    )
    adata = ad.AnnData(_log_normalised(counts), obs, pd.DataFrame(index=genes), layers={"counts": counts})
    terms = _draw_terms(biology.pathway, ontology, generator)
    adata.uns["gene_terms"] = {str(genes[index]): own for index, own in zip(perturbed, terms, strict=True)}
    adata.uns["true_change"] = pd.DataFrame(changes, index=names, columns=genes)
    return adata


def _draw_biology(
    n_genes: int, perturbed: np.ndarray, n_programmes: int, effect: float, generator: np.random.Generator
) -> _Biology:
    n_perturbed = len(perturbed)
    n_pathways = max(2, n_perturbed // 5)
    pathway = generator.permutation(np.arange(n_perturbed) % n_pathways)
    pathway_activity = np.zeros((n_pathways, n_programmes))
    for row in pathway_activity:
        chosen = generator.choice(n_programmes, n_programmes // 2, replace=False)
        row[chosen] = generator.normal(0, 0.3, len(chosen)) + generator.choice([-1.0, 1.0], len(chosen))
    activity = pathway_activity[pathway] * generator.uniform(0.6, 1.4, (n_perturbed, 1))
    activity = activity + generator.normal(0, 0.1, activity.shape)
    loadings = generator.normal(0, 0.7, (n_programmes, n_genes)) * (generator.random((n_programmes, n_genes)) < 0.15)
    private = generator.normal(0, 0.4, (n_perturbed, n_genes)) * (generator.random((n_perturbed, n_genes)) < 0.01)
    private[np.arange(n_perturbed), perturbed] = generator.choice([-1.5, 1.5], n_perturbed)
    return _Biology(
        activity=effect * activity,
        loadings=loadings,
        private=effect * private,
        masks=np.roll(generator.permutation(n_programmes), 1),
        baseline=generator.normal(0, 1.8, n_genes),
        pathway=pathway,
    )


def _draw_pairs(n_singles: int, n_doubles: int, generator: np.random.Generator) -> list[tuple[int, int]]:
    first, second = np.triu_indices(n_singles, 1)
    chosen = np.sort(generator.choice(len(first), n_doubles, replace=False))
    return [(int(first[index]), int(second[index])) for index in chosen]


def _change(biology: _Biology, members: tuple[int, ...], interaction: float) -> np.ndarray:
    """Log fold change of a set of perturbations."""
    total = biology.activity[list(members)].sum(0)
    unmasked = 1 - _MASKING * np.tanh(np.abs(total[biology.masks]) / 1.5) ** 4
    combined = (1 - interaction) * total + interaction * unmasked * np.tanh(total)
    return combined @ biology.loadings + biology.private[list(members)].sum(0)


def _draw_counts(
    log_share: np.ndarray, n_cells: int, depth: float, generator: np.random.Generator
) -> sparse.csr_matrix:
    """Gamma-Poisson counts; the shares of a cell sum to one, its size is log-normal."""
    share = np.exp(log_share - log_share.max())
    share = share / share.sum()
    sizes = depth * np.exp(generator.normal(0, 0.25, (n_cells, 1)))
    noise = generator.gamma(5.0, 1 / 5.0, (n_cells, len(share)))
    return sparse.csr_matrix(generator.poisson(sizes * share * noise).astype(np.float32))


def _log_normalised(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    totals = np.maximum(np.asarray(counts.sum(1)).ravel(), 1)
    scaled = sparse.diags(1e4 / totals, format="csr") @ counts
    return scaled.log1p().astype(np.float32).tocsr()


def _draw_terms(pathway: np.ndarray, known: float, generator: np.random.Generator) -> list[np.ndarray]:
    """Terms of every gene: each is one of its pathway's with probability ``known``, else any."""
    n_terms = _TERMS_PER_GENE * (pathway.max() + 1)
    own = pathway[:, None] * _TERMS_PER_GENE + np.arange(_TERMS_PER_GENE)
    random = generator.integers(n_terms, size=own.shape)
    chosen = np.where(generator.random(own.shape) < known, own, random)
    return [np.array(sorted({f"TERM{term}" for term in row}), dtype=object) for row in chosen]
