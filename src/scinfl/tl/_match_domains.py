"""One colour for one meaning: domains in the colours of the labels that they agree with."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy.optimize import linear_sum_assignment

from scinfl import _names
from scinfl._checks import obs_column
from scinfl._colours import category_colours


def match_domains(adata: AnnData | MuData, labels_key: str, *, domain_key: str = _names.DOMAIN) -> None:
    """Give domains the colours of the labels that they share most spots with, for figures side by side.

    Labels and domains are paired one to one so that as many spots as possible are in a pair (the Hungarian method).
    Domains beyond the number of labels get colours that no label has. Only colours change: names of domains, and
    scores that compare them with labels, stay as they are.

    Sets the following fields:

    ``.uns["infl_domain_colors"]``
        A colour a domain.
    ``.uns[f"{labels_key}_colors"]``
        Colours of as many categories, if there are none yet.
    ``.uns["infl"]["match_domains"]``
        The label of each domain that has one.

    Parameters
    ----------
    adata
        Spots with labels and domains.
    labels_key
        Column of ``.obs`` with the labels, an annotation by hand for example.
    domain_key
        Column of ``.obs`` with the domains.

    Raises
    ------
    KeyError
        If a column is missing.

    References
    ----------
    Kuhn (1955), The Hungarian method for the assignment problem, Naval Research Logistics Quarterly 2:83-97.

    Examples
    --------
    >>> import scinfl as si
    >>> adata = si.datasets.mosaic_simulated(1, n_spots=100, modalities=["rna"])["rna"]
    >>> adata.obs["infl_domain"] = adata.obs["domain"].cat.rename_categories(lambda name: f"not {name}")
    >>> si.tl.match_domains(adata, "domain")
    >>> adata.uns["infl"]["match_domains"]["not domain_2"]
    'domain_2'
    """
    labels = obs_column(adata, labels_key, "labels_key").astype("category")
    domains = obs_column(adata, domain_key, "domain_key").astype("category")
    names, found = labels.cat.categories, domains.cat.categories
    shared = pd.crosstab(domains, labels).reindex(index=found, columns=names, fill_value=0)
    pairs = dict(zip(*linear_sum_assignment(-shared.to_numpy()), strict=True))
    known = list(adata.uns.get(f"{labels_key}_colors", ()))
    known = known if len(known) == len(names) else category_colours(len(names))
    rest = iter([colour for colour in category_colours(len(names) + len(found)) if colour not in known])
    adata.uns[f"{labels_key}_colors"] = known
    adata.uns[f"{domain_key}_colors"] = [
        known[pairs[number]] if number in pairs else next(rest) for number in range(len(found))
    ]
    adata.uns.setdefault(_names.UNS, {})["match_domains"] = {
        str(found[number]): str(names[label]) for number, label in pairs.items()
    }
