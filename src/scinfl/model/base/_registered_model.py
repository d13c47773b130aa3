"""A model that knows the data that it was set up with: the bridge to scvi-tools."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import anndata as ad
import pandas as pd
from anndata import AnnData
from scvi.model.base import BaseModelClass

from scinfl._checks import an_anndata, first_of, indexable, same_features, with_mapped_values
from scinfl.model.base._registry import features_of, setup_of, state_of

logger = logging.getLogger(__name__)


class RegisteredModel(BaseModelClass):
    """A model of data that went through its ``setup_anndata``; takes any data with the same features later."""

    _columns_to_train: ClassVar[tuple[str, ...]] = ("labels_key", "site_key", "group_key")
    """Setup arguments that name columns of ``obs`` without which there is no training."""

    @classmethod
    def _registry_of(cls, adata: Any) -> dict[str, Any]:
        """Registry of data that were set up."""
        return cls._get_most_recent_anndata_manager(adata, required=True).registry

    @property
    def var_names(self) -> pd.Index:
        """Features that the model was trained on, in order."""
        return pd.Index(state_of(self.registry_, "X")["column_names"])

    def _setup_args(self) -> dict[str, Any]:
        return setup_of(self.registry_)

    def _validate_anndata(self, adata: AnnData | None = None, copy_if_view: bool = True) -> AnnData:  # noqa: FBT001, FBT002
        """Data to predict, with the model's features in the model's order. Views, labels and sites do not matter."""
        del copy_if_view
        if adata is None:
            adata = self._adata
        if adata is None:
            msg = "Expected data, found none: the model was loaded without. Pass `adata`."
            raise ValueError(msg)
        if "X" in features_of(self.registry_):
            an_anndata(adata)
        adata = self._in_own_order(adata)
        self._check_features(adata, self.registry_)
        return adata

    def _in_own_order(self, adata: Any) -> Any:
        """The model's features in the model's order where an AnnData has all of them, among others or not."""
        names = features_of(self.registry_).get("X")
        if not isinstance(adata, AnnData) or names is None or adata.var_names.equals(names):
            return adata
        if not adata.var_names.is_unique or not names.isin(adata.var_names).all():
            return adata
        logger.warning("Took the model's %d features, in its order, from the %d of the data.", len(names), adata.n_vars)
        return indexable(with_mapped_values(adata), inplace=False)[:, names]

    @classmethod
    def _check_features(cls, adata: AnnData, registry: dict[str, Any]) -> None:
        """Refuse data without the features of a registry, in its order."""
        same_features(adata.var_names, features_of(registry)["X"])

    @classmethod
    def _set_up_again(cls, adata: AnnData, registry: dict[str, Any], setup: dict[str, Any]) -> None:
        """Set data up as those of a loaded model were."""
        cls.setup_anndata(adata, source_registry=registry, **setup)

    def add_site(self, adata: AnnData, *, site: str | None = None) -> None:
        """Let another site take part when training goes on: the next :meth:`train` starts from the present state.

        The new site may lack labels or perturbations of the others; it may not bring new ones, for which the network
        has no output. Across machines the same is `continues = true` in the job.

        Parameters
        ----------
        adata
            Cells of the new site, with the model's features in order and the columns that the model was set up with.
        site
            Name of the site; by default the column of sites in ``adata`` says it.

        Raises
        ------
        RuntimeError
            If the model is untrained, or has no cells of the other sites.
        ValueError
            If the site takes part already, names of cells occur twice, or features or labels differ.

        Examples
        --------
        >>> import scinfl as si
        >>> cells = si.datasets.pbmc()
        >>> si.pp.split_sites(cells, n_sites=4, rng=0)
        >>> first = cells[cells.obs["site"] != "site_3"].copy()
        >>> later = cells[cells.obs["site"] == "site_3"].copy()
        >>> si.model.Classifier.setup_anndata(first, labels_key="bulk_labels", site_key="site")
        >>> model, key = si.model.Classifier(first, n_hidden=16), si.privacy.Key.generate()
        >>> model.train(2, key=key, progress=False)
        >>> model.add_site(later)
        >>> model.train(2, key=key, progress=False)
        >>> int(model.history["n_sites"].iloc[-1])
        4
        """
        self._attach(with_further_site(self, adata, site), self._setup_args())

    def _attach(self, adata: Any, setup: Mapping[str, Any]) -> None:
        """Train on these data from now on."""
        self._set_up_again(adata, self.registry_, dict(setup))
        self._adata = adata
        self._adata_manager = self._get_most_recent_anndata_manager(adata, required=True)
        self._register_manager_for_instance(self._adata_manager)

    @classmethod
    def _can_train_on(cls, adata: AnnData, setup: dict[str, Any]) -> bool:
        """Whether data have all that the setup of a loaded model names."""
        columns = [setup.get(name) for name in cls._columns_to_train]
        return not adata.is_view and all(column is None or column in adata.obs for column in columns)

    def check_trained(self) -> None:
        """Refuse an untrained model.

        Raises
        ------
        RuntimeError
            If the model is untrained.
        """
        if not self.is_trained_:
            msg = "Expected a trained model, found an untrained one. Call `train` first."
            raise RuntimeError(msg)


def with_further_site(model: RegisteredModel, adata: AnnData, site: str | None) -> AnnData:
    """Cells of a model and of a site that took no part yet."""
    site_key = model._setup_args()["site_key"]
    if not model.is_trained_ or model._adata is None or model._adata_manager is None or site_key is None:
        msg = (
            "Expected a trained model with the cells of its sites, found one without. Load it with the cells of "
            "the other sites, or make a new model of all."
        )
        raise RuntimeError(msg)
    model._check_features(adata, model.registry_)
    own = adata.copy()
    if site is not None:
        own.obs[site_key] = site
    new, known = (set(cells.obs[site_key].astype(str)) for cells in (own, model._adata))
    if both := sorted(new & known):
        msg = f"Expected a site that takes no part yet, found {first_of(both)}. Name the new one with `site=`."
        raise ValueError(msg)
    if twice := sorted(set(own.obs_names) & set(model._adata.obs_names)):
        msg = (
            f"Expected names of cells that occur once, found {len(twice)} that other sites have: "
            f"{first_of(twice)}. Put the site before them: `adata.obs_names = 'west-' + adata.obs_names`."
        )
        raise ValueError(msg)
    return ad.concat([model._adata, own], merge="first", uns_merge="first")
