"""Make a model of scvi-tools that is trained over sites."""

from __future__ import annotations

from typing import Any

from anndata import AnnData

from scinfl.model.scvi._classes import check_labels_named
from scinfl.model.scvi._model import ScviModel


def from_scvi(
    kind: type | str,
    adata: AnnData,
    *,
    site_key: str | None,
    labels_key: str | None = None,
    unlabeled_category: str | None = None,
    group_key: str | None = None,
    layer: str | None = None,
    key_scheme: str | None = "coordinate",
    rng: int = 0,
    **arguments: Any,
) -> ScviModel:
    """Make a model of scvi-tools that is trained over sites.

    Parameters
    ----------
    kind
        Class of scvi-tools or its name: ``SCVI``, ``SCANVI``, ``LinearSCVI``, ``PEAKVI``, ``POISSONVI``, ``TOTALVI``,
        ``MULTIVI``, ``CondSCVI``, or another that reads counts and sites alone and passes the checks of the guide.
    adata
        Cells × features, raw counts; registered for this model. For ``TOTALVI`` and ``MULTIVI`` the features of all
        modalities, with ``adata.var["feature_types"]`` (see :func:`scinfl.pp.join_modalities`).
    site_key
        Column of ``adata.obs`` with the site, which is the batch of scvi-tools; ``None`` trains one site (pooled).
    labels_key
        Column of ``adata.obs`` with labels, which ``SCANVI`` and ``CondSCVI`` need.
    unlabeled_category
        Label of cells that have none, which ``SCANVI`` needs; it need not occur.
    group_key
        Column of ``adata.obs`` (patient, donor) whose cells are kept together when a site sets validation cells aside,
        and which :class:`~scinfl.privacy.SampleDP` guards as a whole.
    layer
        Layer to use instead of ``adata.X``.
    key_scheme
        ``"coordinate"``, or ``None`` for the plain network, the baseline of every comparison.
    rng
        Seed of the initial parameters.
    arguments
        Arguments of the class, such as ``n_latent``.

    Returns
    -------
    Untrained model.

    Raises
    ------
    TypeError
        If ``kind`` is no class and no name, or the data are no AnnData.
    ValueError
        If the class or an argument cannot be trained over sites, with the reason, or the data cannot be used.

    Examples
    --------
    >>> import numpy as np, scvi, scinfl as si
    >>> adata = si.datasets.pbmc()
    >>> adata.X = np.random.default_rng(0).poisson(1.0, adata.shape).astype("float32")  # your counts
    >>> si.pp.split_sites(adata, n_sites=3, rng=0)
    >>> model = si.model.from_scvi(scvi.model.SCVI, adata, site_key="site", n_latent=5)
    >>> model.train(n_rounds=2, key=si.privacy.Key.generate(), progress=False)
    >>> model.get_latent_representation().shape
    (700, 5)
    >>> type(model.to_scvi()).__name__
    'SCVI'
    """
    if not isinstance(kind, str | type):
        msg = f"Expected a class of scvi-tools or its name, found a {type(kind).__name__} object. Pass its class."
        raise TypeError(msg)
    name = kind if isinstance(kind, str) else kind.__name__
    check_labels_named(name, labels_key=labels_key, unlabeled_category=unlabeled_category)
    ScviModel.setup_anndata(
        adata,
        site_key=site_key,
        labels_key=labels_key,
        unlabeled_category=unlabeled_category,
        group_key=group_key,
        layer=layer,
    )
    return ScviModel(adata, class_name=name, arguments=arguments, key_scheme=key_scheme, rng=rng)
