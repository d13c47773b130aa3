"""Generated sections of one tissue, profiled with different modalities, with known domains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse
from scipy.special import expit

from scinfl._checks import number_between, one_of, whole_number
from scinfl._data_files import without_pull

SPACING = 100.0
_BORDER = 0.04
_N_NICHES = 3
_N_PROGRAMMES = 4


@dataclass(frozen=True)
class _Assay:
    """How a modality measures; logarithms are natural."""

    prefix: str
    depth: float  # median counts of a spot
    spread: float  # deviation of the log mean of features
    informative: float  # share of features that differ between domains
    effect: float  # deviation of their log fold changes
    background: float  # share of the counts that is the same in all spots of a section
    noise: float  # squared coefficient of variation beyond Poisson


_ASSAYS = {
    "rna": _Assay("GENE", 1500, 1.5, 0.25, 0.7, 0.05, 0.3),
    "adt": _Assay("PROTEIN", 1200, 0.8, 0.6, 0.8, 0.4, 0.15),
    "atac": _Assay("PEAK", 400, 1.0, 0.3, 0.8, 0.2, 0.1),
}


@dataclass(frozen=True)
class _Tissue:
    """Spots of all sections, section by section."""

    coordinates: np.ndarray  # (n, 2)
    domains: np.ndarray  # (n, n_domains): share of each domain in a spot
    size: np.ndarray  # (n,): how much a spot gives to every assay
    programmes: np.ndarray  # (n, n_programmes): activities that follow no place
    section: np.ndarray  # (n,)


def mosaic_simulated(
    n_sections: int = 3,
    *,
    n_spots: int = 900,
    modalities: Sequence[str] = ("rna", "adt"),
    missing: Mapping[str, Sequence[str]] | None = None,
    complete: bool = False,
    n_domains: int = 6,
    n_genes: int = 300,
    n_proteins: int = 40,
    n_peaks: int = 1000,
    faint: float = 0.4,
    effect: float = 1.0,
    section_effect: float = 0.4,
    rng: int = 0,
) -> MuData:
    r"""Generate sections with domains, each profiled with some of the modalities.

    Every section is another cut: layers in one order but of other widths, bends and direction, and round niches of the
    last domain among them. At a smooth border spots hold some of both sides. With :math:`w_s` the shares of the domains
    in spot :math:`s`, feature :math:`j` of a modality has the share

    .. math::
        p_{sj} \propto \exp\big(b_j + o_{j,\text{section}} + w_s^\top \delta_j + u_s^\top l_j\big)

    of its counts: a baseline, an offset of the section, log fold changes of domains for some features, and activities
    :math:`u_s` of programmes that follow no place and that all modalities share. A background without domains is added,
    most in proteins. Counts are Poisson with gamma noise and depend on the spot's size, which changes over the tissue,
    and the section's depth.

    **No modality separates all domains.** Each confuses some in pairs: RNA 1 and 2, 3 and 4, …; protein 2 and 3, 4
    and 5, …, the last and the first; accessibility those half of the domains apart. Within a pair its fold changes
    differ by ``faint`` of what they do between pairs. Any two modalities separate all domains.

    Parameters
    ----------
    n_sections
        Sections, each of a site of its own.
    n_spots
        Spots of a section, on a hexagonal lattice.
    modalities
        Of ``"rna"``, ``"adt"`` (proteins) and ``"atac"`` (peaks).
    missing
        Modalities that a section (``"section_1"``, …) lacks; sections that are not named have all. By default section_1
        has RNA and protein, section_2 RNA and section_3 protein. Of all three, section_1 has RNA and protein, section_2
        RNA and accessibility, section_3 protein; further sections have one modality in turn.
    complete
        Give all modalities of all sections: the truth of what is missing otherwise, of the same ``rng``.
    n_domains
        Domains, at least 4.
    n_genes, n_proteins, n_peaks
        Features of each modality.
    faint
        How far a modality separates the domains of a pair: 0 not at all, 1 like any other domains.
    effect
        Size of all differences between domains.
    section_effect
        Standard deviation of the log offsets of features between sections.
    rng
        Seed.

    Returns
    -------
    MuData with counts in each modality (spots × features, sparse, float32), names of spots that modalities share,
    coordinates in ``.obsm["spatial"]`` (micrometres, 100 between spots) and ``.obs["section"]``, ``["site"]`` and
    ``["domain"]``, the domain with the largest share in a spot; these are in the modalities as well.
    ``.var["informative"]`` of a modality marks the features that differ between domains.

    Raises
    ------
    ValueError
        If a number is out of range, a name is unknown, or a section or a modality has nothing.

    Examples
    --------
    >>> import scinfl as si
    >>> mdata = si.datasets.mosaic_simulated(n_spots=100)
    >>> {name: adata.obs["section"].unique().tolist() for name, adata in mdata.mod.items()}
    {'rna': ['section_1', 'section_2'], 'adt': ['section_1', 'section_3']}
    >>> truth = si.datasets.mosaic_simulated(n_spots=100, complete=True)["adt"]
    >>> truth[truth.obs["section"] == "section_2"].shape
    (100, 40)
    """
    for argument, value, least in (
        ("n_sections", n_sections, 1),
        ("n_spots", n_spots, 20),
        ("n_domains", n_domains, 4),
        ("n_genes", n_genes, 2),
        ("n_proteins", n_proteins, 2),
        ("n_peaks", n_peaks, 2),
        ("rng", rng, 0),
    ):
        whole_number(argument, value, least)
    number_between("faint", faint, 0, 1)
    number_between("effect", effect, 0, 10)
    number_between("section_effect", section_effect, 0, 10)
    n_features = {"rna": n_genes, "adt": n_proteins, "atac": n_peaks}
    sections = [f"section_{number}" for number in range(1, n_sections + 1)]
    measured = _measured(sections, modalities, missing)
    # a modality does not depend on which others there are
    streams = dict(zip(("tissue", *_ASSAYS), np.random.default_rng(rng).spawn(4), strict=True))
    tissue = _draw_tissue(n_sections, n_spots, n_domains, streams["tissue"])
    obs = _describe(tissue, sections)
    mods = {}
    for name in modalities:
        adata = _draw_assay(name, tissue, n_features[name], (effect, faint, section_effect), streams[name])
        adata.obs, adata.obsm["spatial"] = obs.copy(), tissue.coordinates.copy()
        owns = np.array([name in measured[section] for section in sections])
        mods[name] = adata if complete else adata[owns[tissue.section]].copy()
    with without_pull():
        mdata = MuData(mods)
    rows = obs.index.get_indexer(mdata.obs_names)
    mdata.obs = obs.iloc[rows].copy()
    mdata.obsm["spatial"] = tissue.coordinates[rows]
    return mdata


def _measured(
    sections: list[str], modalities: Sequence[str], missing: Mapping[str, Sequence[str]] | None
) -> dict[str, set[str]]:
    """Modalities of each section."""
    names = list(modalities)
    for name in names:
        one_of("modalities", name, _ASSAYS)
    if not names or len(set(names)) < len(names):
        msg = f"Expected `modalities` to name each modality once, found {', '.join(names) or 'none'}."
        raise ValueError(msg)
    if missing is None:
        measured = _default_mosaic(sections, names)
    else:
        for section, absent in missing.items():
            one_of("missing", section, sections)
            for name in absent:
                one_of(f"missing['{section}']", name, names)
        measured = {section: set(names) - set(missing.get(section, ())) for section in sections}
    seen = set().union(*measured.values())
    for what, nothing in (
        ("a modality in every section", [section for section in sections if not measured[section]]),
        ("a section of every modality", [name for name in names if name not in seen]),
    ):
        if nothing:
            msg = f"Expected {what}, found none for {', '.join(nothing)}. Name others in `missing`."
            raise ValueError(msg)
    return measured


def _default_mosaic(sections: list[str], names: list[str]) -> dict[str, set[str]]:
    pairs = [{names[0], other} for other in names[1:]]
    singles = [{names[(number - 2) % len(names)]} for number in range(len(names), len(names) + len(sections))]
    return dict(zip(sections, [*pairs, *singles], strict=False))


def _describe(tissue: _Tissue, sections: list[str]) -> pd.DataFrame:
    n_spots, n_domains = len(tissue.section) // len(sections), tissue.domains.shape[1]
    sites = [f"hospital_{number}" for number in range(1, len(sections) + 1)]
    domains = [f"domain_{number}" for number in range(1, n_domains + 1)]
    return pd.DataFrame(
        {
            "section": pd.Categorical.from_codes(tissue.section, sections),
            "site": pd.Categorical.from_codes(tissue.section, sites),
            "domain": pd.Categorical.from_codes(tissue.domains.argmax(1), domains),
        },
        index=[f"{section}_spot_{number}" for section in sections for number in range(1, n_spots + 1)],
    )


def _draw_tissue(n_sections: int, n_spots: int, n_domains: int, generator: np.random.Generator) -> _Tissue:
    coordinates, domains, sizes = [], [], []
    for _ in range(n_sections):
        lattice, place = _draw_outline(n_spots, generator)
        coordinates.append(SPACING * lattice)
        domains.append(_draw_domains(place, n_domains, generator))
        sizes.append(np.exp(0.25 * _draw_field(place, generator) + generator.normal(0, 0.25, n_spots)))
    return _Tissue(
        np.concatenate(coordinates),
        np.concatenate(domains),
        np.concatenate(sizes),
        generator.normal(size=(n_sections * n_spots, _N_PROGRAMMES)),
        np.repeat(np.arange(n_sections), n_spots),
    )


def _draw_outline(n_spots: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Points of a hexagonal lattice within an uneven outline, in units of the lattice and within -1 to 1."""
    side, step = math.ceil(1.6 * math.sqrt(n_spots)), math.sqrt(0.75)
    column, row = np.meshgrid(np.arange(side), np.arange(math.ceil(side / step)))
    lattice = np.column_stack([(column + 0.5 * (row % 2)).ravel(), step * row.ravel()])
    place = 2 * (lattice - lattice.mean(0)) / side
    stretch = generator.uniform(0.8, 1.25)
    reach = np.hypot(place[:, 0] * stretch, place[:, 1] / stretch) * (1 + 0.12 * _draw_field(place, generator))
    own = np.sort(np.argsort(reach)[:n_spots])
    return lattice[own] - lattice[own].min(0), place[own] / np.abs(place[own]).max()


