"""Spatial domains: clusters of an embedding that all sections share."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from scinfl import _names
from scinfl._checks import complete_column, first_of, number_between, one_of, unmasked, warn, whole_number
from scinfl._colours import category_colours
from scinfl._spelling import argument
from scinfl.tl._leiden import leiden

_METHODS = ("kmeans", "leiden", "gaussian")


def cluster(
    adata: AnnData | MuData,
    n_clusters: int | None = None,
    *,
    method: str = "kmeans",
    use_rep: str = _names.EMBEDDING,
    section_key: str | None = None,
    key_added: str = _names.DOMAIN,
    resolution: float = 1.0,
    n_neighbours: int = 15,
    n_init: int = 10,
    rng: int = 0,
) -> None:
    """Cluster cells or spots by their embedding.

    All sections are clustered at once in the embedding that they share, so a domain has one name in all of them and
    nothing has to be matched afterwards. Domains are named ``"0"``, ``"1"``, … from the largest to the smallest.

    Sets the following fields:

    ``.obs["infl_domain"]``
        Domain (categorical); missing where the embedding is NaN throughout, as that of spots outside of the tissue.
    ``.uns["infl"]["cluster"]``
        Settings and the number of domains; the resolution that was reached, with Leiden.
    ``.uns["infl_domain_colors"]``
        A colour for each domain.

    Parameters
    ----------
    adata
        Data with an embedding in ``.obsm``; of a MuData its own ``.obsm``, and the domains go to its own ``.obs``.
    n_clusters
        Number of domains. Leiden takes ``resolution`` instead if this is None.
    method
        ``"kmeans"``; ``"gaussian"``, a mixture of normal distributions of one shape (the model "EEE" of mclust), at the
        optimum next to k-means; or ``"leiden"`` on a graph of nearest neighbours, which needs the package igraph.
    use_rep
        Embedding in ``.obsm``.
    section_key
        Column of ``.obs`` that names the section. A section that shares no domain with any other gives a warning: its
        embedding is not integrated with theirs.
    key_added
        Column of ``.obs`` to write.
    resolution
        Of Leiden; higher gives more domains. With ``n_clusters``, where the search for their number starts.
    n_neighbours
        Nearest neighbours in Leiden's graph.
    n_init
        Starts of ``"kmeans"`` and ``"gaussian"``, of which the best is kept.
    rng
        Seed.

    Raises
    ------
    KeyError
        If the embedding or the section column is missing.
    ValueError
        If the number of clusters is missing, more than there are cells, or not reached; if the embedding holds NaN.
    ImportError
        If `method` is Leiden and igraph is not installed.

    Examples
    --------
    >>> import scinfl as si
    >>> adata = si.datasets.pbmc()
    >>> adata.obsm["X_infl"] = adata.obsm["X_pca"]
    >>> si.tl.cluster(adata, 4)
    >>> list(adata.obs["infl_domain"].cat.categories)
    ['0', '1', '2', '3']
    """
    one_of("method", method, _METHODS)
    for name, value in (("n_neighbours", n_neighbours), ("n_init", n_init)):
        whole_number(name, value, 1)
    number_between("resolution", resolution, 0, 1000, open_low=True)
    X = _embedding(adata, use_rep)
    known = ~np.isnan(X).all(1)
    X = X[known]
    _check_number(n_clusters, len(X), method)
    settings: dict[str, object] = {"method": method, "use_rep": use_rep, "key_added": key_added, "rng": rng}
    if section_key is not None:
        sections = complete_column(adata, section_key, "section_key", "a section for every row")
        settings["section_key"] = section_key
    if n_clusters is None or method == "leiden":
        found, settings["resolution"] = leiden(X, n_clusters, resolution, n_neighbours, rng)
        settings["n_neighbours"] = n_neighbours
    else:
        fit = _kmeans if method == "kmeans" else _gaussian
        found, settings["n_init"] = fit(X, n_clusters, n_init, rng), n_init
    domains = np.full(adata.n_obs, -1)
    domains[known] = _by_size(found)
    settings["n_clusters"] = n_found = int(domains.max()) + 1
    if n_clusters is not None and n_found != n_clusters:
        msg = f"Expected {n_clusters} clusters that hold a cell, found {n_found}. Ask for fewer, or change `method`."
        raise ValueError(msg)
    if section_key is not None:
        _warn_of_sections_apart(sections[known], domains[known])
    adata.obs[key_added] = pd.Categorical.from_codes(domains, list(map(str, range(n_found))))
    adata.uns.setdefault(_names.UNS, {})["cluster"] = settings
    adata.uns[f"{key_added}_colors"] = category_colours(n_found)


def _embedding(adata: AnnData | MuData, use_rep: str) -> np.ndarray:
    if use_rep not in adata.obsm:
        msg = (
            f"Expected an embedding in adata.obsm[{use_rep!r}], found {first_of(list(adata.obsm)) or 'none'}. "
            "Write one with `scinfl.tl.embed`, or name another with `use_rep=`."
        )
        raise KeyError(msg)
    X = unmasked(adata.obsm[use_rep]).astype(np.float64)
    X = X[:, None] if X.ndim == 1 else X
    lacking = np.isnan(X).all(axis=1)
    if bad := int((~np.isfinite(X).all(1) & ~lacking).sum()):
        msg = (
            f"Expected finite values in adata.obsm[{use_rep!r}], found {bad} of {len(X)} cells with others. "
            "Drop these cells first."
        )
        raise ValueError(msg)
    if n := int(lacking.sum()):
        warn(f"{n} of {len(X)} cells have no embedding in adata.obsm[{use_rep!r}], and get no domain.")
    return X


def _check_number(n_clusters: int | None, n_cells: int, method: str) -> None:
    if n_clusters is None:
        if method == "leiden":
            return
        msg = (
            f"Expected {argument('n_clusters')} for the method {method!r}, found none. Pass it, or choose the method "
            "'leiden'."
        )
        raise ValueError(msg)
    whole_number("n_clusters", n_clusters, 1)
    if n_clusters > n_cells:
        msg = f"Expected {argument('n_clusters')} of at most the {n_cells} cells, found {n_clusters}."
        raise ValueError(msg)


def _kmeans(X: np.ndarray, n_clusters: int, n_init: int, rng: int) -> np.ndarray:
    with warnings.catch_warnings():
        # too few distinct cells for the clusters: counted and refused afterwards
        warnings.simplefilter("ignore", ConvergenceWarning)
        return KMeans(n_clusters, n_init=n_init, random_state=rng).fit_predict(X)


def _gaussian(X: np.ndarray, n_clusters: int, n_init: int, rng: int) -> np.ndarray:
    if len(X) == 1:
        return np.zeros(1, dtype=int)  # sklearn wants two
    # the model does not depend on the unit of the embedding, but sklearn's floor on variances does
    scaled = (X - X.mean(0)) / (X.std(0).max() or 1.0)
    mixture = GaussianMixture(n_clusters, covariance_type="tied", n_init=n_init, max_iter=500, random_state=rng)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Number of distinct clusters", ConvergenceWarning)
        return mixture.fit_predict(scaled)


def _by_size(found: np.ndarray) -> np.ndarray:
    codes, counts = np.unique(found, return_inverse=True, return_counts=True)[1:]
    rank = np.empty(len(counts), dtype=int)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    return rank[codes]


def _warn_of_sections_apart(sections: pd.Series, domains: np.ndarray) -> None:
    present = pd.crosstab(sections.to_numpy(), domains) > 0
    apart = present.index[~(present & (present.sum() > 1)).any(axis=1)]
    if len(present) > 1 and len(apart):
        msg = (
            f"Expected every section to share a domain with another, found none shared by {first_of(list(apart))}. "
            "Integrate the sections before clustering."
        )
        warn(msg)
