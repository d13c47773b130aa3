"""Write an embedding into AnnData."""

from __future__ import annotations

from anndata import AnnData
from mudata import MuData

from scinfl import _names
from scinfl.model import Classifier, ScviModel, SpaMosaic
from scinfl.tl._spatial_neighbours import write_neighbours


def embed(adata: AnnData | MuData, model: Classifier | ScviModel | SpaMosaic) -> None:
    """Embed cells with a trained and unlocked model, ready for ``sc.pp.neighbors(adata, use_rep="X_infl")``.

    Sets the following fields:

    ``.obsm["X_infl"]``
        Latent representation (cells × dimensions, float32).
    ``.uns["infl"]["embed"]``
        Fingerprint of the key.

    With a :class:`~scinfl.model.SpaMosaic` also the neighbours that spots are averaged over (of a MuData in each
    modality), for ``squidpy.gr``, unless there is a graph that something else wrote:

    ``.obsp["spatial_connectivities"]``, ``.obsp["spatial_distances"]``
        Ones, and distances in the unit of the coordinates (spots × spots).
    ``.uns["spatial_neighbors"]``
        Their names and parameters.

    Parameters
    ----------
    adata
        Data with the model's features, in any order and among others; of a MuData its
        own ``.obsm``.
    model
        Trained model.

    Examples
    --------
    >>> import scinfl as si
    >>> adata = si.datasets.pbmc()
    >>> si.pp.split_sites(adata, n_sites=3, rng=0)
    >>> si.model.Classifier.setup_anndata(adata, labels_key="bulk_labels", site_key="site")
    >>> model = si.model.Classifier(adata, n_hidden=8)
    >>> model.train(n_rounds=2, key=si.privacy.Key.generate(), progress=False)
    >>> si.tl.embed(adata, model)
    >>> adata.obsm["X_infl"].shape
    (700, 8)
    """
    if not hasattr(model, "get_latent_representation"):
        msg = (
            f"Expected a model with an embedding as `model`, found a {type(model).__name__}. Load a saved Classifier, "
            "SpaMosaic or model of scvi-tools."
        )
        raise TypeError(msg)
    adata.obsm[_names.EMBEDDING] = model.get_latent_representation(adata)
    adata.uns.setdefault(_names.UNS, {})["embed"] = {"key_fingerprint": model.key_fingerprint or "none"}
    if isinstance(model, SpaMosaic):
        write_neighbours(adata, model)