def _draw_domains(place: np.ndarray, n_domains: int, generator: np.random.Generator) -> np.ndarray:
    """Shares of the domains in each spot: bent layers, and round niches of the last domain."""
    angle = generator.uniform(0, 2 * np.pi)
    depth = place @ [math.cos(angle), math.sin(angle)] + 0.2 * _draw_field(place, generator)
    borders = np.quantile(depth, np.cumsum(generator.dirichlet(np.full(n_domains - 1, 12.0)))[:-1])
    beyond = expit((depth[:, None] - borders) / _BORDER)
    layers = -np.diff(beyond, axis=1, prepend=1, append=0)
    niches = place[generator.choice(len(place), _N_NICHES, replace=False)]
    distance = np.linalg.norm(place[:, None] - niches, axis=2).min(1)
    within = expit((np.quantile(distance, 1 / n_domains) - distance) / _BORDER)
    return np.column_stack([layers * (1 - within[:, None]), within])


def _draw_field(place: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Smooth random field, a sum of waves, with a variance of about 1."""
    waves, phases = generator.normal(0, 2.0, (6, 2)), generator.uniform(0, 2 * np.pi, 6)
    return np.cos(place @ waves.T + phases).sum(1) / math.sqrt(3)


def _look_alikes(name: str, n_domains: int) -> np.ndarray:
    """Group of each domain; the modality hardly separates the two of a group."""
    pairs = np.arange(n_domains) // 2
    return {"rna": pairs, "adt": np.roll(pairs, 1), "atac": np.arange(n_domains) % -(-n_domains // 2)}[name]


def _draw_assay(
    name: str, tissue: _Tissue, n_features: int, sizes: tuple[float, float, float], generator: np.random.Generator
) -> AnnData:
    """Counts of one modality in all sections."""
    assay, (effect, faint, section_effect) = _ASSAYS[name], sizes
    groups = _look_alikes(name, tissue.domains.shape[1])
    informative = generator.random(n_features) < assay.informative
    of_group = generator.normal(size=(groups.max() + 1, n_features))
    of_domain = generator.normal(size=(len(groups), n_features))
    changes = effect * assay.effect * informative * (of_group[groups] + faint * of_domain)
    loadings = generator.normal(0, 0.35, (_N_PROGRAMMES, n_features))
    loadings *= generator.random(loadings.shape) < 0.3
    baseline = generator.normal(0, assay.spread, n_features)
    counts = []
    for own in (tissue.section == section for section in np.unique(tissue.section)):
        offsets = generator.normal(0, section_effect, n_features)
        share = np.exp(baseline + offsets + tissue.domains[own] @ changes + tissue.programmes[own] @ loadings)
        share /= share.sum(1, keepdims=True)
        share += assay.background * (share.mean(0) - share)
        depth = assay.depth * np.exp(generator.normal(0, 0.3)) * tissue.size[own, None]
        noise = generator.gamma(1 / assay.noise, assay.noise, share.shape)
        counts.append(sparse.csr_matrix(generator.poisson(depth * share * noise).astype(np.float32)))
    features = [f"{assay.prefix}{number}" for number in range(1, n_features + 1)]
    var = pd.DataFrame({"informative": informative}, index=features)
    return ad.AnnData(sparse.vstack(counts, format="csr"), var=var)
