"""Label cells or samples with one network trained over sites."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from scvi.data import AnnDataManager
from scvi.data.fields import LayerField
from sklearn.model_selection import GroupShuffleSplit
from torch import Tensor, nn

from scinfl import _names
from scinfl._checks import (
    complete_column,
    finite,
    first_of,
    number_between,
    obs_column,
    one_of,
    values_of,
    warn,
    warn_of_counts,
    whole_number,
)
from scinfl.federation import State
from scinfl.model._classifier_layers import check_choice, train_each
from scinfl.model._classifier_options import ClassifierOptions
from scinfl.model.base._cells import Cells, Matrix, is_mostly_zero, owned, rows_per_step, sites_of
from scinfl.model.base._labels import check_known_labels, check_labels, ordered_field, register
from scinfl.model.base._model import FederatedModel
from scinfl.model.base._options import takes
from scinfl.model.base._registry import categories_of, state_of
from scinfl.model.base._site_parameters import as_site
from scinfl.model.base._training import SiteData, one_thread, resolve_device
from scinfl.module import ClassifierModule
from scinfl.privacy import SampleDP

logger = logging.getLogger(__name__)

_SPARSE_FROM = 128
"""Rows per step from which a sparse first layer is faster; with fewer, transposing its weight takes too long."""
_SCALE = "values on a log or centred scale"
_NAN_CURE = ", or set up with `missing='zero'`"
_BATCHNORM = (
    "`norm='batch'`: batch normalisation keeps means and variances of a site's hidden units. They stay at the site and "
    "are never sent or saved, so a loaded model estimates them again from the cells it predicts, and predictions then "
    "depend on which cells come together; anyone with such statistics can undo part of the lock without a single "
    "label. `norm='layer'` stores none."
)


class Classifier(FederatedModel):
    """Predict labels (cancer types, cell types) from any omics table, trained over sites that do not pool their rows.

    A multilayer perceptron whose linear layers are keyed: without the key that the sites share, the trained network is
    worth no more than an untrained one.

    Parameters
    ----------
    adata
        Data that went through :meth:`setup_anndata`.
    n_hidden
        Units of a hidden layer.
    n_layers
        Hidden layers; 0 makes a keyed multinomial regression. ``"auto"``, for cohorts of a few hundred samples: the
        first training compares none with 2 on the sites' validation rows, which takes twice the exchanges.
    dropout, input_dropout
        Share of hidden units and of features dropped in training. A dropped feature takes its mean at the site, so that
        features need not be centred.
    norm
        ``"layer"`` normalises each cell by itself; ``"batch"`` works but gives more away, and warns; or ``None``.
    key_scheme
        Form of the keyed modules: ``"coordinate"`` (see :class:`scinfl.nn.CoordinateLinear`); ``None`` is the plain
        network, the baseline of every comparison. ``"permuted"`` and ``"pooled"`` are the published forms, which do not
        lock (see the benchmarks).
    train_meta
        Train the read-out of the meta learners, which ``share="meta"`` needs. The key then acts inside the network.
    rng
        Seed of the initial parameters.

    Examples
    --------
    >>> import scinfl as si
    >>> adata = si.datasets.pbmc()
    >>> si.pp.split_sites(adata, n_sites=5, by="bulk_labels", alpha=0.5, rng=0)
    >>> si.model.Classifier.setup_anndata(adata, labels_key="bulk_labels", site_key="site")
    >>> model = si.model.Classifier(adata)
    >>> key = si.privacy.Key.generate()
    >>> model.train(n_rounds=2, key=key, progress=False)
    >>> model.predict().shape
    (700,)
    """

    module: ClassifierModule
    first_layer: str

    def __init__(
        self,
        adata: AnnData | None = None,
        *,
        n_hidden: int = 256,
        n_layers: int | Literal["auto"] = 2,
        dropout: float = 0.3,
        input_dropout: float = 0.2,
        norm: Literal["layer", "batch"] | None = "layer",
        key_scheme: str | None = "coordinate",
        train_meta: bool = False,
        rng: int = 0,
        registry: dict | None = None,
    ) -> None:
        whole_number("n_hidden", n_hidden, 1)
        self._chooses_layers = n_layers == "auto"
        n_layers = 2 if n_layers == "auto" else n_layers
        whole_number("n_layers", n_layers, 0)
        number_between("dropout", dropout, 0, 0.95)
        number_between("input_dropout", input_dropout, 0, 0.95)
        one_of("norm", norm, ["layer", "batch", None])
        if norm == "batch":
            warn(_BATCHNORM)
        self._network_options: dict[str, Any] = {
            "n_hidden": n_hidden,
            "n_layers": n_layers,
            "dropout": dropout,
            "input_dropout": input_dropout,
            "norm": norm,
        }
        self.first_layer = "encoder.1" if n_layers else "head"
        super().__init__(adata, key_scheme=key_scheme, train_meta=train_meta, rng=rng, registry=registry)
        if self._chooses_layers:
            n_layers = "auto"
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        labels_key: str,
        *,
        site_key: str | None = None,
        layer: str | None = None,
        group_key: str | None = None,
        unlabeled_category: str | None = None,
        missing: Literal["error", "zero"] = "error",
        **kwargs: Any,
    ) -> None:
        """Register the AnnData fields with labels, sites and values for this model.

        Parameters
        ----------
        adata
            Cells or samples × features; features on a log or centred scale, not raw counts.
        labels_key
            Column of ``adata.obs`` with the labels.
        site_key
            Column of ``adata.obs`` with the site; ``None`` trains one site with all rows (pooled).
        layer
            Layer to use instead of ``adata.X``.
        group_key
            Column of ``adata.obs`` (patient, donor) whose groups are kept together when a site sets validation rows
            aside, and which :class:`~scinfl.privacy.SampleDP` guards as a whole.
        unlabeled_category
            Label of rows that have none; they are predicted but not trained on.
        missing
            What to do with NaN: ``"error"`` refuses them; ``"zero"`` reads them as 0, the mean of centred data.
            Beware that *which* proteins are missing often identifies the cohort, and a network learns that.
        kwargs
            ``source_registry`` of another data set, to take its label codes.

        Raises
        ------
        KeyError
            If a column or layer does not exist.
        ValueError
            If values, labels, sites or feature names cannot be used; the message names them.
        """
        setup_args = cls._get_setup_method_args(**{k: v for k, v in locals().items() if k != "kwargs"})
        _check_data(adata, layer, missing)
        labels = obs_column(adata, labels_key, "labels_key")
        sites = sites_of(adata, site_key)
        if group_key is not None:
            complete_column(adata, group_key, "group_key", "a group for every row")
        check_labels(labels, sites, labels_key, unlabeled_category, at_least=1 if "source_registry" in kwargs else 2)
        if not kwargs.get("extend_categories"):
            known = categories_of(kwargs.get("source_registry"), "labels")
            check_known_labels(labels, known, labels_key)
        values = LayerField("X", layer, is_count_data=False, correct_data_format=False)
        fields = [values, ordered_field("labels", labels_key, unlabeled_category)]
        manager = AnnDataManager(fields=fields, setup_method_args=setup_args)
        register(manager, adata, **kwargs)
        cls.register_manager(manager)

    def _make_module(self) -> ClassifierModule:
        return ClassifierModule(len(self.var_names), len(self.labels), **self._network_options)

    @property
    def labels(self) -> list[str]:
        """Labels that the model distinguishes, in the order of its outputs."""
        mapping = [str(label) for label in state_of(self.registry_, "labels")["categorical_mapping"]]
        return [label for label in mapping if label != str(self._setup_args()["unlabeled_category"])]

    @property
    def labels_key(self) -> str:
        """Column of ``adata.obs`` with the labels."""
        return self._setup_args()["labels_key"]

    @property
    def site_key(self) -> str | None:
        """Column of ``adata.obs`` with the site."""
        return self._setup_args()["site_key"]

    @takes(ClassifierOptions)
    def train(self, options: ClassifierOptions) -> None:
        """Train over the sites; call it again to go on.

        The model keeps the last round whose balanced accuracy on the sites' own validation rows is not below the
        highest by more than two standard errors: few rows do not decide on a round. Sites train by AdamW.

        Parameters
        ----------
        options
            Settings by name, see :class:`ClassifierOptions`.

        Raises
        ------
        ValueError
            If an argument, the key or the data cannot be used; before any training.
        """
        with self._training(options) as model:
            if model._chooses_layers and not model.is_trained_ and check_choice(options):
                model._take_over(train_each([model._with_layers(n) for n in (0, 2)], type(self)._train, options))
            else:
                model._train(options)

    def _with_layers(self, n_layers: int) -> Self:
        """The same untrained model with so many hidden layers; it records what leaves in the same place."""
        other = type(self)(self._adata, **{**self.init_params_["non_kwargs"], "n_layers": n_layers})
        other._payload = self._payload
        return other

    def _take_over(self, other: Self | None) -> None:
        """Become another model; after a dry run there is none."""
        if other is not None:
            self.__dict__.update({name: value for name, value in vars(other).items() if name != "id"})

    def _train(self, options: ClassifierOptions) -> None:
        if self._adata is None or self._adata_manager is None:
            msg = "Expected data with labels to train on, found none. Load the model with such data."
            raise ValueError(msg)
        sites = self._labelled_rows(options)
        if options.min_sites > len(sites):
            msg = (
                f"Expected `min_sites` of at most the {len(sites)} sites with enough cells, found {options.min_sites}."
            )
            raise ValueError(msg)
        data = self._data(sites, options)
        protections = self._protections(options, len(data))
        training = self._training_of(data, options.local_training(), options, protections)
        with one_thread():
            (run,) = self._federate(training)
        self._finish(run, options)

    def _data(self, sites: Mapping[str, np.ndarray], options: ClassifierOptions) -> dict[str, SiteData]:
        """Rows of each site to train on and to validate with, and weights of its classes."""
        matrix, codes, groups = self._matrix(self._adata), self._codes(), self._groups()
        target = resolve_device(options.device)
        data = {}
        for number, (name, rows) in enumerate(sites.items(), options.first_number):
            draw = np.random.default_rng([options.seed, number])
            train, validation = _split(rows, codes, groups, options.validation_size, draw)
            weights = {}
            if options.class_weight == "balanced":
                counts = np.bincount(codes[train], minlength=len(self.labels))
                weight = np.divide(len(train), (counts > 0).sum() * counts, where=counts > 0, out=np.zeros(len(counts)))
                weights = {"class_weight": torch.as_tensor(weight, dtype=torch.float32, device=target)}
            batch_size = options.batch_size or rows_per_step(len(train))
            is_sparse = batch_size >= _SPARSE_FROM and is_mostly_zero(matrix, train)
            own_groups = None if groups is None else groups[train]
            data[name] = SiteData(
                Cells(matrix, train, codes[train], target, own_groups, is_sparse=is_sparse),
                Cells(matrix, validation, codes[validation], target, is_sparse=is_sparse),
                weights,
                prepare=partial(_fill_dropped, mean=0.0 if is_sparse else self._mean(matrix, train, options, target)),
                batch_size=batch_size,
            )
        return data

    @staticmethod
    def _mean(matrix: Matrix, rows: np.ndarray, options: ClassifierOptions, device: torch.device) -> Tensor | float:
        """Mean features of a site, which stays there; 0 where every sample is guarded by itself, as a mean is not."""
        guards = () if options.protections == "default" else options.protections
        if any(isinstance(guard, SampleDP) for guard in guards):
            return 0.0
        mean = np.asarray(matrix[rows].mean(0), dtype=np.float32).ravel()
        return torch.from_numpy(mean).to(device)

    def predict(
        self,
        adata: AnnData | None = None,
        *,
        soft: bool = False,
        min_confidence: float | None = None,
        site: str | None = None,
        batch_size: int = 4096,
    ) -> np.ndarray | pd.DataFrame:
        """Label rows.

        Parameters
        ----------
        adata
            Data with the model's features, in any order and among others; the training data by default. Labels
            are not needed.
        soft
            Return probabilities.
        min_confidence
            Rows whose best probability is lower are labelled ``"unassigned"``.
        site
            Predict all rows with the personal parameters and running statistics of this site. By default each row is
            predicted as its own site would, where that makes a difference.
        batch_size
            Rows at a time.

        Returns
        -------
        Array of labels, or with ``soft`` a data frame of probabilities (rows × labels).

        Raises
        ------
        RuntimeError
            If the model is untrained or locked.
        ValueError
            If features or values cannot be used.
        """
        if min_confidence is not None:
            number_between("min_confidence", min_confidence, 0, 1)
        adata = self._validate_anndata(adata)
        logits = self._infer(adata, batch_size, site, embed=False)
        probabilities = torch.softmax(torch.from_numpy(logits).double(), dim=1).numpy()
        if soft:
            return pd.DataFrame(probabilities, index=adata.obs_names, columns=self.labels)
        predicted = np.array(self.labels, dtype=object)[probabilities.argmax(1)]
        if min_confidence is not None:
            predicted[probabilities.max(1) < min_confidence] = _names.UNASSIGNED
        return predicted

    def get_latent_representation(
        self, adata: AnnData | None = None, *, site: str | None = None, batch_size: int = 4096
    ) -> np.ndarray:
        """Last hidden layer (rows × n_hidden, float32), for neighbours and UMAP.

        Parameters
        ----------
        adata
            Data with the model's features, in any order and among others; the training data by default.
        site
            See :meth:`predict`.
        batch_size
            Rows at a time.

        Raises
        ------
        ValueError
            If the model has no hidden layer.
        """
        if not self._network_options["n_layers"]:
            msg = "Expected a hidden layer to read, found a model with `n_layers=0`. Use `predict(soft=True)` instead."
            raise ValueError(msg)
        return self._infer(self._validate_anndata(adata), batch_size, site, embed=True)

    def _infer(self, adata: AnnData, batch_size: int, site: str | None, *, embed: bool) -> np.ndarray:
        self._check_ready()
        whole_number("batch_size", batch_size, 1)
        matrix = self._matrix(adata)
        if adata is not self._adata:
            warn_of_counts(matrix, _SCALE)
        network: nn.Module = self.module.encoder if embed else self.module
        n_outputs = self._network_options["n_hidden"] if embed else len(self.labels)
        result = np.empty((adata.n_obs, n_outputs), np.float32)
        for local, rows in self._rows_by_site(adata, site):
            is_sparse = sparse.issparse(matrix) and is_mostly_zero(matrix, rows)
            cells = Cells(matrix, rows, None, self.device, is_sparse=is_sparse)
            with torch.inference_mode(), as_site(self.module, local, cells):
                start = 0
                for x, _ in cells.batches(batch_size):
                    result[rows[start : start + len(x)]] = network(x).cpu().numpy()
                    start += len(x)
        return result

    def _rows_by_site(self, adata: AnnData, site: str | None) -> list[tuple[State | None, np.ndarray]]:
        """Rows with what the site keeps that predicts them; all at once where nothing differs between sites."""
        everything = np.arange(adata.n_obs)
        if site is not None:
            one_of("site", site, sorted(self._local_states) or ["(the model keeps nothing by site)"])
            return [(self._local_states[site], everything)]
        if not self._local_states:
            return [(None, everything)]
        named = self.site_key is not None and self.site_key in adata.obs
        if self.site_key is not None and not named:
            if self.is_personal:
                self._personal(None)  # says that a site must be named
            return [(None, everything)]
        sites = sites_of(adata, self.site_key, at_least=1).astype(str).to_numpy()
        if self.is_personal:
            for name in np.unique(sites):
                self._personal(name)
        return [(self._local_states.get(name), everything[sites == name]) for name in np.unique(sites)]

    def _matrix(self, adata: AnnData) -> Matrix:
        setup = self._setup_args()
        matrix = values_of(adata, setup["layer"])
        finite(matrix, adata.var_names, allow_nan=setup["missing"] == "zero", nan_cure=_NAN_CURE)
        if setup["missing"] == "zero" and not sparse.issparse(matrix) and np.isnan(matrix).any():
            matrix = np.nan_to_num(matrix, nan=0.0)
        elif setup["missing"] == "zero" and sparse.issparse(matrix) and np.isnan(matrix.data).any():
            matrix = matrix.copy()
            matrix.data = np.nan_to_num(matrix.data, nan=0.0)
        return matrix

    def _labelled_rows(self, options: ClassifierOptions) -> dict[str, np.ndarray]:
        """Rows to train on, by site; sites with too few are reported and left out."""
        min_cells, sites = options.min_cells, self._site_of_rows(options)
        labelled = self._codes() < len(self.labels)
        rows = {str(name): np.flatnonzero((sites == name) & labelled) for name in np.unique(sites)}
        few = {name: len(index) for name, index in rows.items() if len(index) < min_cells}
        kept = {name: index for name, index in rows.items() if name not in few}
        if not kept:
            msg = (
                f"Expected at least one site with {min_cells} labelled cells, found none: "
                f"{first_of([f'{name} ({n})' for name, n in few.items()])}. Lower `min_cells` or merge sites."
            )
            raise ValueError(msg)
        if few:
            warn(
                f"Left out {len(few)} of {len(rows)} sites with fewer than {min_cells} labelled cells: "
                f"{first_of([f'{name} ({n})' for name, n in few.items()])}. Lower `min_cells` to train on them."
            )
        return kept

    def _codes(self) -> np.ndarray:
        return np.asarray(self.data_registry("labels")).ravel()

    def _groups(self) -> np.ndarray | None:
        group_key = self._setup_args()["group_key"]
        return None if group_key is None else self._adata.obs[group_key].astype(str).to_numpy()

    def _summary(self) -> str:
        options = self._network_options
        hidden = f"{options['n_layers']} × {options['n_hidden']}" if options["n_layers"] else "no"
        return f"{hidden} hidden units, {len(self.labels)} labels"


def _fill_dropped(network: nn.Module, mean: Tensor | float) -> None:
    network.fill_dropped(mean)  # type: ignore[operator]


def _check_data(adata: AnnData, layer: str | None, missing: str) -> None:
    one_of("missing", missing, ["error", "zero"])
    owned(adata)
    matrix = values_of(adata, layer)
    finite(matrix, adata.var_names, allow_nan=missing == "zero", nan_cure=_NAN_CURE)
    warn_of_counts(matrix, _SCALE)


def _split(
    rows: np.ndarray, codes: np.ndarray, groups: np.ndarray | None, size: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Set aside a share of a site's rows: whole groups where there are groups, else evenly over the classes."""
    if groups is not None and size > 0:
        if len(set(groups[rows])) < 2:
            return rows, rows[:0]
        splitter = GroupShuffleSplit(1, test_size=size, random_state=int(rng.integers(2**31)))
        train, validation = next(splitter.split(rows, groups=groups[rows]))
        return rows[train], rows[validation]
    by_class = rows[np.lexsort((rng.random(len(rows)), codes[rows]))]
    aside = np.diff(np.floor(np.arange(len(rows) + 1) * size + rng.random())) > 0
    return np.sort(by_class[~aside]), np.sort(by_class[aside])
