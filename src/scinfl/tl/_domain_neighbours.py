"""Which domains lie next to each other, by squidpy."""

from __future__ import annotations

from anndata import AnnData

from scinfl import _names
from scinfl._checks import first_of, obs_column, whole_number
from scinfl.model.spamosaic import CONNECTIVITIES


def domain_neighbours(
    adata: AnnData,
    *,
    domain_key: str = _names.DOMAIN,
    section_key: str | None = None,
    n_permutations: int = 1000,
    rng: int = 0,
) -> None:
    """Score how often spots of two domains are neighbours, against domains that are shuffled.

    :func:`squidpy.gr.nhood_enrichment` on the graph in ``.obsp["spatial_connectivities"]``, which
    :func:`scinfl.tl.embed` or ``squidpy.gr`` writes. ``squidpy.pl.nhood_enrichment(adata, "infl_domain")`` draws it in
    the colours of :func:`scinfl.tl.cluster`, which stay. Spots without a domain are left out.

    Sets the following field:

    ``.uns["infl_domain_nhood_enrichment"]``
        ``"zscore"`` and ``"count"`` (domains × domains, in the order of the categories).

    Parameters
    ----------
    adata
        Spots with domains and a spatial graph.
    domain_key
        Column of ``.obs`` with the domains.
    section_key
        Column of ``.obs`` that names the section; domains are then shuffled within sections.
    n_permutations
        How often domains are shuffled.
    rng
        Seed.

    Raises
    ------
    KeyError
        If the domains, the section column or the graph are missing.
    ValueError
        If there are fewer than two domains.

    References
    ----------
    Palla et al. (2022), Squidpy: a scalable framework for spatial omics analysis, Nature Methods 19:171-178.

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> from sklearn.neighbors import kneighbors_graph
    >>> adata = si.datasets.pbmc()
    >>> places = np.random.default_rng(0).random((700, 2))
    >>> adata.obsp["spatial_connectivities"] = kneighbors_graph(places, 6)
    >>> si.tl.domain_neighbours(adata, domain_key="bulk_labels", n_permutations=20)
    >>> adata.uns["bulk_labels_nhood_enrichment"]["zscore"].shape
    (10, 10)
    """
    whole_number("n_permutations", n_permutations, 2)
    domains = obs_column(adata, domain_key, "domain_key").astype("category").cat.remove_unused_categories()
    if (n := len(domains.cat.categories)) < 2:
        msg = f"Expected at least 2 domains in adata.obs['{domain_key}'], found {n}. Name another column."
        raise ValueError(msg)
    if CONNECTIVITIES not in adata.obsp:
        msg = (
            f"Expected a spatial graph in adata.obsp['{CONNECTIVITIES}'], found "
            f"{first_of(list(adata.obsp)) or 'none'}. Run `scinfl.tl.embed` with a SpaMosaic, or "
            "`squidpy.gr.spatial_neighbors_knn`."
        )
        raise KeyError(msg)
    known = domains.notna().to_numpy()
    spots = AnnData(obs=domains[known].to_frame(domain_key))
    spots.obsp[CONNECTIVITIES] = adata.obsp[CONNECTIVITIES][known][:, known]
    if section_key is not None:
        spots.obs[section_key] = obs_column(adata, section_key, "section_key")[known].astype("category")

    import squidpy as sq

    found = sq.gr.nhood_enrichment(
        spots,
        domain_key,
        library_key=section_key,
        n_perms=n_permutations,
        seed=rng,
        n_jobs=1,
        show_progress_bar=False,
        copy=True,
    )
    adata.uns[f"{domain_key}_nhood_enrichment"] = {"zscore": found.zscore, "count": found.counts}
