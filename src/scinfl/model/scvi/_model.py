"""Train a model of scvi-tools over sites."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi.data import AnnDataManager
from scvi.data.fields import CategoricalObsField, LabelsWithUnlabeledObsField, LayerField

from scinfl import nn as keyed_nn
from scinfl._checks import first_of, obs_column, whole_number
from scinfl.federation import OwnedParts
from scinfl.federation.rounds import SpendsPrivacy
from scinfl.model.base._cells import owned, sites_of
from scinfl.model.base._labels import check_known_labels, check_labels
from scinfl.model.base._model import FederatedModel
from scinfl.model.base._options import takes
from scinfl.model.base._registry import categories_of
from scinfl.model.base._training import SiteData, resolve_device
from scinfl.model.scvi._cells import CountCells, counts_of
from scinfl.model.scvi._classes import SUPPORTED, check_labels_named, checked_arguments
from scinfl.model.scvi._network import ScviNetwork
from scinfl.model.scvi._options import ScviOptions, ScviTraining
from scinfl.model.scvi._template import Agreed
from scinfl.privacy import Key

_SCHEMES = (
    "modules of scvi-tools read the site beside the inputs of their linear layers and of no others, so that the key "
    "cannot act inside of them; 'coordinate' acts on what leaves a site, and the network that is trained stays plain"
)


class ScviModel(FederatedModel):
    """A model of scvi-tools, trained over sites that do not pool their cells; made by :func:`from_scvi`.

    The site is the batch of scvi-tools. Sites, labels and features are agreed first, and the network is built on ones,
    so that no constructor reads cells. Every column of a weight that belongs to a site is averaged over that site
    alone. Batch normalisation is exchanged for layer normalisation, since its statistics would leave the network in the
    open.

    Parameters
    ----------
    adata
        Data that went through :meth:`setup_anndata`.
    class_name
        Class of scvi-tools: ``"SCVI"``, ``"SCANVI"``, ``"LinearSCVI"``, ``"PEAKVI"`` or ``"POISSONVI"``.
    arguments
        Its arguments by name.
    key_scheme
        ``"coordinate"``, or ``None`` for the plain network.
    rng
        Seed of the initial parameters.

    Examples
    --------
    See :func:`from_scvi`.
    """

    module: ScviNetwork
    _columns_to_train = ("site_key", "labels_key")

    def __init__(
        self,
        adata: AnnData | None = None,
        *,
        class_name: str = "SCVI",
        arguments: Mapping[str, Any] | None = None,
        key_scheme: str | None = "coordinate",
        rng: int = 0,
        registry: dict | None = None,
    ) -> None:
        if key_scheme not in ("coordinate", None):
            msg = f"Expected `key_scheme` of 'coordinate' or None, found {key_scheme!r}: {_SCHEMES}."
            raise ValueError(msg)
        self._class_name, self._arguments = class_name, checked_arguments(class_name, arguments or {})
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
        layer
            Layer to use instead of ``adata.X``.
        kwargs
            ``source_registry`` of another data set, to take its codes.

        Raises
        ------
        KeyError
            If a column or layer does not exist.
        ValueError
            If counts, labels, sites or feature names cannot be used; the message names them.
        """
        setup_args = cls._get_setup_method_args(**{k: v for k, v in locals().items() if k != "kwargs"})
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
        fields = [
            LayerField("X", layer, is_count_data=True),
            CategoricalObsField("batch", site_key),
            CategoricalObsField("labels", labels_key)
            if unlabeled_category is None
            else LabelsWithUnlabeledObsField("labels", labels_key, unlabeled_category),
        ]
        manager = AnnDataManager(fields=fields, setup_method_args=setup_args)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Category .* has fewer than 3 cells")
            manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    @property
    def _agreed(self) -> Agreed:
        return Agreed.of(self._class_name, self._arguments, self.registry_)

    def _make_module(self) -> ScviNetwork:
        agreed = self._agreed
        native = agreed.native().module
        return ScviNetwork(native, agreed.weights_by_site(native), agreed.sites, agreed.features)

    @property
    def class_name(self) -> str:
        """Class of scvi-tools."""
        return self._class_name

    @property
    def sites(self) -> list[str]:
        """Sites that the network has columns for, in their order."""
        return [str(site) for site in self._agreed.sites]

    @property
    def labels(self) -> list[str]:
        """Labels that a SCANVI distinguishes, in the order of its outputs."""
        unlabeled = str(self._setup_args()["unlabeled_category"])
        return [label for label in map(str, self._agreed.labels) if label != unlabeled]

    @property
    def labels_key(self) -> str | None:
        """Column of ``adata.obs`` with the labels."""
        return self._setup_args()["labels_key"]

    @property
    def site_key(self) -> str | None:
        """Column of ``adata.obs`` with the site."""
        return self._setup_args()["site_key"]

    @takes(ScviOptions)
    def train(self, options: ScviOptions) -> None:
        """Train over the sites; call it again to go on.

        The model keeps the round that is best by the negative evidence lower bound of the sites' validation cells.

        Parameters
        ----------
        options
            Settings by name, see :class:`ScviOptions`.

        Raises
        ------
        ValueError
            If an argument, the key or the data cannot be used; before any training.
        """
        with self._training(options) as model:
            model._train(options)

    def _train(self, options: ScviOptions) -> None:
        if self._adata is None or self._adata_manager is None:
            msg = "Expected data to train on, found none. Load the model with the cells of its sites."
            raise ValueError(msg)
        data = self._data(options)
        protections = self._protections(options, len(data))
        if noise := [type(p).__name__ for p in protections if isinstance(p, SpendsPrivacy)]:
            msg = (
                f"Expected protections that sum for models of scvi-tools, found {noise[0]}: a site reports which "
                "columns it owns, which noise does not cover, and the loss draws latent codes for a batch, not for "
                "each cell. Use `KeyedSum` or `PairwiseSum`."
            )
            raise ValueError(msg)
        size = (options.local_epochs, options.batch_size, options.lr, options.weight_decay, options.seed)
        strategy = self._strategy(options)
        training = self._training_of(data, ScviTraining(*size, "adam"), options, protections, strategy=strategy)
        (run,) = self._federate(training)
        self._finish(run, options)

    def _strategy(self, options: ScviOptions) -> Any:
        n_layers, n_sites = len(self.module.site_columns), len(self._agreed.sites)
        if not n_layers:
            return options.averaging
        return OwnedParts(
            options.averaging,
            {f"site {s}": [f"site_columns.{n}.columns.{s}." for n in range(n_layers)] for s in range(n_sites)},
        )

    def _data(self, options: ScviOptions) -> dict[str, SiteData]:
        """Cells of each site to train on and to validate with."""
        cells = self._training_cells(resolve_device(options.device))
        codes = cells.sites.cpu().numpy()
        names, strategy, data = self._site_of_rows(options), self._strategy(options), {}
        for number, name in enumerate(np.unique(names), options.first_number):
            rows = np.flatnonzero(names == name)
            aside = np.random.default_rng([options.seed, number]).random(len(rows)) < options.validation_size
            train, validation = cells.part(rows[~aside]), cells.part(rows[aside])
            if not len(train):
                msg = f"Expected cells to train on at every site, found none at '{name}'. Lower `validation_size`."
                raise ValueError(msg)
            parts = [f"site {code}" for code in np.unique(codes[rows])]
            data[str(name)] = SiteData(
                train,
                validation,
                {"n_epochs_kl_warmup": options.n_epochs_kl_warmup},
                metadata=strategy.shares(parts) if isinstance(strategy, OwnedParts) else {},
            )
        return data

    def _training_cells(self, device: torch.device) -> CountCells:
        """All cells with their codes."""
        codes, labels = (np.asarray(self.data_registry(what)).ravel() for what in ("batch", "labels"))
        matrix = counts_of(self._adata, self._setup_args()["layer"])
        return CountCells(matrix, np.arange(len(codes)), labels, device, codes)

    def _lock_as(self, reference: ScviModel, key: Key | None) -> None:
        """Take over the lock and the history of another model, and its locked weights as they are, to the last bit."""
        if key is not None:
            plain = {name: tensor.clone() for name, tensor in self.module.state_dict().items()}
            lock, locked = reference._keyed.locked_with or {}, reference.module.state_dict()
            self._keyed.swap_layers(lock["scheme"], lock["options"], "all")
            self._keyed.locked_with = {name: value for name, value in lock.items() if name != "id"}
            self.module.load_state_dict(keyed_nn.add_offsets(reference.module, locked, sign=-1), strict=False)
            self._keyed.give(key)
            further = keyed_nn.lock(self.module, {name: plain[name] for name in plain.keys() - locked.keys()})
            self.module.load_state_dict(further, strict=False)
            self._name_version(keyed_nn.new_model_id())
        self._history, self.is_trained_ = reference._history, True

    # ---- prediction

    def _plain_network(self) -> ScviNetwork:
        """A copy of the network without its key, which computes what the unlocked model does."""
        self._check_ready()
        network: Any = copy.deepcopy(self.module)
        if keyed_nn.keyed_layers(network):
            plain = keyed_nn.unlock(self.module, self.module.state_dict())
            network = keyed_nn.unkeyed(network)
            network.load_state_dict({name: plain[name] for name in network.state_dict()})
        return network.eval()

    def get_latent_representation(self, adata: AnnData | None = None, *, batch_size: int = 4096) -> np.ndarray:
        """Mean of the latent code of every cell (cells × dimensions, float32).

        Parameters
        ----------
        adata
            Data with the model's features, in any order and among others; the training data by default. The site is
            only needed where the encoder reads it (``encode_covariates=True``).
        batch_size
            Cells at a time.

        Raises
        ------
        RuntimeError
            If the model is untrained or locked.
        ValueError
            If features, counts or sites cannot be used.
        """
        return self._infer("latent", adata, batch_size)

    def predict(
        self, adata: AnnData | None = None, *, soft: bool = False, batch_size: int = 4096
    ) -> np.ndarray | pd.DataFrame:
        """Label cells with a SCANVI.

        Parameters
        ----------
        adata, batch_size
            See :meth:`get_latent_representation`.
        soft
            Return probabilities.

        Returns
        -------
        Array of labels, or with ``soft`` a data frame of probabilities (cells × labels).

        Raises
        ------
        TypeError
            If the model has no classifier.
        RuntimeError
            If the model is untrained or locked.
        """
        if not SUPPORTED[self._class_name].labels:
            msg = f"Expected a SCANVI to predict labels, found a {self._class_name}: it has no classifier."
            raise TypeError(msg)
        values = self._infer("probabilities", adata, batch_size)
        if soft:
            names = (self._adata if adata is None else adata).obs_names
            return pd.DataFrame(values, index=names, columns=self.labels)
        return np.array(self.labels, dtype=object)[values.argmax(1)]

    @torch.inference_mode()
    def _infer(self, what: str, adata: AnnData | None, batch_size: int) -> np.ndarray:
        self._check_ready()
        whole_number("batch_size", batch_size, 1)
        adata = self._validate_anndata(adata)
        matrix, n = counts_of(adata, self._setup_args()["layer"]), adata.n_obs
        compute = getattr(self._plain_network(), what)
        cells = CountCells(matrix, np.arange(n), np.zeros(n), self.device, self._site_codes(adata))
        with torch.random.fork_rng(devices=[]):
            return torch.cat([compute(batch) for batch in cells.batches(batch_size)]).cpu().numpy()

    def _site_codes(self, adata: AnnData) -> np.ndarray:
        """Codes of sites, which matter only where the encoder reads them."""
        if self.site_key is None or not self._arguments.get("encode_covariates"):
            return np.zeros(adata.n_obs)
        sites = sites_of(adata, self.site_key, at_least=1).astype(str)
        _check_known_sites(sites, self.sites, self.site_key)
        return np.array([self.sites.index(site) for site in sites])

    def to_scvi(self, adata: AnnData | None = None) -> Any:
        """A model of scvi-tools with these weights, on a copy of the data: for all that scvi-tools can do with it.

        It holds the weights in the open, and ``save`` of scvi-tools writes them so, with the label of every cell of a
        SCANVI: keep it with those who hold the key.

        Parameters
        ----------
        adata
            Data with the model's features and columns; the training data by default.

        Returns
        -------
        Trained ``SCVI``, ``SCANVI``, …. Where the class insists on batch normalisation (``LinearSCVI``, the depth
        encoder of ``PEAKVI``), it has layer normalisation in its place, and ``load`` of scvi-tools does not take a
        saved one.

        Raises
        ------
        RuntimeError
            If the model is untrained or locked.
        """
        network = self._plain_network()
        adata = self._validate_anndata(adata)
        native = self._agreed.native()
        native.module.load_state_dict(network.native_state())
        native.module.eval()
        log = logging.getLogger("scvi")
        level = log.level
        log.setLevel(logging.WARNING)  # that the copy is set up is no news
        try:
            native.adata = adata.copy()
        finally:
            log.setLevel(level)
        if SUPPORTED[self._class_name].labels:
            native._set_indices_and_labels()
        native.is_trained_ = True
        return native

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


