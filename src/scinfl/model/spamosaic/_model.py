"""Integrate spatial sections of several sites, of one or several modalities, without pooling their spots."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData
from scvi.data import AnnDataManager
from scvi.data.fields import LayerField, MuDataLayerField

from scinfl._checks import first_of, number_between, one_of, same_features, whole_number
from scinfl.federation import FedAvg, OwnedParts, Protection, State, Strategy
from scinfl.model.base._local_training import LocalTraining, check_run
from scinfl.model.base._model import UNPAIRED, FederatedModel, features_of, resolve_device
from scinfl.model.base._noise_checks import check_noise_of_spots, sums_alone
from scinfl.model.base._site_parameters import as_site
from scinfl.model.spamosaic._batches import MosaicBatches, SpotTensors
from scinfl.model.spamosaic._imputation import judge_imputation
from scinfl.model.spamosaic._normalise import NORMALISATIONS
from scinfl.model.spamosaic._spatial_basis import BasisFit, BasisOptions, SpatialBasis
from scinfl.model.spamosaic._spots import Data, Measured, column_of, modalities_of, read_spots
from scinfl.module import SpaMosaicModule
from scinfl.privacy import Key
from scinfl.privacy.aggregation._default_protections import default_protections

_X = "X"
_JUDGED = ("shrinkage", "error")


class SpaMosaic(FederatedModel):
    """Embed spots of spatial sections of several sites in one space; no spot of a site meets one of another.

    Sections may differ in what they measured (RNA and protein here, RNA there, protein elsewhere), as long as sections
    with two modalities link them all. For each modality sites agree, by sums, on directions that follow the tissue
    and on prototypes that align their sections; what sets sections apart is removed by them. A small network learns to
    say from a spot and its neighbourhood in one modality what the aligned neighbourhood is in all modalities, through a
    short code that is the same whichever modality it comes from. What it says is the embedding: a linear map of the
    code, in which distances mean what they do among aligned directions.

    Parameters
    ----------
    data
        AnnData that went through :meth:`setup_anndata`, or MuData that went through :meth:`setup_mudata`.
    n_components
        Principal components of a modality; as many as there are features at most.
    n_features
        Features with the highest dispersion to find them on, where a modality has more.
    n_target
        Most directions of a modality that are aligned and reconstructed. Those that do not follow the tissue (a
        neighbourhood explains less than a fifth of their variance) are left out by themselves.
    n_latent
        Length of a code. Short codes mix sections better, long ones keep more of what several modalities see.
    n_hidden
        Hidden units.
    n_neighbours
        Nearest spots in a section that are averaged over. By default the widest neighbourhood (6 to 30 spots) that
        tells the strongest pattern of the tissue nearly as well as any other, for each modality.
    n_hops
        How often they are averaged over.
    radius
        Largest distance of a neighbour, in the unit of the coordinates; with ``n_neighbours`` at most so many.
    delaunay
        Neighbours by triangulation.
    compat
        Directed lists of neighbours and weights of a hop as in the published network.
    mutual_weight
        Weight of pairs of spots in different sections of the same site that are among each other's ten nearest in
        expression; spots then also average over these. Mixes the sections of a site further, and blurs domains; 0.8 as
        published.
    dropout
        Share of hidden units dropped in training.
    key_scheme
        Form of the keyed modules; ``None`` is the plain network.
    train_meta
        Train the read-out of the meta learners, which ``share="meta"`` needs.
    rng
        Seed of the initial parameters.
    facts
        What a saved model says of itself; given by :meth:`load`.

    Examples
    --------
    >>> import scinfl as si
    >>> mdata = si.datasets.mosaic_simulated(5, n_spots=100)
    >>> si.model.SpaMosaic.setup_mudata(mdata, section_key="section", site_key="site")
    >>> model = si.model.SpaMosaic(mdata, n_components=10)
    >>> model.train(n_rounds=2, key=si.privacy.Key.generate(), progress=False)
    >>> model.get_latent_representation().shape
    (500, 20)
    """

    module: SpaMosaicModule
    _columns_to_train = ("section_key", "site_key")

    def __init__(
        self,
        data: Data | None = None,
        *,
        n_components: int = 30,
        n_features: int = 2000,
        n_target: int = 10,
        n_latent: int = 16,
        n_hidden: int = 64,
        n_neighbours: int | None = None,
        n_hops: int = 2,
        radius: float | None = None,
        delaunay: bool = False,
        compat: bool = False,
        mutual_weight: float = 0.0,
        dropout: float = 0.2,
        key_scheme: str | None = "coordinate",
        train_meta: bool = False,
        rng: int = 0,
        registry: dict | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        for name, number in (
            ("n_components", n_components),
            ("n_features", n_features),
            ("n_target", n_target),
            ("n_latent", n_latent),
            ("n_hidden", n_hidden),
            ("n_hops", n_hops),
        ):
            whole_number(name, number, 1)
        if n_neighbours is not None:
            whole_number("n_neighbours", n_neighbours, 1)
        if radius is not None:
            number_between("radius", radius, 0, np.inf, open_low=True)
        number_between("mutual_weight", mutual_weight, 0, 1e6)
        number_between("dropout", dropout, 0, 0.95)
        self._options = BasisOptions(
            n_components,
            n_features,
            n_target,
            n_hops,
            n_neighbours,
            radius,
            delaunay=delaunay,
            compat=compat,
            mutual_weight=mutual_weight,
        )
        self._network_options: dict[str, Any] = {"n_latent": n_latent, "n_hidden": n_hidden, "dropout": dropout}
        self._bases: dict[str, SpatialBasis] = {}
        self._judged: dict[str, State] = {}
        self._normalise: dict[str, str] = dict(facts["normalise"]) if facts else {}
        super().__init__(data, key_scheme=key_scheme, train_meta=train_meta, rng=rng, registry=registry)
        self.init_params_ = self._get_init_params({**locals(), "facts": None})

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        section_key: str,
        *,
        site_key: str | None = None,
        spatial_key: str = "spatial",
        layer: str | None = None,
        normalise: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Tell the model where sections, sites, coordinates and values are.

        Parameters
        ----------
        adata
            Spots × features: raw counts, or values on a log scale. Sections in several AnnData are joined by
            :func:`scinfl.pp.join_sections`.
        section_key
            Column of ``adata.obs`` with the section of each spot.
        site_key
            Column of ``adata.obs`` with the site; ``None`` trains one site with all sections (pooled). A section
            belongs to one site.
        spatial_key
            Entry of ``adata.obsm`` with the coordinates, in any unit.
        layer
            Layer to use instead of ``adata.X``.
        normalise
            ``"clr"``, ``"lognorm"``, ``"log1p"``, ``"tfidf"`` or ``"none"``; by default centred log ratios of counts,
            and other values as they are.
        kwargs
            ``source_registry`` of another data set.

        Raises
        ------
        KeyError
            If a column, layer or entry does not exist.
        ValueError
            If coordinates or values are missing, or a section lies at several sites.
        """
        setup_args = cls._get_setup_method_args(**{k: v for k, v in locals().items() if k != "kwargs"})
        if normalise is not None:
            one_of("normalise", normalise, NORMALISATIONS)
        read_spots(
            adata,
            section_key=section_key,
            site_key=site_key,
            spatial_key=spatial_key,
            layers={_X: layer},
            normalise={_X: normalise} if normalise else None,
            train="source_registry" not in kwargs,
        )
        manager = AnnDataManager(
            fields=[LayerField(_X, layer, is_count_data=False, correct_data_format=False)],
            setup_method_args=setup_args,
        )
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    @classmethod
    def setup_mudata(
        cls,
        mdata: MuData,
        section_key: str,
        *,
        site_key: str | None = None,
        spatial_key: str = "spatial",
        layers: Mapping[str, str | None] | None = None,
        normalise: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Tell the model where sections, sites, coordinates and values of several modalities are.

        Spots are matched by name. Within a section every modality that is there measures the same spots, and sections
        with several modalities link all of them.

        Parameters
        ----------
        mdata
            Spots of all sections; a modality holds those of the sections that measured it.
        section_key
            Column of ``mdata.obs``, or of the ``obs`` of the modalities, with the section of each spot.
        site_key
            Likewise, with the site; ``None`` trains one site with all sections (pooled).
        spatial_key
            Entry of ``mdata.obsm``, or of the ``obsm`` of the modalities, with the coordinates, in any unit.
        layers
            Layer to use instead of X, by modality.
        normalise
            Normalisation by modality, see :meth:`setup_anndata`; ``"tfidf"`` for counts of modalities whose names tell
            of accessibility (atac, peaks, histone).
        kwargs
            ``source_registry`` of another data set.

        Raises
        ------
        KeyError
            If a column, layer, modality or entry does not exist.
        ValueError
            If coordinates or values are missing, spots do not match between modalities, a section lies at several
            sites, or no section links the modalities.
        """
        _check_modalities(mdata, layers, normalise)
        layers = {**(layers or {}), **dict.fromkeys(name for name in mdata.mod if name not in (layers or {}))}
        setup_args = cls._get_setup_method_args(**{k: v for k, v in locals().items() if k != "kwargs"})
        read_spots(
            mdata,
            section_key=section_key,
            site_key=site_key,
            spatial_key=spatial_key,
            layers=layers,
            normalise=normalise,
            train="source_registry" not in kwargs,
        )
        manager = AnnDataManager(
            fields=[
                MuDataLayerField(
                    f"{_X}_{modality}",
                    layer,
                    mod_key=modality,
                    mod_required=True,
                    is_count_data=False,
                    correct_data_format=False,
                )
                for modality, layer in layers.items()
            ],
            setup_method_args=setup_args,
            validation_checks=UNPAIRED,
        )
        manager.register_fields(mdata, **kwargs)
        cls.register_manager(manager)

    def add_site(self, adata: Data, *, site: str | None = None) -> None:
        """Refused: what a SpaMosaic reads depends on the spots of all sites, so that it cannot go on with others.

        Parameters
        ----------
        adata, site
            See :meth:`scinfl.model.Classifier.add_site`.

        Raises
        ------
        NotImplementedError
            Always; the message tells what to do.
        """
        del adata, site
        msg = (
            "Expected a Classifier or a GEARS, found a SpaMosaic: its directions and prototypes are those of the sites "
            "it was trained on. Embed the new sections as they are (`get_latent_representation(data)`), or train a new "
            "model with all of them."
        )
        raise NotImplementedError(msg)

    @property
    def feature_names(self) -> dict[str, pd.Index]:
        """Features that the model was trained on by modality, in order; of an AnnData under ``"X"``."""
        return _feature_names(self.registry_)

    @property
    def var_names(self) -> pd.Index:
        """Features that the model was trained on, in order; with several modalities ``"modality:feature"``."""
        names = self.feature_names
        if list(names) == [_X]:
            return names[_X]
        return pd.Index([f"{modality}:{feature}" for modality, own in names.items() for feature in own])

    @property
    def n_neighbours(self) -> dict[str, int]:
        """Nearest spots that are averaged over, by modality; 0 where another rule says who they are."""
        return {modality: int(basis.neighbours[0]) for modality, basis in self._bases.items()}

    def _make_module(self) -> SpaMosaicModule:
        sizes = {modality: self._options.sizes(len(names)) for modality, names in self.feature_names.items()}
        n_inputs = {modality: size[1] * (self._options.n_hops + 1) for modality, size in sizes.items()}
        n_values = {modality: size[0] for modality, size in sizes.items()} if len(sizes) > 1 else None
        n_outputs = {modality: size[2] for modality, size in sizes.items()}
        return SpaMosaicModule(n_inputs, n_outputs, n_values, **self._network_options)

    # ---- training

    def train(
        self,
        n_rounds: int = 40,
        *,
        key: Key | None = None,
        local_epochs: int = 2,
        lr: float = 3e-3,
        batch_size: int | None = None,
        weight_decay: float = 5e-4,
        graph_weight: float = 0.0,
        contrast_weight: float = 0.0,
        temperature: float = 0.1,
        share: str | Sequence[str] = "all",
        strategy: Strategy | None = None,
        protections: Sequence[Protection] | Literal["default"] = "default",
        fraction: float = 1.0,
        min_sites: int = 1,
        validation_size: float = 0.1,
        smoothing: float = 0.0,
        early_stopping: int | None = None,
        rng: int = 0,
        device: str = "auto",
        progress: bool = True,
        journal: str | os.PathLike[str] | None = None,
        dry_run: bool = False,
    ) -> None:
        """Train over the sites; call it again to go on.

        Before the first round the sites agree, by sums that the server cannot read where there is a key, on the
        directions of each modality and on the prototypes that align their sections. Encoders and decoders of a
        modality are averaged over the sites that measured it. With several modalities the training loss also counts
        how well single spots are told; the validation loss counts neighbourhoods alone.

        Parameters
        ----------
        n_rounds
            Rounds of local training and averaging.
        key
            Secret of the sites. Without it the model is federated but not keyed.
        local_epochs, lr, batch_size, weight_decay
            Local training by Adam, started anew each round; the learning rate falls to zero over the rounds. By default
            the smallest site takes about 16 steps an epoch.
        graph_weight
            Weight of the reconstruction of the spatial graph beside that of features.
        contrast_weight, temperature
            Weight of the contrast between modalities of the same spot, and its temperature. Every modality has to tell
            all that the others measured, which aligns them without; contrast brings the same spot somewhat closer
            together.
        share, strategy, protections, fraction, min_sites, smoothing, early_stopping, journal, dry_run
            See :meth:`scinfl.model.Classifier.train`.
        validation_size
            Share of each site's spots set aside to choose the best round; 0 keeps the last round.
        rng
            Seed of validation spots, prototypes, site choice and batches.
        device
            ``"auto"``, ``"cpu"`` or ``"cuda:0"``.
        progress
            Show a progress bar.

        Raises
        ------
        ValueError
            If an argument, the key or the data cannot be used; before any training.
        """
        if dry_run:
            self._rehearse(locals())
            return
        payload = self._open_payload()
        check_run(
            n_rounds=n_rounds,
            local_epochs=local_epochs,
            lr=lr,
            weight_decay=weight_decay,
            batch_size=batch_size,
            validation_size=validation_size,
            smoothing=smoothing,
            early_stopping=early_stopping,
            rng=rng,
        )
        for name, number, most in (
            ("graph_weight", graph_weight, 1),
            ("contrast_weight", contrast_weight, 100),
        ):
            number_between(name, number, 0, most)
        number_between("temperature", temperature, 0, 100, open_low=True)
        if self._adata is None or self._adata_manager is None:
            msg = (
                "Expected sections to train on, found none, or a view, or some without the model's modalities and its "
                "columns of sections and sites. Load the model with all of these."
            )
            raise ValueError(msg)
        measured = self._measured(self._adata, train=True)
        owners = {modality: sorted(set(own.site)) for modality, own in measured.items()}
        names = sorted(set().union(*owners.values()))
        guards = None
        if protections == "default":
            protections = default_protections(key, len(names), stacklevel=3)
        else:
            everywhere = all(len(sites) == len(names) for sites in owners.values())
            check_noise_of_spots(protections, everywhere=everywhere, stacklevel=3)
            guards = sums_alone(protections)
        self._check_share(share, key)
        sum_key = key if protections else None
        _warn_of_pairs(owners, len(names), sum_key)
        place = resolve_device(device)
        tensors = {}
        for modality, own in measured.items():
            fit = BasisFit(own, self._options, key=sum_key, protections=guards, payload=payload, rng=rng)
            self._bases[modality] = fit.basis
            tensors[modality] = SpotTensors(
                _place(own, self._adata.n_obs),
                torch.from_numpy(fit.inputs),
                torch.from_numpy(fit.target),
                torch.from_numpy(fit.values) if len(measured) > 1 else None,
                fit.graph if graph_weight else None,
            )
        self._normalise = {modality: own.normalise for modality, own in measured.items()}
        data = self._batches(measured, tensors, names, validation_size, rng, place)
        if batch_size is None and self._seat is not None:
            msg = (
                "Expected `batch_size` where sites are on machines of their own, found none: by default it follows "
                "from the smallest site, which nobody knows. Write for example `batch_size = 64` in [train]."
            )
            raise ValueError(msg)
        if batch_size is None:
            batch_size = int(np.clip(min(len(train) for train, _ in data.values()) // 16, 32, 1024))
        strategy = strategy or FedAvg()
        describe = None
        if any(len(sites) < len(names) for sites in owners.values()):
            strategy = OwnedParts(strategy, {modality: _parts(modality) for modality in measured})
            describe = {site: strategy.shares([m for m, own in owners.items() if site in own]) for site in names}
        options = {"graph_weight": graph_weight, "contrast_weight": contrast_weight, "temperature": temperature}
        self._federate(
            data,
            LocalTraining(local_epochs, batch_size, lr, weight_decay, rng, optimizer="adam", decay_rounds=n_rounds),
            key=key,
            strategy=strategy,
            protections=protections,
            n_rounds=n_rounds,
            share=share,
            journal=journal,
            device=device,
            loss_options=dict.fromkeys(names, options),
            describe=describe,
            fraction=fraction,
            min_sites=min_sites,
            smoothing=smoothing,
            monitor="validation_loss",
            patience=early_stopping,
            progress=progress,
        )
        if len(measured) > 1 and not self._is_rehearsal and not self.is_personal:
            self._judged = self._judge(measured, tensors, data, sum_key, guards)

    def _judge(
        self,
        measured: Mapping[str, Measured],
        tensors: Mapping[str, SpotTensors],
        data: Mapping[str, tuple[MosaicBatches, MosaicBatches]],
        key: Key | None,
        guards: Sequence[Protection] | None,
    ) -> dict[str, State]:
        """What can be trusted of each modality where it is told from the others, on spots that were set aside."""
        if guards is None:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Two sites", UserWarning)  # said before
                guards = default_protections(key, len(data), stacklevel=2)
        aside = np.concatenate([validation.rows for _, validation in data.values()])
        judged = {}
        for modality, own in measured.items():
            others = {name: part for name, part in tensors.items() if name != modality}
            told = self._tell(modality, others, self._adata.n_obs)
            if np.isfinite(told[np.intersect1d(aside, own.rows)]).all(1).any():
                told[np.setdiff1d(np.arange(len(told)), aside)] = np.nan
            values = tensors[modality].values
            judged[modality] = judge_imputation(
                modality,
                own,
                values.numpy(),  # type: ignore[union-attr]
                told[own.rows],
                self._bases[modality],
                list(data),
                protections=guards if len(data) > 1 or self._seat is not None else (),
                payload=self._payload,
            )
        return judged

    def _batches(
        self,
        measured: Mapping[str, Measured],
        tensors: Mapping[str, SpotTensors],
        names: Sequence[str],
        validation_size: float,
        rng: int,
        device: torch.device,
    ) -> dict[str, tuple[MosaicBatches, MosaicBatches]]:
        """Spots of each site to train on and to validate with."""
        data = {}
        for number, name in enumerate(names, 0 if self._seat is None else self._seat.number):
            rows = np.unique(np.concatenate([own.rows[own.site == name] for own in measured.values()]))
            aside = np.random.default_rng([rng, number]).random(len(rows)) < validation_size
            data[name] = tuple(MosaicBatches(tensors, part, device) for part in (rows[~aside], rows[aside]))
        return data  # type: ignore[return-value]

    def _measured(self, data: Data, *, train: bool = False) -> dict[str, Measured]:
        """Spots by modality; new sections without a column of sites are of one."""
        setup = self._setup_args()
        layers = {_X: setup["layer"]} if "layer" in setup else dict(setup["layers"] or {})
        given = setup["normalise"]
        normalise = self._normalise
        if train:
            normalise = {_X: given} if isinstance(given, str) else dict(given or {})
        measured = read_spots(
            data,
            section_key=setup["section_key"],
            site_key=setup["site_key"] if train or self._has_sites(data) else None,
            spatial_key=setup["spatial_key"],
            layers=layers,
            normalise=normalise,
            train=train,
        )
        if train and self._seat is not None:
            here = self._seat.site
            measured = {name: replace(own, site=np.full(len(own.rows), here)) for name, own in measured.items()}
        return measured

    def _has_sites(self, data: Data) -> bool:
        column = self._setup_args()["site_key"]
        parts = [data, *modalities_of(data).values()]
        return column is not None and any(column in part.obs and part.obs[column].notna().all() for part in parts)

    # ---- embedding

    def get_latent_representation(
        self,
        data: Data | None = None,
        *,
        modality: str | Sequence[str] | None = None,
        site: str | None = None,
        batch_size: int = 65536,
    ) -> np.ndarray:
        """Embedding of every spot (spots × n_target of all modalities, float32), for :func:`scinfl.tl.cluster`.

        The aligned neighbourhood of a spot in all modalities, as its code tells it; NaN for spots without a modality.

        Parameters
        ----------
        data
            Sections with the model's features in the model's order; the training data by default. Whole sections: a
            spot is seen with its neighbours and around the mean of its section.
        modality
            Code from this modality alone, or the mean over these; over all that measured a spot by default.
        site
            Whose personal parameters to use, where the share rule leaves some at the sites.
        batch_size
            Spots at a time.
        """
        tensors, data = self._open(data, batch_size, [modality] if isinstance(modality, str) else modality)
        return self._tell(None, tensors, data.n_obs, site, batch_size)

    def impute(
        self, modality: str, data: Data | None = None, *, site: str | None = None, batch_size: int = 65536
    ) -> np.ndarray:
        """Features of a modality as the other modalities of a spot tell them (spots × features, float32).

        On the scale of the modality's normalisation, around the mean of all spots, and shrunk towards it as far as
        spots that were set aside asked for: what sets a section apart is not known of a section that did not measure
        them. NaN for spots that no other modality measured. No spot of another site is looked at;
        :func:`scinfl.tl.impute` also looks at measured spots of the same site.

        Parameters
        ----------
        modality
            Which modality to tell.
        data
            Whole sections with the model's features in the model's order; the training data by default.
        site
            Whose personal parameters to use, where the share rule leaves some at the sites.
        batch_size
            Spots at a time.

        Raises
        ------
        ValueError
            If the model has no such modality, or no other one.
        """
        self._check_ready()
        names = list(self.feature_names)
        one_of("modality", modality, names)
        if len(names) == 1:
            msg = "Expected a model of several modalities to impute one from the others, found one modality."
            raise ValueError(msg)
        tensors, data = self._open(data, batch_size, [name for name in names if name != modality])
        told = self._tell(modality, tensors, data.n_obs, site, batch_size)
        shrinkage = float(self._judged.get(modality, {}).get("shrinkage", [1.0])[0])
        return self._bases[modality].features(shrinkage * told)

    def imputation_error(self, modality: str) -> np.ndarray:
        """Root mean square error of each feature of a modality on spots set aside that measured it and another.

        All such spots of training where none were set aside. A section of its own has an effect beyond that.

        Parameters
        ----------
        modality
            Which modality.
        """
        self._check_ready()
        one_of("modality", modality, list(self.feature_names))
        return self._judged.get(modality, {}).get("error", np.full(len(self.feature_names[modality]), np.nan))

    def spots(self, data: Data | None = None) -> pd.DataFrame:
        """Section, site and coordinates of every spot, and which modalities measured it (one column each).

        Parameters
        ----------
        data
            The training data by default.
        """
        data = self._validate_anndata(data)
        setup = self._setup_args()
        measured = self._measured(data)
        section = column_of(data, setup["section_key"], "section_key")
        site = np.full(len(section), "all")
        if self._has_sites(data):
            site = column_of(data, setup["site_key"], "site_key")
        table = pd.DataFrame({"section": section, "site": site}, index=data.obs_names)
        coordinates = np.full(len(table), None, dtype=object)
        for own in measured.values():
            for row, place in zip(own.rows, own.coordinates, strict=True):
                coordinates[row] = place
        table["spatial"] = coordinates
        for modality in self.feature_names:
            table[modality] = np.isin(np.arange(len(table)), measured[modality].rows if modality in measured else [])
        return table

    def normalised(self, modality: str, data: Data | None = None, rows: np.ndarray | None = None) -> np.ndarray:
        """Measured features of a modality as the model normalises them (spots × features, float32).

        Parameters
        ----------
        modality
            Which modality.
        data
            The training data by default.
        rows
            Spots of the data that measured it; all that did by default, in the order of the modality.

        Raises
        ------
        ValueError
            If the modality is unknown, or a spot did not measure it.
        """
        self._check_ready()
        data = self._validate_anndata(data)
        measured = self._measured(data)
        one_of("modality", modality, list(measured))
        own = measured[modality]
        rows = own.rows if rows is None else np.asarray(rows)
        place = _place(own, data.n_obs).numpy()[rows]
        if (place < 0).any():
            msg = f"Expected spots that measured '{modality}', found {int((place < 0).sum())} that did not."
            raise ValueError(msg)
        return self._bases[modality].normalised(own, place)

    def _open(
        self, data: Data | None, batch_size: int, modalities: Sequence[str] | None
    ) -> tuple[dict[str, SpotTensors], Data]:
        """What the network reads of data."""
        self._check_ready()
        whole_number("batch_size", batch_size, 1)
        data = self._validate_anndata(data)
        measured = self._measured(data)
        for modality in modalities or []:
            one_of("modality", modality, list(self.feature_names))
        chosen = [name for name in measured if modalities is None or name in modalities]
        if not chosen:
            wanted = " or ".join(modalities or self.feature_names)
            msg = (
                f"Expected spots that measured {wanted}, found {' and '.join(measured) or 'none'}. Add their sections."
            )
            raise ValueError(msg)
        return {name: self._tensors_of(name, measured[name], data.n_obs) for name in chosen}, data

    def _tell(
        self,
        modality: str | None,
        tensors: Mapping[str, SpotTensors],
        n_spots: int,
        site: str | None = None,
        batch_size: int = 65536,
    ) -> np.ndarray:
        """Embedding of all spots, or the components of a modality; NaN for spots without what is read."""
        cells = MosaicBatches(tensors, np.arange(n_spots), self.device)
        local = self._personal(site) or None
        decoders = list(self.module.decoders.values()) if modality is None else [self.module.readouts[modality]]
        sizes = {name: self._options.sizes(len(names)) for name, names in self.feature_names.items()}
        n_columns = sum(size[2] for size in sizes.values()) if modality is None else sizes[modality][0]
        found = np.full((n_spots, n_columns), np.nan, np.float32)
        self.module.eval()
        with torch.inference_mode(), as_site(self.module, local, cells):
            for batch in cells.batches(batch_size):
                code = self.module(batch.inputs)
                found[batch.rows.numpy()] = torch.cat([decoder(code) for decoder in decoders], 1).cpu().numpy()
        return found

    def _tensors_of(self, modality: str, own: Measured, n_spots: int) -> SpotTensors:
        basis = self._bases[modality]
        graph = basis.graph(own, self._options)
        scores = basis.scores(own)
        hop = self._options.hop(own, graph, scores @ basis.rotation)
        inputs = basis.inputs(scores, own.section, hop, self._options.n_hops)
        return SpotTensors(_place(own, n_spots), torch.from_numpy(inputs.astype(np.float32)))

    @classmethod
    def _check_features(cls, adata: Data, registry: dict[str, Any]) -> None:
        expected = _feature_names(registry)
        kind = AnnData if list(expected) == [_X] else MuData
        if not isinstance(adata, kind):
            cure = "its `mdata[modality]`" if kind is AnnData else "`mudata.MuData({modality: adata})`"
            msg = (
                f"Expected {'an AnnData' if kind is AnnData else f'a MuData of {list(expected)}'}, as the model was "
                f"trained on, found {type(adata).__name__}. Pass {cure}."
            )
            raise TypeError(msg)
        for modality, own in modalities_of(adata).items():
            if modality not in expected:
                msg = (
                    f"Expected modalities among {list(expected)}, found '{modality}'. Leave out what the model was "
                    "not trained on."
                )
                raise ValueError(msg)
            names, found = expected[modality], own.var_names
            if kind is MuData and list(found) != list(names) and set(names) <= set(found):
                msg = (
                    f"Expected the model's {len(names)} features of '{modality}' in their order, found them in another "
                    f"or among others. Reorder with `mdata.mod['{modality}'] = mdata['{modality}'][:, "
                    f"model.feature_names['{modality}']].copy()` and `mdata.update()`."
                )
                raise ValueError(msg)
            same_features(found, names, "adata.var_names" if kind is AnnData else f"mdata['{modality}'].var_names")

    @classmethod
    def _set_up_again(cls, adata: Data, registry: dict[str, Any], setup: dict[str, Any]) -> None:
        set_up = cls.setup_anndata if isinstance(adata, AnnData) else cls.setup_mudata
        set_up(adata, source_registry=registry, **setup)

    @classmethod
    def _can_train_on(cls, adata: Data, setup: dict[str, Any]) -> bool:
        if isinstance(adata, AnnData):
            return super()._can_train_on(adata, setup)
        try:
            for argument in cls._columns_to_train:
                if setup[argument] is not None:
                    column_of(adata, setup[argument], argument)
        except (KeyError, ValueError):
            return False
        return not adata.is_view and set(setup["layers"]) == set(adata.mod)

    # ---- files

    def _facts(self) -> dict[str, Any]:
        return {"normalise": self._normalise}

    @classmethod
    def _made_of(
        cls, adata: AnnData | None, registry: dict | None, arguments: dict[str, Any], facts: dict[str, Any]
    ) -> Self:
        return cls(adata, registry=registry, **{**arguments, "facts": facts})

    def _arrays(self, site: str | None) -> State:
        del site
        arrays: State = {}
        for modality, basis in self._bases.items():
            arrays |= basis.arrays(modality)
        for modality, judged in self._judged.items():
            arrays |= {f"{modality}/{name}": array for name, array in judged.items()}
        return arrays

    def _take_arrays(self, arrays: State) -> None:
        self._bases = {modality: SpatialBasis.of_arrays(arrays, modality) for modality in self.feature_names}
        self._judged = {
            modality: {name: arrays[f"{modality}/{name}"] for name in _JUDGED if f"{modality}/{name}" in arrays}
            for modality in self._bases
        }

    def _summary(self) -> str:
        options = self._network_options
        told = [f"{n or self._options.radius or 'adjacent'}" for n in self.n_neighbours.values()] or ["nearest"]
        return (
            f"codes of {options['n_latent']} from {self._options.n_hops} hops over {' or '.join(sorted(set(told)))} "
            f"neighbours, {options['n_hidden']} hidden units"
        )


def _feature_names(registry: Mapping[str, Any]) -> dict[str, pd.Index]:
    return {name if name == _X else name.removeprefix(f"{_X}_"): own for name, own in features_of(registry).items()}


def _check_modalities(
    mdata: MuData, layers: Mapping[str, str | None] | None, normalise: Mapping[str, str] | None
) -> None:
    """Refuse names of modalities that parameters cannot have, and settings of modalities that are not there."""
    for argument, given, example in (("layers", layers, "counts"), ("normalise", normalise, "clr")):
        if given is not None and not isinstance(given, Mapping):
            msg = (
                f"Expected `{argument}` to be a dict by modality, found {given!r}. Write "
                f"`{argument}={{'{next(iter(mdata.mod))}': '{example}'}}`."
            )
            raise TypeError(msg)
        for modality in given or {}:
            one_of(f"modality in {argument}", modality, list(mdata.mod))
    for modality, how in (normalise or {}).items():
        one_of(f"normalise['{modality}']", how, NORMALISATIONS)
    for modality in mdata.mod:
        if "." in modality or modality in ("", _X) or hasattr(torch.nn.ModuleDict(), modality):
            msg = (
                f"Expected names of modalities such as 'rna', 'adt' or 'atac', found {modality!r}, which parameters of "
                "the network cannot be called. Rename it in the MuData; names hold no dots."
            )
            raise ValueError(msg)


def _parts(modality: str) -> list[str]:
    """Beginnings of the names of parameters that only sites with a modality train."""
    return [f"{part}.{modality}." for part in ("encoders", "decoders", "readouts")]


def _place(own: Measured, n_spots: int) -> torch.Tensor:
    place = np.full(n_spots, -1, np.int64)
    place[own.rows] = np.arange(len(own.rows))
    return torch.from_numpy(place)


def _warn_of_pairs(owners: Mapping[str, Sequence[str]], n_sites: int, key: Key | None) -> None:
    """Say whose sums can be told apart, where one or two of more sites measured a modality."""
    alone, pairs = (
        [f"'{modality}' ({first_of(sites)})" for modality, sites in owners.items() if len(sites) == n < n_sites]
        for n in (1, 2)
    )
    if key is not None and alone:
        warnings.warn(
            f"One site alone measured {', '.join(alone)}: what is agreed on for it before the first round (components, "
            "means, scales) is that of this site, and nothing hides it. Let others measure it if that matters.",
            UserWarning,
            stacklevel=3,
        )
    if key is not None and pairs:
        warnings.warn(
            f"Two sites alone measured {', '.join(pairs)}: the server cannot read their sums, but each of the two can "
            "subtract its own and sees the other's. Let a third site measure it if that matters.",
            UserWarning,
            stacklevel=3,
        )
