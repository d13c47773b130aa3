"""Map the cells of a new site onto a trained reference."""

from __future__ import annotations

import os

import torch
from anndata import AnnData

from scinfl._checks import first_of, number_between, same_features, whole_number
from scinfl.model.base._cells import sites_of
from scinfl.model.scvi._model import ScviModel
from scinfl.privacy import Key


def map_query(
    model: ScviModel | str | os.PathLike[str],
    adata: AnnData,
    key: Key | None = None,
    *,
    n_epochs: int = 100,
    lr: float = 1e-2,
    batch_size: int = 128,
    rng: int = 0,
) -> ScviModel:
    """Map the cells of a new site onto a trained model: nothing is sent, and the codes of other sites stay as they are.

    The network gets columns for the new site, which start from the mean of those of the other sites and are trained on
    its cells alone, with all other parameters frozen and without weight decay (reference mapping by architectural
    surgery, Lotfollahi et al. 2022, Nature Biotechnology 40:121). Where the encoder does not read the site, as by
    default, the codes of the new cells follow from the reference alone, and the columns serve the decoder.

    Parameters
    ----------
    model
        Trained model, or the folder of a saved one.
    adata
        Cells of one new site: raw counts, the model's features in order, and its column of sites. Labels need not be
        known: without their column all cells count as unlabelled. Registered for the new model.
    key
        Key of the model, where it has one.
    n_epochs, lr, batch_size
        Training of the new columns by Adam.
    rng
        Seed of batches and latent samples.

    Returns
    -------
    A model of the old sites and the new one, over ``adata``, unlocked with the same key.

    Raises
    ------
    ValueError
        If the site takes part already, the model was trained without sites, or the key is another one.

    Examples
    --------
    >>> import numpy as np, scinfl as si
    >>> adata = si.datasets.pbmc()
    >>> adata.X = np.random.default_rng(0).poisson(1.0, adata.shape).astype("float32")  # your counts
    >>> si.pp.split_sites(adata, n_sites=4, rng=0)
    >>> old = adata[adata.obs["site"] != "site_3"].copy()
    >>> new = adata[adata.obs["site"] == "site_3"].copy()
    >>> model, key = si.model.from_scvi("SCVI", old, site_key="site"), si.privacy.Key.generate()
    >>> model.train(n_rounds=2, key=key, progress=False)
    >>> mapped = si.model.map_query(model, new, key, n_epochs=2)
    >>> mapped.sites
    ['site_1', 'site_2', 'site_4', 'site_3']
    """
    whole_number("n_epochs", n_epochs, 0)
    number_between("lr", lr, 0, 10, open_low=True)
    whole_number("batch_size", batch_size, 1)
    reference = model if isinstance(model, ScviModel) else ScviModel.load(model)
    _check_new_site(reference, adata)
    was_locked = reference.is_locked
    if key is not None:
        reference.unlock(key)
    try:
        mapped = _with_columns(reference, adata)
        _train(mapped, n_epochs, lr, batch_size, rng)
        mapped._lock_as(reference, key)
    finally:
        if was_locked:
            reference.lock()
    return mapped


def _check_new_site(reference: ScviModel, adata: AnnData) -> None:
    """Refuse other features than those of a reference, sites that take part in it, and several sites."""
    reference.check_trained()
    same_features(adata.var_names, reference.var_names)
    if reference.site_key is None:
        msg = "Expected a model of several sites to map onto, found one that was trained with `site_key=None`."
        raise ValueError(msg)
    found = sorted(set(sites_of(adata, reference.site_key, at_least=1).astype(str)))
    if known := sorted(set(found) & set(reference.sites)):
        msg = f"Expected a site that takes no part in the model, found {first_of(known)}. Name the new one otherwise."
        raise ValueError(msg)
    if len(found) != 1:
        msg = f"Expected one new site, found {len(found)}: {first_of(found)}. Map one after the other."
        raise ValueError(msg)


def _with_columns(reference: ScviModel, adata: AnnData) -> ScviModel:
    """An untrained plain model of one site more, with the weights of the reference."""
    plain = reference._plain_network().state_dict()
    setup = dict(reference._setup_args())
    if setup["unlabeled_category"] is not None and setup["labels_key"] not in adata.obs:
        adata.obs[setup["labels_key"]] = setup["unlabeled_category"]
    if setup.get("group_key") not in adata.obs:
        setup["group_key"] = None
    ScviModel.setup_anndata(adata, source_registry=reference.registry_, extend_categories=True, **setup)
    mapped = ScviModel(adata, **reference.init_params_["non_kwargs"])
    mapped.module.load_state_dict(plain, strict=False)
    with torch.no_grad():
        for parts in mapped.module.site_columns:
            *others, own = parts.columns  # type: ignore[misc]
            own.weight.copy_(torch.stack([column.weight for column in others]).mean(0))
    return mapped


def _train(mapped: ScviModel, n_epochs: int, lr: float, batch_size: int, rng: int) -> None:
    """Train the columns of the last site on all cells."""
    network = mapped.module.eval()  # without dropout
    trained = [p for p in network.parameters() if p.requires_grad]
    own = [p for parts in network.site_columns for p in parts.columns[-1].parameters() if p.requires_grad]  # type: ignore[index, union-attr]
    for parameter in trained:
        parameter.requires_grad_(False)
    for parameter in own:
        parameter.requires_grad_(True)
    cells, optimizer = mapped._training_cells(mapped.device), torch.optim.Adam(own, lr, weight_decay=0.0)
    shuffle = torch.Generator().manual_seed(rng)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng)
        for _ in range(n_epochs):
            for batch in cells.batches(batch_size, shuffle):
                optimizer.zero_grad()
                network.loss(batch).backward()
                optimizer.step()
    for parameter in trained:
        parameter.requires_grad_(True)
