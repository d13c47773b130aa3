"""What a trained model of spatial sections predicts: embeddings, imputed features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from scinfl._checks import one_of, same_features, whole_number
from scinfl.federation import State
from scinfl.model.base._model import FederatedModel
from scinfl.model.base._registry import features_of
from scinfl.model.base._remote import RemoteContext
from scinfl.model.base._site_parameters import as_site
from scinfl.model.spamosaic._batches import MosaicBatches, SpotTensors
from scinfl.model.spamosaic._spatial_basis import BasisOptions, SpatialBasis
from scinfl.model.spamosaic._spots import Data, Measured, column_of, modalities_of, read_spots

X = "X"  # name of the one modality of an AnnData
_JUDGED = ("shrinkage", "error")


class SpotPredictor(FederatedModel):
    """A model that embeds spots and imputes modalities, and what it does so from."""

    _options: BasisOptions
    _bases: dict[str, SpatialBasis]
    _judged: dict[str, State]
    _normalise: dict[str, str]
    _columns_to_train = ("section_key", "site_key")

    @property
    def feature_names(self) -> dict[str, pd.Index]:
        """Features that the model was trained on by modality, in order; of an AnnData under ``"X"``."""
        return _feature_names(self.registry_)

    @property
    def var_names(self) -> pd.Index:
        """Features that the model was trained on, in order; with several modalities ``"modality:feature"``."""
        names = self.feature_names
        if list(names) == [X]:
            return names[X]
        return pd.Index([f"{modality}:{feature}" for modality, own in names.items() for feature in own])

    @property
    def n_neighbours(self) -> dict[str, int]:
        """Nearest spots that are averaged over, by modality; 0 where another rule defines them."""
        return {modality: int(basis.neighbours[0]) for modality, basis in self._bases.items()}

    def _measured(self, data: Data, *, train: bool = False, remote: RemoteContext | None = None) -> dict[str, Measured]:
        """Spots by modality; new sections without a column of sites are of one."""
        setup = self._setup_args()
        layers = {X: setup["layer"]} if "layer" in setup else dict(setup["layers"] or {})
        given = setup["normalise"]
        normalise = self._normalise
        if train and not normalise:
            normalise = {X: given} if isinstance(given, str) else dict(given or {})
        measured = read_spots(
            data,
            section_key=setup["section_key"],
            site_key=setup["site_key"] if train or self._has_sites(data) else None,
            spatial_key=setup["spatial_key"],
            layers=layers,
            normalise=normalise,
            graph=self._options.given,
            train=train,
            elsewhere=remote is not None,
        )
        if remote is not None:
            measured = {name: replace(own, site=np.full(len(own.rows), remote.site)) for name, own in measured.items()}
        return measured

    def _undecided(self, measured: Mapping[str, Measured]) -> list[str]:
        """Modalities of counts that nobody named a normalisation of, where places matter."""
        given = self._setup_args()["normalise"]
        named = set(self._normalise) | ({X} if isinstance(given, str) else set(given or {}))
        is_open = [name for name, own in measured.items() if own.normalise == "lognorm" and name not in named]
        return is_open if self._options.n_hops else []

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

        The aligned neighbourhood of a spot in all modalities, predicted from its code; NaN for spots without a
        modality.

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
        return self._predicted(None, tensors, data.n_obs, site, batch_size)

    def impute(
        self, modality: str, data: Data | None = None, *, site: str | None = None, batch_size: int = 65536
    ) -> np.ndarray:
        """Features of a modality predicted from the other modalities of a spot (spots × features, float32).

        On the scale of the modality's normalisation, around the mean of all spots, and shrunk towards it by a
        factor estimated on spots that were set aside: how a section differs is unknown where a section did not measure
        them. NaN for spots that no other modality measured. No spot of another site is looked at;
        :func:`scinfl.tl.impute` also looks at measured spots of the same site.

        Parameters
        ----------
        modality
            Which modality to impute.
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
        predicted = self._predicted(modality, tensors, data.n_obs, site, batch_size)
        shrinkage = float(self._judged.get(modality, {}).get("shrinkage", [1.0])[0])
        return self._bases[modality].features(shrinkage * predicted)

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

    def neighbours(self, modality: str, data: Data | None = None) -> sparse.csr_matrix:
        """Distances of the neighbours that spots of a modality are averaged over (spots × spots, float64).

        In the unit of the coordinates, for rows and columns of the data. What is stored are the neighbours: two spots
        at one place have a stored distance of 0.

        Parameters
        ----------
        modality
            Which modality; ``"X"`` of an AnnData.
        data
            The training data by default.

        Raises
        ------
        ValueError
            If the modality is unknown.
        """
        self._check_ready()
        data = self._validate_anndata(data)
        measured = self._measured(data)
        one_of("modality", modality, list(measured))
        own = measured[modality]
        i, j = self._bases[modality].graph(own, self._options).nonzero()
        i, j = i[i != j], j[i != j]
        distance = np.linalg.norm(own.coordinates[i] - own.coordinates[j], axis=1)
        return sparse.csr_matrix((distance, (own.rows[i], own.rows[j])), shape=(data.n_obs, data.n_obs))

    def normalised(self, modality: str, data: Data | None = None, rows: np.ndarray | None = None) -> np.ndarray:
        """Measured features of a modality as the model normalises them (spots × features, float32).

        Parameters
        ----------
        modality
            Which modality.
        data
            The training data by default.
        rows
            Spots of the data that measured it; all that did by default, in the order of the data.

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
        rows = np.sort(own.rows) if rows is None else np.asarray(rows)
        place = place_of(own, data.n_obs).numpy()[rows]
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

    def _predicted(
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
        return SpotTensors(place_of(own, n_spots), torch.from_numpy(inputs.astype(np.float32)))

    @classmethod
    def _check_features(cls, adata: Data, registry: dict[str, Any]) -> None:
        expected = _feature_names(registry)
        kind = AnnData if list(expected) == [X] else MuData
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


def _feature_names(registry: Mapping[str, Any]) -> dict[str, pd.Index]:
    return {name if name == X else name.removeprefix(f"{X}_"): own for name, own in features_of(registry).items()}


def place_of(own: Measured, n_spots: int) -> torch.Tensor:
    """Row of each spot of the data in a modality; -1 where it did not measure the spot."""
    place = np.full(n_spots, -1, np.int64)
    place[own.rows] = np.arange(len(own.rows))
    return torch.from_numpy(place)