def from_scvi(
    kind: type | str,
    adata: AnnData,
    *,
    site_key: str | None,
    labels_key: str | None = None,
    unlabeled_category: str | None = None,
    layer: str | None = None,
    key_scheme: str | None = "coordinate",
    rng: int = 0,
    **arguments: Any,
) -> ScviModel:
    """Make a model of scvi-tools that is trained over sites.

    Parameters
    ----------
    kind
        Class of scvi-tools or its name: ``SCVI``, ``SCANVI``, ``LinearSCVI``, ``PEAKVI`` or ``POISSONVI``.
    adata
        Cells × features, raw counts; registered for this model.
    site_key
        Column of ``adata.obs`` with the site, which is the batch of scvi-tools; ``None`` trains one site (pooled).
    labels_key
        Column of ``adata.obs`` with labels, which SCANVI needs.
    unlabeled_category
        Label of cells that have none, which SCANVI needs; it need not occur.
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
    name = kind if isinstance(kind, str) else kind.__name__
    check_labels_named(name, labels_key=labels_key, unlabeled_category=unlabeled_category)
    ScviModel.setup_anndata(
        adata, site_key=site_key, labels_key=labels_key, unlabeled_category=unlabeled_category, layer=layer
    )
    return ScviModel(adata, class_name=name, arguments=arguments, key_scheme=key_scheme, rng=rng)
