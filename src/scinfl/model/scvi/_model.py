"""Train a model of scvi-tools over sites."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scinfl import nn as keyed_nn
from scinfl._checks import whole_number
from scinfl.federation import OwnedParts
from scinfl.model.base._noise_checks import check_noise_of_columns
from scinfl.model.base._options import takes
from scinfl.model.base._training import SiteData, resolve_device
from scinfl.model.scvi._cells import CountCells
from scinfl.model.scvi._classes import supported
from scinfl.model.scvi._network import ScviNetwork, without_key
from scinfl.model.scvi._options import ScviOptions, ScviTraining
from scinfl.model.scvi._registered import RegisteredScvi
from scinfl.privacy import Key


class ScviModel(RegisteredScvi):
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
        Class of scvi-tools, such as ``"SCVI"``; see :func:`from_scvi`.
    arguments
        Its arguments by name.
    modalities
        Number of features of each modality, in the order of the data; none where all are of one kind.
    key_scheme
        ``"coordinate"``, or ``None`` for the plain network.
    rng
        Seed of the initial parameters.

    Examples
    --------
    See :func:`from_scvi`.
    """

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
        measured = [own.prepare.keywords["measured"] for own in data.values()]  # type: ignore[union-attr]
        check_noise_of_columns(protections, everywhere=all(len(own) == len(self._modalities) for own in measured))
        size = (options.local_epochs, options.batch_size, options.lr, options.weight_decay, options.seed)
        strategy = self._strategy(options)
        training = self._training_of(data, ScviTraining(*size, "adam"), options, protections, strategy=strategy)
        (run,) = self._federate(training)
        self._finish(run, options)

    def _strategy(self, options: ScviOptions) -> Any:
        """The strategy, over the sites that own a part."""
        parts = {f"site {site}": self.module.columns_of(site) for site in range(self.module.n_sites)}
        parts |= {name: sorted(own) for name, own in self.module.modality_parts.items()}
        parts = {name: beginnings for name, beginnings in parts.items() if beginnings}
        return OwnedParts(options.averaging, parts) if parts else options.averaging

    def _data(self, options: ScviOptions) -> dict[str, SiteData]:
        """Cells of each site to train on and to validate with."""
        cells = self._training_cells(resolve_device(options.device))
        codes = cells.sites.cpu().numpy()
        names, strategy, data = self._site_of_rows(options), self._strategy(options), {}
        warmup = options.n_epochs_kl_warmup
        if warmup == "auto":
            warmup = supported(self._class_name).n_epochs_kl_warmup
        for number, name in enumerate(np.unique(names), options.first_number):
            rows = np.flatnonzero(names == name)
            aside = _set_aside(cells, rows, options.validation_size, np.random.default_rng([options.seed, number]))
            train, validation = cells.part(rows[~aside]), cells.part(rows[aside])
            if not len(train):
                msg = f"Expected cells to train on at every site, found none at '{name}'. Lower `validation_size`."
                raise ValueError(msg)
            measured, own = self.module.measured(train.matrix[train.rows], str(name)), np.unique(codes[rows]).tolist()
            parts = [*(f"site {code}" for code in own), *measured]
            data[str(name)] = SiteData(
                train,
                validation,
                prepare=partial(
                    ScviNetwork.train_parts,
                    sites=own,
                    measured=measured,
                    n_epochs_kl_warmup=warmup,
                ),
                metadata=strategy.shares(parts) if isinstance(strategy, OwnedParts) else {},
            )
        return data

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
        return without_key(self.module)

    def get_latent_representation(self, adata: AnnData | None = None, *, batch_size: int = 4096) -> np.ndarray:
        """Mean of the latent code of every cell (cells × dimensions, float32).

        Parameters
        ----------
        adata
            Data with the model's features, in any order and among others; the training data by default. The site is
            only needed where the encoder reads it (``encode_covariates=True``), labels where it reads these
            (``CondSCVI``).
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
        if not supported(self._class_name).classifies:
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
        compute = getattr(self._plain_network(), what)
        cells = self._cells_of(adata)
        with torch.random.fork_rng(devices=[]):
            batches = cells.batches(batch_size) if adata.n_obs else [cells.take(torch.arange(0))]
            return torch.cat([compute(batch) for batch in batches]).cpu().numpy()

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
        KeyError, ValueError
            If the data lack the column of sites or labels, or have others than the model; cells without a column of
            labels count as unlabelled in a SCANVI.
        """
        network, cells = self._plain_network(), self._validate_anndata(adata)
        self._check_columns(cells)
        return self._agreed.over(cells, network.native_state())


def _set_aside(cells: CountCells, rows: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    """Which rows of a site are for validation: a share of them, or of its groups where there are groups."""
    if cells.groups is None:
        return rng.random(len(rows)) < size
    names, place = np.unique(cells.groups[rows], return_inverse=True)
    return (rng.random(len(names)) < size)[place]
