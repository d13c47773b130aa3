"""Integrate spatial sections of several sites without pooling their spots."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from scvi.data import AnnDataManager
from scvi.data.fields import LayerField

from scinfl import pp
from scinfl._checks import finite, first_of, looks_like_counts, number_between, obs_column, one_of, whole_number
from scinfl.federation import FedAvg, Protection, State, Strategy, Update, mean_of
from scinfl.model._base import FederatedModel, default_protections, resolve_device
from scinfl.model._cells import Cells, Matrix, owned, sites_of, values_of
from scinfl.model._local import as_site
from scinfl.model._sections import SpotBatches, centred, propagated, spatial_graph
from scinfl.model._site import LocalTraining, check_run
from scinfl.module import SpaMosaicModule
from scinfl.privacy import Key

logger = logging.getLogger(__name__)

_SITE, _SECTION, _REP = "site", "section", "X_smooth"
_CELLS_A_PROTOTYPE = 80
_BASIS = ("deviation", "mean", "components", "scale")


class SpaMosaic(FederatedModel):
    """Embed spots of spatial sections of several sites in one space; no spot of a site meets one of another.

    Features are principal components that all sites share, found from sums over sites, and their means over the
    neighbours of a spot in its section (propagation has no parameters, so it is done once). What sets sections apart is
    removed from the target by prototypes that sites share (:func:`scinfl.pp.federated_offsets`); a small network learns
    to say from a spot and its neighbourhood what the aligned neighbourhood is, through a short code. What it says is
    the embedding: a linear map of the code, in which distances mean what they do among aligned components.

    Parameters
    ----------
    adata
        Data that went through :meth:`setup_anndata`.
    n_components
        Principal components; as many as there are features at most.
    n_target
        Components of the smoothed features that are aligned and reconstructed.
    n_latent
        Length of a code. Short codes mix sections better, long ones keep more.
    n_hidden
        Hidden units.
    n_neighbours, n_hops
        Nearest spots in a section that are averaged over, and how often.
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
    >>> import numpy as np, scinfl as si
    >>> adata = si.datasets.pbmc()
    >>> adata.obs["section"] = np.repeat(["a", "b"], 350)
    >>> adata.obsm["spatial"] = np.random.default_rng(0).random((700, 2))
    >>> si.model.SpaMosaic.setup_anndata(adata, section_key="section")
    >>> model = si.model.SpaMosaic(adata, n_components=10)
    >>> model.train(n_rounds=2, key=si.privacy.Key.generate(), progress=False)
    >>> model.get_latent_representation().shape
    (700, 10)
    """

    module: SpaMosaicModule
    _columns_to_train = ("section_key", "site_key")

    def __init__(
        self,
        adata: AnnData | None = None,
        *,
        n_components: int = 30,
        n_target: int = 10,
        n_latent: int = 4,
        n_hidden: int = 64,
        n_neighbours: int = 30,
        n_hops: int = 2,
        dropout: float = 0.2,
        key_scheme: str | None = "coordinate",
        train_meta: bool = False,
        rng: int = 0,
        registry: dict | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        for name, number in (
            ("n_components", n_components),
            ("n_target", n_target),
            ("n_latent", n_latent),
            ("n_hidden", n_hidden),
            ("n_neighbours", n_neighbours),
            ("n_hops", n_hops),
        ):
            whole_number(name, number, 1)
        number_between("dropout", dropout, 0, 0.95)
        self._n_components, self._n_target = n_components, n_target
        self._n_neighbours, self._n_hops = n_neighbours, n_hops
        self._network_options: dict[str, Any] = {"n_latent": n_latent, "n_hidden": n_hidden, "dropout": dropout}
        self._basis: State = {}
        self._takes_counts = bool(facts and facts["takes_counts"])
        super().__init__(adata, key_scheme=key_scheme, train_meta=train_meta, rng=rng, registry=registry)
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
        **kwargs: Any,
    ) -> None:
        """Tell the model where sections, sites, coordinates and values are.

        Parameters
        ----------
        adata
            Spots × features: raw counts, or values on a log scale.
        section_key
            Column of ``adata.obs`` with the section of each spot.
        site_key
            Column of ``adata.obs`` with the site; ``None`` trains one site with all sections (pooled). A section
            belongs to one site.
        spatial_key
            Entry of ``adata.obsm`` with the coordinates, in any unit.
        layer
            Layer to use instead of ``adata.X``.
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
        owned(adata)
        finite(values_of(adata, layer), adata.var_names)
        sections = _sections(adata, section_key)
        _coordinates(adata, spatial_key, sections)
        pairs = pd.DataFrame({"section": sections, "site": sites_of(adata, site_key).astype(str).to_numpy()})
        pairs = pairs.drop_duplicates()
        if (twice := pairs["section"][pairs["section"].duplicated()]).any():
            msg = (
                f"Expected every section at one site, found {len(twice)} at several: {first_of(twice)}. Name sections "
                "of different sites differently."
            )
            raise ValueError(msg)
        manager = AnnDataManager(
            fields=[LayerField("X", layer, is_count_data=False, correct_data_format=False)],
            setup_method_args=setup_args,
        )
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    def _make_module(self) -> SpaMosaicModule:
        n_components = min(self._n_components, len(self.var_names))
        self._n_outputs = min(self._n_target, n_components)
        return SpaMosaicModule(n_components * (self._n_hops + 1), self._n_outputs, **self._network_options)

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
        graph_weight: float = 0.2,
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
    ) -> None:
        """Train over the sites; call it again to go on.

        Before the first round the sites agree, by sums that the server cannot read where there is a key, on the
        principal components and on the prototypes that align their sections.

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
        share, strategy, protections, fraction, min_sites, smoothing, early_stopping, journal
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
        number_between("graph_weight", graph_weight, 0, 1)
        if self._adata is None or self._adata_manager is None:
            msg = "Expected sections to train on, found none. Load the model with such data."
            raise ValueError(msg)
        adata, setup = self._adata, self._setup_args()
        sites = sites_of(adata, setup["site_key"]).astype(str).to_numpy()
        if protections == "default":
            protections = default_protections(key, len(set(sites)), stacklevel=3)
        self._check_share(share, key)
        sections = _sections(adata, setup["section_key"])
        graph = spatial_graph(_coordinates(adata, setup["spatial_key"], sections), sections, self._n_neighbours)
        sum_key = key if protections else None
        self._takes_counts = looks_like_counts(values_of(adata, setup["layer"]))
        x = self._fit_basis(adata, sections, sites, graph, sum_key, protections)
        target = self._fit_target(x, sections, sites, sum_key, rng)
        place = resolve_device(device)
        generator = np.random.default_rng(rng)
        data = {}
        for name in sorted(set(sites)):
            rows = np.flatnonzero(sites == name)
            aside = generator.random(len(rows)) < validation_size
            data[name] = tuple(SpotBatches(x, target, graph, part, place) for part in (rows[~aside], rows[aside]))
        if batch_size is None:
            batch_size = int(np.clip(min(len(train) for train, _ in data.values()) // 16, 32, 1024))
        self._federate(
            data,  # type: ignore[arg-type]
            LocalTraining(local_epochs, batch_size, lr, weight_decay, rng, optimizer="adam", decay_rounds=n_rounds),
            key=key,
            strategy=strategy or FedAvg(),
            protections=protections,
            n_rounds=n_rounds,
            share=share,
            journal=journal,
            device=device,
            loss_options={name: {"graph_weight": graph_weight} for name in data},
            fraction=fraction,
            min_sites=min_sites,
            smoothing=smoothing,
            monitor="validation_loss",
            patience=early_stopping,
            progress=progress,
        )

    def _fit_basis(
        self,
        adata: AnnData,
        sections: np.ndarray,
        sites: np.ndarray,
        graph: sparse.csr_matrix,
        key: Key | None,
        protections: Sequence[Protection],
    ) -> np.ndarray:
        """Agree on components and scales; propagated features of all spots (spots × inputs)."""
        n_components = min(self._n_components, len(self.var_names))
        work = AnnData(self._matrix(adata), pd.DataFrame({_SITE: sites}, index=adata.obs_names))
        pp.federated_scale(work, site_key=_SITE, key=key, zero_mean=False, min_cells=1)
        pp.federated_pca(work, n_components, site_key=_SITE, key=key, mask_var=None, min_cells=1)
        self._basis = {
            "deviation": np.asarray(work.var["std"], np.float64),
            "mean": np.asarray(work.uns["pca"]["mean"], np.float64),
            "components": np.asarray(work.varm["PCs"], np.float64),
            "scale": np.ones(n_components * (self._n_hops + 1)),
        }
        x = self._features(adata, sections, graph)
        updates = [
            Update(
                name,
                0,
                {"square": np.square(x[sites == name], dtype=np.float64).mean(0)},
                int((sites == name).sum()),
                float((sites == name).sum()),
                purpose="scale",
            )
            for name in sorted(set(sites))
        ]
        self._basis["scale"] = np.sqrt(np.maximum(mean_of(updates, protections).state["square"], 1e-12))
        return (x / self._basis["scale"]).astype(np.float32)

    def _features(self, adata: AnnData, sections: np.ndarray, graph: sparse.csr_matrix) -> np.ndarray:
        """Components of spots after 0, 1, … hops, around the mean of their section, by the shared basis."""
        basis = self._basis
        weights = basis["components"] / np.where(basis["deviation"] > 0, basis["deviation"], 1)[:, None]
        scores = np.asarray(self._matrix(adata) @ weights) - basis["mean"] @ basis["components"]
        hops = propagated(centred(scores.astype(np.float32), sections), graph, self._n_hops)
        return (np.hstack([centred(hop, sections) for hop in hops]) / basis["scale"]).astype(np.float32)

    def _fit_target(
        self, x: np.ndarray, sections: np.ndarray, sites: np.ndarray, key: Key | None, rng: int
    ) -> np.ndarray:
        """Leading components of the smoothest features, aligned over sections (spots × outputs)."""
        n_last = x.shape[1] // (self._n_hops + 1)
        last = x[:, -n_last:] * self._basis["scale"][-n_last:]
        names = [f"spot_{number}" for number in range(len(x))]
        work = AnnData(last.astype(np.float32), pd.DataFrame({_SITE: sites, _SECTION: sections}, index=names))
        pp.federated_pca(work, self._n_outputs, site_key=_SITE, key=key, mask_var=None, min_cells=1)
        pp.federated_offsets(
            work,
            site_key=_SITE,
            key=key,
            batch_key=_SECTION,
            n_prototypes=int(np.clip(len(x) // _CELLS_A_PROTOTYPE, 4, 40)),
            diversity=0.0,
            width=0.05,
            key_added=_REP,
            rng=rng,
        )
        aligned = np.asarray(work.obsm[_REP], np.float32)
        return aligned / np.float32(np.sqrt(work.uns["pca"]["variance"].mean()))

    # ---- embedding

    def get_latent_representation(
        self, adata: AnnData | None = None, *, site: str | None = None, batch_size: int = 65536
    ) -> np.ndarray:
        """Embedding of every spot (spots × n_target, float32), for neighbours, UMAP and :func:`scinfl.tl.cluster`.

        The aligned neighbourhood of a spot as its code tells it.

        Parameters
        ----------
        adata
            Sections with the model's features in the model's order; the training data by default. Whole sections: a
            spot is seen with its neighbours and around the mean of its section.
        site
            Whose personal parameters to use, where the share rule leaves some at the sites.
        batch_size
            Spots at a time.
        """
        self._check_ready()
        whole_number("batch_size", batch_size, 1)
        adata, setup = self._validate_anndata(adata), self._setup_args()
        sections = _sections(adata, setup["section_key"])
        graph = spatial_graph(_coordinates(adata, setup["spatial_key"], sections), sections, self._n_neighbours)
        x = self._features(adata, sections, graph)
        cells = Cells(x, np.arange(len(x)), None, self.device)
        local = self._personal(site) or None
        self.module.eval()
        with torch.inference_mode(), as_site(self.module, local, cells):
            blocks = [self.module.decoder(self.module(block)) for block, _ in cells.batches(batch_size)]
        return torch.cat(blocks).cpu().numpy()

    def _matrix(self, adata: AnnData) -> Matrix:
        """Values on a log scale; a model of raw counts normalises them, each spot by itself."""
        matrix = values_of(adata, self._setup_args()["layer"])
        finite(matrix, adata.var_names)
        if not self._takes_counts:
            return matrix
        totals = np.asarray(matrix.sum(1), dtype=np.float64).ravel()
        factor = 1e4 / np.where(totals > 0, totals, 1)
        if sparse.issparse(matrix):
            return (sparse.diags(factor) @ matrix).log1p().astype(np.float32).tocsr()
        return np.log1p(matrix * factor[:, None]).astype(np.float32)

    # ---- files

    def _facts(self) -> dict[str, Any]:
        return {"takes_counts": self._takes_counts}

    @classmethod
    def _made_of(
        cls, adata: AnnData | None, registry: dict | None, arguments: dict[str, Any], facts: dict[str, Any]
    ) -> Self:
        return cls(adata, registry=registry, **{**arguments, "facts": facts})

    def _arrays(self, site: str | None) -> State:
        del site
        return dict(self._basis)

    def _take_arrays(self, arrays: State) -> None:
        self._basis = {name: arrays[name] for name in _BASIS}

    def _summary(self) -> str:
        options = self._network_options
        return (
            f"codes of {options['n_latent']} from {self._n_hops} hops over {self._n_neighbours} neighbours, "
            f"{options['n_hidden']} hidden units"
        )


def _sections(adata: AnnData, section_key: str) -> np.ndarray:
    column = obs_column(adata, section_key, "section_key")
    if n := int(column.isna().sum()):
        msg = f"Expected a section for every spot in adata.obs['{section_key}'], found {n} without. Drop these spots."
        raise ValueError(msg)
    return column.astype(str).to_numpy()


def _coordinates(adata: AnnData, spatial_key: str, sections: np.ndarray) -> np.ndarray:
    one_of("spatial_key", spatial_key, list(adata.obsm))
    coordinates = np.asarray(adata.obsm[spatial_key], dtype=np.float64)
    odd = ~np.isfinite(coordinates).all(1)
    if odd.any():
        msg = (
            f"Expected coordinates of every spot in adata.obsm['{spatial_key}'], found {int(odd.sum())} without, in "
            f"section {first_of(sorted(set(sections[odd])))}. Drop these spots."
        )
        raise ValueError(msg)
    return coordinates
