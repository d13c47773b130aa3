"""Integrate spatial sections of several sites, of one or several modalities, without pooling their spots."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from anndata import AnnData
from mudata import MuData
from scvi.data import AnnDataManager
from scvi.data.fields import LayerField, MuDataLayerField

from scinfl._checks import an_anndata, number_between, one_of, whole_number
from scinfl.federation import OwnedParts, Payload, Protection, State, Strategy
from scinfl.model.base._noise_checks import check_noise_of_spots, sums_alone
from scinfl.model.base._options import takes
from scinfl.model.base._registry import UNPAIRED
from scinfl.model.base._training import SiteData, resolve_device
from scinfl.model.spamosaic._basis_fit import fit_bases
from scinfl.model.spamosaic._batches import MosaicBatches, SpotTensors
from scinfl.model.spamosaic._given_graph import CONNECTIVITIES, has_graph_of_others
from scinfl.model.spamosaic._imputation import judge_imputation
from scinfl.model.spamosaic._measured import owners_of
from scinfl.model.spamosaic._normalise import NORMALISATIONS
from scinfl.model.spamosaic._options import SpaMosaicOptions, batch_size_of
from scinfl.model.spamosaic._prediction import SpotPredictor, X, place_of
from scinfl.model.spamosaic._spatial_basis import BasisOptions, SpatialBasis, width_of
from scinfl.model.spamosaic._spot_checks import warn_of_background, warn_of_pairs
from scinfl.model.spamosaic._spots import Data, Measured, modalities_of, read_spots
from scinfl.module import SpaMosaicModule
from scinfl.privacy.aggregation import default_protections

logger = logging.getLogger(__name__)


class SpaMosaic(SpotPredictor):
    """Embed spots of spatial sections of several sites in one space; no spot of a site meets one of another.

    Sections may differ in what they measured (RNA and protein here, RNA there, protein elsewhere), as long as sections
    with two modalities link them all. For each modality sites agree, by sums, on directions that follow the tissue
    and on prototypes that align their sections; what sets sections apart is removed by them. A small network learns to
    predict from a spot and its neighbourhood in one modality the aligned neighbourhood in all modalities, through a
    short code that is the same whichever modality it comes from. The prediction is the embedding: a linear map of the
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
        Leading components of a modality whose neighbourhoods are aligned and reconstructed; all by default.
    n_latent
        Length of a code. Short codes mix sections better, long ones keep more of what several modalities see.
    n_hidden
        Hidden units.
    scale
        What the embedding is to show. ``"domain"``: regions of the tissue, from the widest neighbourhood (6 to 30
        spots, over two hops) that predicts its strongest pattern nearly as well as any other, for each modality.
        ``"niche"``: a spot and its six nearest. ``"cell"``: each spot by itself, aligned between sections and not
        smoothed, for cell types and other labels that do not follow the place. Or a number of spots, over two hops.
    n_neighbours, n_hops
        Nearest spots in a section that are averaged over, and how often; by default those of the scale. On a lattice
        all spots as far as the last of them are taken.
    radius
        Largest distance of a neighbour, in the unit of the coordinates; with ``n_neighbours`` at most so many.
    delaunay
        Neighbours by triangulation.
    graph
        Neighbours that the data bring: ``"squidpy"`` for those that ``squidpy.gr`` wrote to
        ``.obsp["spatial_connectivities"]`` (of a MuData: of each modality), or the name of another entry of ``.obsp``.
        Weights count, and every spot is its own neighbour with weight 1.
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
        Metadata of a saved model; given by :meth:`load`.

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

    def __init__(
        self,
        data: Data | None = None,
        *,
        n_components: int = 30,
        n_features: int = 2000,
        n_target: int | None = None,
        n_latent: int = 16,
        n_hidden: int = 64,
        scale: Literal["domain", "niche", "cell"] | int = "domain",
        n_neighbours: int | None = None,
        n_hops: int | None = None,
        radius: float | None = None,
        delaunay: bool = False,
        graph: str | None = None,
        compat: bool = False,
        mutual_weight: float = 0.0,
        dropout: float = 0.2,
        key_scheme: str | None = "coordinate",
        train_meta: bool = False,
        rng: int = 0,
        registry: dict | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        whole_number("n_latent", n_latent, 1)
        whole_number("n_hidden", n_hidden, 1)
        number_between("dropout", dropout, 0, 0.95)
        width, hops = width_of(scale)
        self._options = BasisOptions(
            n_components,
            n_features,
            n_target,
            hops if n_hops is None else n_hops,
            width if n_neighbours is None else n_neighbours,
            radius,
            delaunay=delaunay,
            compat=compat,
            mutual_weight=mutual_weight,
            given=graph,
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
        """Register the AnnData fields with sections, sites, coordinates and values for this model.

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
            ``"clr"``, ``"lognorm"``, ``"log1p"``, ``"tfidf"`` or ``"none"``. By default counts come as logarithms of
            their share in the spot, or as centred log ratios where neighbours then say clearly more about each other;
            other values as they are.
        kwargs
            ``source_registry`` of another data set.

        Raises
        ------
        KeyError
            If a column, layer or entry does not exist.
        ValueError
            If coordinates or values are missing, or a section is at several sites.
        """
        setup_args = cls._get_setup_method_args(**{k: v for k, v in locals().items() if k != "kwargs"})
        an_anndata(adata)
        if normalise is not None:
            one_of("normalise", normalise, NORMALISATIONS)
        read_spots(
            adata,
            section_key=section_key,
            site_key=site_key,
            spatial_key=spatial_key,
            layers={X: layer},
            normalise={X: normalise} if normalise else None,
            train="source_registry" not in kwargs,
        )
        warn_of_background(adata)
        manager = AnnDataManager(
            fields=[LayerField(X, layer, is_count_data=False, correct_data_format=False)],
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
        """Register the MuData fields with sections, sites, coordinates and values of several modalities for this model.

        Spots are matched by name. Within a section every modality that is there measures the same spots, and sections
        with several modalities link all of them.

        Parameters
        ----------
        mdata
            Spots of all sections; a modality holds those of the sections that measured it.
        section_key
            Column of ``mdata.obs``, or of the ``obs`` of the modalities, with the section of each spot.
        site_key
            The same for the site; ``None`` trains one site with all sections (pooled).
        spatial_key
            Entry of ``mdata.obsm``, or of the ``obsm`` of the modalities, with the coordinates, in any unit.
        layers
            Layer to use instead of X, by modality.
        normalise
            Normalisation by modality, see :meth:`setup_anndata`. For counts of modalities whose names indicate proteins
            (adt, protein) ``"clr"``, and accessibility (atac, peaks, histone) ``"tfidf"``.
        kwargs
            ``source_registry`` of another data set.

        Raises
        ------
        KeyError
            If a column, layer, modality or entry does not exist.
        ValueError
            If coordinates or values are missing, spots do not match between modalities, a section is at several
            sites, or no section links the modalities.
        """
        an_anndata(mdata, "mdata", "MuData")
        _check_modalities(mdata, layers, normalise)
        layers = _every_layer(mdata, layers or {}, trained="source_registry" in kwargs)
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
        warn_of_background(mdata)
        manager = AnnDataManager(
            fields=[
                MuDataLayerField(
                    f"{X}_{modality}",
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
        """
        del adata, site
        msg = (
            "Expected a Classifier or a GEARS, found a SpaMosaic: its directions and prototypes are those of the sites "
            "it was trained on. Embed the new sections as they are (`get_latent_representation(data)`), or train a new "
            "model with all of them."
        )
        raise NotImplementedError(msg)

    def _make_module(self) -> SpaMosaicModule:
        sizes = {modality: self._options.sizes(len(names)) for modality, names in self.feature_names.items()}
        n_inputs = {modality: size[1] * (self._options.n_hops + 1) for modality, size in sizes.items()}
        n_values = {modality: size[0] for modality, size in sizes.items()} if len(sizes) > 1 else None
        n_outputs = {modality: size[2] for modality, size in sizes.items()}
        return SpaMosaicModule(n_inputs, n_outputs, n_values, **self._network_options)

    # ---- training

    @takes(SpaMosaicOptions)
    def train(self, options: SpaMosaicOptions) -> None:
        """Train over the sites; call it again to go on.

        Before the first round the sites agree, by sums that the server cannot read where there is a key, on the
        directions of each modality and on the prototypes that align their sections. Encoders and decoders of a
        modality are averaged over the sites that measured it. With several modalities the training loss also counts
        how well single spots are reconstructed; the validation loss counts neighbourhoods alone. Sites train by Adam;
        the learning rate falls to zero over the rounds.

        Parameters
        ----------
        options
            Settings by name, see :class:`SpaMosaicOptions`.

        Raises
        ------
        ValueError
            If an argument, the key or the data cannot be used; before any training.
        """
        with self._training(options) as model:
            model._train(options)

    def _train(self, options: SpaMosaicOptions) -> None:
        if self._adata is None or self._adata_manager is None:
            msg = (
                "Expected sections to train on, found none, or a view, or some without the model's modalities and its "
                "columns of sections and sites. Load the model with all of these."
            )
            raise ValueError(msg)
        measured = self._measured(self._adata, train=True, remote=options.remote)
        if self._options.finds_width and any(map(has_graph_of_others, modalities_of(self._adata).values())):
            logger.warning("The graph in .obsp['%s'] is not used, but with `graph='squidpy'`.", CONNECTIVITIES)
        owners = owners_of(measured, options.remote)
        everyone = sorted(set().union(*owners.values()))
        site = None if options.remote is None else options.remote.site
        names = everyone if site is None else [site]
        protections = self._protections(options, len(names))
        guards = None
        if options.protections != "default":
            check_noise_of_spots(protections, everywhere=all(own == everyone for own in owners.values()))
            guards = sums_alone(protections)
        self._check_share(options)
        sum_key = options.key if protections else None
        warn_of_pairs(owners, len(everyone), sum_key)
        payload = self._payload or Payload()
        sums: Any = {"key": sum_key, "protections": guards, "payload": payload, "rng": options.seed, "site": site}
        fits = fit_bases(measured, self._options, undecided=self._undecided(measured), **sums)
        tensors = {}
        for modality, fit in fits.items():
            self._bases[modality], measured[modality] = fit.basis, fit.measured
            place = place_of(fit.measured, self._adata.n_obs)
            tensors[modality] = fit.tensors(place, values=len(fits) > 1, graph=bool(options.graph_weight))
        self._normalise = {modality: own.normalise for modality, own in measured.items()}
        strategy, metadata = _over_owners(options.averaging, owners, everyone)
        data = site_data(measured, tensors, names, options, metadata)
        batch_size = options.batch_size or _batch_size(data, options)
        local = options.local_training(batch_size, optimizer="adam", decay_rounds=options.n_rounds)
        (run,) = self._federate(self._training_of(data, local, options, protections, strategy=strategy))
        self._finish(run, options)
        if len(measured) > 1 and run is not None and not self.is_personal:
            self._judged = self._judge(measured, tensors, data, options, guards)

    def _judge(
        self,
        measured: Mapping[str, Measured],
        tensors: Mapping[str, SpotTensors],
        data: Mapping[str, SiteData],
        options: SpaMosaicOptions,
        guards: Sequence[Protection] | None,
    ) -> dict[str, State]:
        """How accurately each modality is imputed from the others, on spots that were set aside."""
        if len(data) == 1 and options.remote is None:
            guards = ()
        elif guards is None:
            guards = default_protections(options.key, len(data), warns=False)  # it did before training
        aside = np.concatenate([own.validation.rows for own in data.values()])  # type: ignore[attr-defined]
        judged = {}
        for modality, own in measured.items():
            others = {name: part for name, part in tensors.items() if name != modality}
            predicted = self._predicted(modality, others, self._adata.n_obs)
            if np.isfinite(predicted[np.intersect1d(aside, own.rows)]).all(1).any():
                predicted[np.setdiff1d(np.arange(len(predicted)), aside)] = np.nan
            judged[modality] = judge_imputation(
                modality,
                own,
                tensors[modality].values.numpy(),  # type: ignore[union-attr]
                predicted[own.rows],
                self._bases[modality],
                list(data),
                protections=guards,
                payload=self._payload,
            )
        return judged

    # ---- files

    def _facts(self) -> dict[str, Any]:
        return {"normalise": self._normalise}

    @classmethod
    def _made_of(
        cls, adata: AnnData | None, registry: dict | None, arguments: dict[str, Any], facts: dict[str, Any]
    ) -> Self:
        arguments = {name: value for name, value in arguments.items() if name != "data"}  # a model loaded without
        return cls(adata, registry=registry, **{**arguments, "facts": facts})

    def _summary(self) -> str:
        options = self._network_options
        counts = [f"{n or self._options.radius or 'adjacent'}" for n in self.n_neighbours.values()] or ["nearest"]
        return (
            f"codes of {options['n_latent']} from {self._options.n_hops} hops over {' or '.join(sorted(set(counts)))} "
            f"neighbours, {options['n_hidden']} hidden units"
        )


def site_data(
    measured: Mapping[str, Measured],
    tensors: Mapping[str, SpotTensors],
    names: Sequence[str],
    options: SpaMosaicOptions,
    metadata: Mapping[str, Mapping[str, float]],
) -> dict[str, SiteData]:
    """Spots of each site to train on and to validate with."""
    device = resolve_device(options.device)
    weights = {name: getattr(options, name) for name in ("graph_weight", "contrast_weight", "temperature")}
    data = {}
    for number, name in enumerate(names, options.first_number):
        here = [(own.rank[own.site == name], own.rows[own.site == name]) for own in measured.values()]
        rank, every = np.concatenate(here, axis=1)
        rows = every[np.unique(rank, return_index=True)[1]]  # in the order of names
        aside = np.random.default_rng([options.seed, number]).random(len(rows)) < options.validation_size
        train, validation = (MosaicBatches(tensors, part, device) for part in (rows[~aside], rows[aside]))
        data[name] = SiteData(train, validation, weights, metadata=metadata.get(name, {}))
    return data


def _every_layer(mdata: MuData, layers: Mapping[str, str | None], *, trained: bool) -> dict[str, str | None]:
    """Layer of each modality, in the order of the MuData, or of the model where one was trained before."""
    return {name: layers.get(name) for name in dict.fromkeys([*(layers if trained else ()), *mdata.mod])}


def _check_modalities(
    mdata: MuData, layers: Mapping[str, str | None] | None, normalise: Mapping[str, str] | None
) -> None:
    """Refuse names of modalities that parameters cannot have, and settings of modalities that are not there."""
    for argument, given, example in (("layers", layers, "counts"), ("normalise", normalise, "clr")):
        if given is not None and not isinstance(given, Mapping):
            cure = f"Write `{argument}={{'{next(iter(mdata.mod))}': '{example}'}}`"
            msg = f"Expected `{argument}` to be a dict by modality, found {given!r}. {cure}."
            raise TypeError(msg)
        for modality in given or {}:
            one_of(f"modality in {argument}", modality, list(mdata.mod))
    for modality, how in (normalise or {}).items():
        one_of(f"normalise['{modality}']", how, NORMALISATIONS)
    for modality in mdata.mod:
        if "." in modality or modality in ("", X) or hasattr(torch.nn.ModuleDict(), modality):
            msg = (
                f"Expected names of modalities such as 'rna', 'adt' or 'atac', found {modality!r}, which parameters of "
                "the network cannot be called. Rename it in the MuData; names hold no dots."
            )
            raise ValueError(msg)


def _over_owners(
    strategy: Strategy, owners: Mapping[str, Sequence[str]], sites: Sequence[str]
) -> tuple[Strategy, dict[str, dict[str, float]]]:
    """Strategy that averages parts over the sites that have them, and by site what it reports for that."""
    if all(len(own) == len(sites) for own in owners.values()):
        return strategy, {}
    names = ("encoders", "decoders", "readouts")
    parts = OwnedParts(strategy, {own: [f"{name}.{own}." for name in names] for own in owners})
    return parts, {site: parts.shares([m for m, own in owners.items() if site in own]) for site in sites}


def _batch_size(data: Mapping[str, SiteData], options: SpaMosaicOptions) -> int:
    """Spots per step of the smallest site, as the sites reported it where they are elsewhere."""
    if options.remote is not None:
        return min(own["batch_size"] for own in options.remote.facts.values())
    sizes = [len(own.train) + len(own.validation) for own in data.values()]
    return batch_size_of(min(sizes), options.validation_size)
