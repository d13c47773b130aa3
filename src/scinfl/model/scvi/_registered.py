"""What a model of scvi-tools over sites is set up with, and the network that follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi.data import AnnDataManager
from scvi.data.fields import LayerField

from scinfl._checks import complete_column, first_of, obs_column
from scinfl.model.base._cells import owned, sites_of
from scinfl.model.base._labels import check_known_labels, check_labels, ordered_field, register
from scinfl.model.base._model import FederatedModel
from scinfl.model.base._registry import categories_of
from scinfl.model.scvi._cells import CountCells, counts_of
from scinfl.model.scvi._classes import SUPPORTED, checked_arguments, refusal, supported
from scinfl.model.scvi._features import modalities_of
from scinfl.model.scvi._network import ScviNetwork
from scinfl.model.scvi._template import Agreed

_SCHEMES = (
    "modules of scvi-tools read the site beside the inputs of their linear layers and of no others, so that the key "
    "cannot act inside of them; 'coordinate' acts on what leaves a site, and the network that is trained stays plain"
)


class RegisteredScvi(FederatedModel):
    """A network of scvi-tools for sites, labels and features that were agreed first: no constructor reads cells."""

    module: ScviNetwork
    _columns_to_train = ("site_key", "labels_key", "group_key")

    def __init__(
        self,
        adata: AnnData | None = None,
        *,
        class_name: str = "SCVI",
        arguments: Mapping[str, Any] | None = None,
        modalities: Mapping[str, int] | None = None,
        key_scheme: str | None = "coordinate",
        rng: int = 0,
        registry: dict | None = None,
    ) -> None:
        if key_scheme not in ("coordinate", None):
            msg = f"Expected `key_scheme` of 'coordinate' or None, found {key_scheme!r}: {_SCHEMES}."
            raise ValueError(msg)
        self._class_name, self._arguments = class_name, checked_arguments(class_name, arguments or {})
        if modalities is None and adata is not None:
            modalities = modalities_of(adata, class_name, supported(class_name))
        self._modalities = dict(modalities or {})
        super().__init__(adata, key_scheme=key_scheme, rng=rng, registry=registry)
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        *,
        site_key: str | None = None,
        labels_key: str | None = None,
        unlabeled_category: str | None = None,
        group_key: str | None = None,
        layer: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Register the AnnData fields with counts, sites and labels for this model.

        Parameters
        ----------
        adata
            Cells × features, raw counts.
        site_key
            Column of ``adata.obs`` with the site, which is the batch of scvi-tools; ``None`` trains one site.
        labels_key
            Column of ``adata.obs`` with labels.
        unlabeled_category
            Label of cells that have none.
        group_key
            Column of ``adata.obs`` with patients or donors, see :func:`scinfl.model.from_scvi`.
        layer
            Layer to use instead of ``adata.X``.
        kwargs
            ``source_registry`` of another data set, to take its codes.

        Raises
        ------
        KeyError
            If a column or layer does not exist.
        TypeError
            If the data are no AnnData.
        ValueError
            If counts, labels, sites or feature names cannot be used; the message names them.
        """
        setup_args = cls._get_setup_method_args(**{k: v for k, v in locals().items() if k != "kwargs"})
        if not isinstance(adata, AnnData):
            msg = (
                f"Expected an AnnData of counts, found a {type(adata).__name__}. Of a MuData take one modality "
                "(`mdata['rna']`), or put several into one table with `scinfl.pp.join_modalities`."
            )
            raise TypeError(msg)
        owned(adata)
        counts_of(adata, layer)
        known = kwargs.get("source_registry")
        sites = sites_of(adata, site_key, at_least=2 if known is None else 1)
        if known is not None and site_key is not None and not kwargs.get("extend_categories"):
            _check_known_sites(sites, categories_of(known, "batch") or [], site_key)
        if labels_key is not None:
            labels = obs_column(adata, labels_key, "labels_key")
            check_labels(labels, sites, labels_key, unlabeled_category, at_least=1 if known is None else 0)
            check_known_labels(labels, categories_of(known, "labels"), labels_key)
        if group_key is not None:
            complete_column(adata, group_key, "group_key", "a group for every row")
        fields = [
            LayerField("X", layer, is_count_data=False),  # checked above, in more forms than scvi-tools takes
            ordered_field("batch", site_key),
            ordered_field("labels", labels_key, unlabeled_category),
        ]
        manager = AnnDataManager(fields=fields, setup_method_args=setup_args)
        register(manager, adata, **kwargs)
        cls.register_manager(manager)

    @property
    def _agreed(self) -> Agreed:
        return Agreed.of(self._class_name, self._arguments, self.registry_, self._modalities)

    def _make_module(self) -> ScviNetwork:
        agreed = self._agreed
        if agreed.name in SUPPORTED:
            return self._network_of(agreed)
        try:
            return self._network_of(agreed)
        except Exception as error:
            reason = (
                f"it cannot be made and trained on counts, labels and sites alone ({type(error).__name__}: {error})"
            )
            raise refusal(agreed.name, reason) from error

    @staticmethod
    def _network_of(agreed: Agreed) -> ScviNetwork:
        native, own = agreed.native().module, supported(agreed.name)
        return ScviNetwork(
            native,
            agreed.axes_by_site(native),
            sites=agreed.sites,
            features=agreed.features,
            labels=agreed.labels,
            modalities=agreed.modalities,
            classifies=own.classifies,
            is_mosaic=own.is_mosaic,
        )

    @property
    def class_name(self) -> str:
        """Class of scvi-tools."""
        return self._class_name

    @property
    def sites(self) -> list[str]:
        """Sites that the network has columns for, in their order."""
        return list(self._agreed.sites)

    @property
    def labels(self) -> list[str]:
        """Labels that the network distinguishes, in order."""
        unlabeled = str(self._setup_args()["unlabeled_category"])
        return [label for label in self._agreed.labels if label != unlabeled]

    @property
    def labels_key(self) -> str | None:
        """Column of ``adata.obs`` with the labels."""
        return self._setup_args()["labels_key"]

    @property
    def site_key(self) -> str | None:
        """Column of ``adata.obs`` with the site."""
        return self._setup_args()["site_key"]

    def _training_cells(self, device: torch.device) -> CountCells:
        """All cells with their codes."""
        codes, labels = (np.asarray(self.data_registry(what)).ravel() for what in ("batch", "labels"))
        setup = self._setup_args()
        matrix, group_key = counts_of(self._adata, setup["layer"]), setup.get("group_key")
        groups = None if group_key is None else self._adata.obs[group_key].astype(str).to_numpy()
        return CountCells(matrix, np.arange(len(codes)), labels, device, codes, groups)

    def _cells_of(self, adata: AnnData) -> CountCells:
        """Any cells, with the codes that the encoder reads."""
        matrix, codes = counts_of(adata, self._setup_args()["layer"]), self._label_codes(adata)
        return CountCells(matrix, np.arange(adata.n_obs), codes, self.device, self._site_codes(adata))

    def _check_columns(self, adata: AnnData) -> None:
        """Refuse cells of sites, or with labels, that the network does not know."""
        counts_of(adata, self._setup_args()["layer"])
        if self.site_key is not None:
            _check_known_sites(sites_of(adata, self.site_key, at_least=1), self.sites, self.site_key)
        key, may_lack_labels = self.labels_key, self._setup_args()["unlabeled_category"] is not None
        if key is not None and (key in adata.obs or not may_lack_labels):
            check_known_labels(obs_column(adata, key, "labels_key"), categories_of(self.registry_, "labels"), key)

    def _site_codes(self, adata: AnnData) -> np.ndarray:
        """Codes of sites, which matter only where the encoder reads them."""
        if self.site_key is None or not self._arguments.get("encode_covariates"):
            return np.zeros(adata.n_obs)
        sites = sites_of(adata, self.site_key, at_least=1).astype(str)
        _check_known_sites(sites, self.sites, self.site_key)
        return np.array([self.sites.index(site) for site in sites])

    def _label_codes(self, adata: AnnData) -> np.ndarray:
        """Codes of labels, which matter only where the encoder reads them."""
        own = supported(self._class_name)
        if not own.labels or own.classifies:
            return np.zeros(adata.n_obs)
        labels = obs_column(adata, str(self.labels_key), "labels_key").astype(str)
        check_known_labels(labels, self.labels, str(self.labels_key))
        return np.array([self.labels.index(label) for label in labels])

    def _summary(self) -> str:
        return f"{self._class_name} of scvi-tools, {len(self._agreed.sites)} sites"


def _check_known_sites(sites: pd.Series, known: Sequence[str], site_key: str) -> None:
    """Refuse sites that the network has no columns for."""
    if unknown := sorted(set(sites.astype(str)) - set(known)):
        msg = (
            f"Expected sites of the model in adata.obs['{site_key}'], found {first_of(unknown)}. Map the cells of "
            "a new site with `scinfl.model.map_query`."
        )
        raise ValueError(msg)
