"""What all models share: locking, files, and the bridge to scvi-tools (the only file that knows its private names)."""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import warnings
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NoReturn, Self

import anndata as ad
import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi.data._constants import _FIELD_REGISTRIES_KEY, _SETUP_ARGS_KEY, _STATE_REGISTRY_KEY
from scvi.data._manager import AnnDataManagerValidationCheck
from scvi.model.base import BaseModelClass
from torch import nn

from scinfl import __version__
from scinfl import nn as keyed_nn
from scinfl._checks import first_of, one_of, same_features, whole_number
from scinfl.federation import Journal, Protection, Run, State, Strategy, simulate
from scinfl.federation._payload import Payload
from scinfl.federation._rehearse import rehearse
from scinfl.model.base._files import parse_weights, read_document, read_weights, seal_labels, write_model
from scinfl.model.base._local_training import Batches, LocalSite, LocalTraining, Lock, Open, SharedNetwork, as_tensors
from scinfl.model.base._rekey import check_rekeyable, rekeyed
from scinfl.model.base._secrets import secret_arrays
from scinfl.model.base._shared_parameters import Share, check_share, shared_names
from scinfl.privacy import Key, Seal
from scinfl.privacy._linter import PayloadLinter
from scinfl.privacy.aggregation._default_protections import default_protections
from scinfl.privacy.keys._rotation import check_successor

logger = logging.getLogger(__name__)

UNPAIRED = AnnDataManagerValidationCheck(check_fully_paired_mudata=False)
"""For modalities that measured different spots."""

_ARRAYS_OF_REGISTRY = ("categorical_mapping", "column_names")
_ARRAY = "array/"  # before the names of what is saved beside parameters


class FederatedModel(BaseModelClass):
    """A network that is trained over sites and locked with a key.

    Parameters
    ----------
    adata
        Data that were set up; ``None`` when a model is loaded without data.
    key_scheme
        Form of the keyed modules; ``None`` for the plain network, which takes no key.
    train_meta
        Train the read-out of the meta learners.
    rng
        Seed of the initial parameters.
    registry
        Registry of a saved model.
    """

    first_layer: str | None = None
    """Name of the linear layer that reads the features; ``None`` where no single layer does."""

    _columns_to_train: tuple[str, ...] = ("labels_key", "site_key", "group_key")
    """Setup arguments that name columns of ``obs`` without which there is no training."""

    def __init__(
        self,
        adata: AnnData | None,
        *,
        key_scheme: str | None,
        train_meta: bool = False,
        rng: int,
        registry: dict | None,
    ) -> None:
        if key_scheme is not None:
            one_of("key_scheme", key_scheme, [*keyed_nn.KEY_SCHEMES])
        whole_number("rng", rng, 0)
        super().__init__(adata, registry=registry)
        if train_meta and key_scheme != "coordinate":
            msg = f"Expected `train_meta` with `key_scheme='coordinate'`, found it with {key_scheme!r}. Leave it out."
            raise ValueError(msg)
        self._key_scheme = key_scheme
        self._key_options = {"train_meta": True} if train_meta else {}
        self._share: Share = "all"
        self._locked_with: dict[str, Any] | None = None
        self._key: Key | None = None  # as long as the model is unlocked; copies and pickles come without it
        self._sealed: _SealedWeights | None = None
        self._history: pd.DataFrame | None = None
        self._site_history: pd.DataFrame | None = None
        self._local_states: dict[str, State] = {}
        self._payload: Payload | None = None
        self._is_rehearsal = False  # nothing may leave a site
        self._seat: RemoteContext | None = None  # where the other sites are elsewhere
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng)
            self.module = self._make_module()
        self._module_rng = rng

    @classmethod
    def _registry_of(cls, adata: Any) -> dict[str, Any]:
        """Registry of data that were set up."""
        return cls._get_most_recent_anndata_manager(adata, required=True).registry

    @abstractmethod
    def _make_module(self) -> nn.Module:
        """Build the plain network from ``self.init_params_`` and the registry."""

    # ---- what it was set up with

    @property
    def var_names(self) -> pd.Index:
        """Features that the model was trained on, in order."""
        return pd.Index(self._state_registry("X")["column_names"])

    @property
    def history(self) -> pd.DataFrame | None:
        """Mean training and validation metrics, sites, bytes and seconds, one row a round."""
        return self._history

    @property
    def site_history(self) -> pd.DataFrame | None:
        """One row a round and site. Known only in the process that trained; never saved."""
        return self._site_history

    @property
    def payload(self) -> pd.DataFrame | None:
        """What left each site in the last training, or would leave after ``train(dry_run=True)``.

        One row a site, purpose and array, see :class:`scinfl.federation.Payload`. Never saved; the journal has it.
        """
        return None if self._payload is None else self._payload.table

    def _state_registry(self, field: str) -> dict[str, Any]:
        return self.registry_[_FIELD_REGISTRIES_KEY][field][_STATE_REGISTRY_KEY]

    def _setup_args(self) -> dict[str, Any]:
        return self.registry_[_SETUP_ARGS_KEY]

    def _validate_anndata(self, adata: AnnData | None = None, copy_if_view: bool = True) -> AnnData:  # noqa: FBT001, FBT002
        """Data to predict: the model's features in the model's order. Views, labels and sites do not matter."""
        del copy_if_view
        if adata is None:
            adata = self._adata
        if adata is None:
            msg = "Expected data, found none: the model was loaded without. Pass `adata`."
            raise ValueError(msg)
        self._check_features(adata, self.registry_)
        return adata

    @classmethod
    def _check_features(cls, adata: AnnData, registry: dict[str, Any]) -> None:
        """Refuse data without the features of a registry, in its order."""
        same_features(adata.var_names, features_of(registry)["X"])

    @classmethod
    def _set_up_again(cls, adata: AnnData, registry: dict[str, Any], setup: dict[str, Any]) -> None:
        """Set data up as those of a loaded model were."""
        cls.setup_anndata(adata, source_registry=registry, **setup)

    # ---- further sites

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
        site_key = self._setup_args()["site_key"]
        if not self.is_trained_ or self._adata is None or self._adata_manager is None or site_key is None:
            msg = (
                "Expected a trained model with the cells of its sites, found one without. Load it with the cells of "
                "the other sites, or make a new model of all."
            )
            raise RuntimeError(msg)
        self._check_features(adata, self.registry_)
        own = adata.copy()
        if site is not None:
            own.obs[site_key] = site
        new, known = (set(cells.obs[site_key].astype(str)) for cells in (own, self._adata))
        if both := sorted(new & known):
            msg = f"Expected a site that takes no part yet, found {first_of(both)}. Name the new one with `site=`."
            raise ValueError(msg)
        if twice := sorted(set(own.obs_names) & set(self._adata.obs_names)):
            msg = (
                f"Expected names of cells that occur once, found {len(twice)} that other sites have: "
                f"{first_of(twice)}. Put the site before them: `adata.obs_names = 'west-' + adata.obs_names`."
            )
            raise ValueError(msg)
        joined = ad.concat([self._adata, own], merge="first", uns_merge="first")
        self._attach(joined, self._setup_args())

    def _attach(self, adata: Any, setup: Mapping[str, Any]) -> None:
        """Train on these data from now on."""
        self._set_up_again(adata, self.registry_, dict(setup))
        self._adata = adata
        self._adata_manager = self._get_most_recent_anndata_manager(adata, required=True)
        self._register_manager_for_instance(self._adata_manager)

    # ---- the lock

    @property
    def is_locked(self) -> bool:
        """Whether the model was trained with a key and does not have it."""
        layers = keyed_nn.keyed_layers(self.module).values()
        return self._locked_with is not None and not all(layer.is_set for layer in layers)

    @property
    def key_fingerprint(self) -> str | None:
        """Fingerprint of the key that the model was trained with."""
        return self._locked_with["fingerprint"] if self._locked_with else None

    def unlock(self, key: Key, *, force: bool = False) -> None:
        """Give the model its key, for as long as this object lives.

        Parameters
        ----------
        key
            The key that it was trained with.
        force
            Take another key all the same, to see what a wrong key predicts.

        Raises
        ------
        ValueError
            If the key is another one, or the model was trained without.
        """
        _check_key(key)
        if self._locked_with is None:
            msg = "Expected a model that was trained with a key, found a plain one. It predicts without `unlock`."
            raise ValueError(msg)
        if key.fingerprint != self._locked_with["fingerprint"] and not force:
            msg = (
                f"Expected the key with fingerprint {self._locked_with['fingerprint']} (federation "
                f"'{self._locked_with['federation']}', version {self._locked_with['version']}), found "
                f"{key.fingerprint} (federation '{key.federation}', version {key.version}). Use the key of this model."
            )
            if key.fingerprint in self._locked_with.get("previous", ()):
                msg += " It was locked with the key found before it was rekeyed."
            raise ValueError(msg)
        if self._sealed is not None:
            self._load_weights(self._sealed.open(key))
            self._sealed = None
        keyed_nn.set_key(self.module, key.coordinates)
        self._key = key

    def lock(self) -> None:
        """Forget the key."""
        keyed_nn.clear_key(self.module)
        self._key = None

    def rekey(self, old: Key, new: Key, *, force: bool = False) -> None:
        """Lock the trained model with another key: it predicts the same, and the old key is worth nothing to it.

        Unfolds the old key and folds the new one in every keyed layer and table, and in the personal parameters of
        every site; trained meta learners keep their parameters. The model is left unlocked with the new key.

        Whoever keeps the old model and its key could compare its weights with the new ones and read off what the new
        key does to each unit, so a rekeyed model is saved sealed only. He also goes on using the old model: rekeying
        takes nothing back.

        Parameters
        ----------
        old
            The key that the model is locked with.
        new
            A later version of it, see :func:`scinfl.privacy.rotate`.
        force
            Take a key of another federation, or of an earlier version, all the same.

        Raises
        ------
        ValueError
            If a key is another one than expected, or the key cannot be exchanged exactly: ``share="projected"``, whose
            first layer is the key itself, and ``key_scheme="pooled"``.

        Examples
        --------
        >>> import scinfl as si
        >>> adata = si.datasets.pbmc()
        >>> si.pp.split_sites(adata, n_sites=5, by="bulk_labels", rng=0)
        >>> si.model.Classifier.setup_anndata(adata, labels_key="bulk_labels", site_key="site")
        >>> model, old = si.model.Classifier(adata), si.privacy.Key.generate("lung")
        >>> model.train(n_rounds=2, key=old, progress=False)
        >>> before = model.predict()
        >>> new = si.privacy.Key.generate("lung", version=2)
        >>> model.rekey(old, new)
        >>> bool((model.predict() == before).all()), model.key_fingerprint == new.fingerprint
        (True, True)
        """
        _check_key(old)
        _check_key(new)
        check_successor(old, new, force=force)
        check_rekeyable(self.module)
        self.unlock(old)
        state = self.module.state_dict()
        shared = rekeyed(self.module, state, old, new)
        personal = {}
        for site, local in self._local_states.items():
            own = rekeyed(self.module, {**state, **as_tensors(local)}, old, new)
            personal[site] = {name: own[name].numpy() for name in local}
        self._reseal(new)
        self.module.load_state_dict(shared)
        self._local_states = personal
        was = self._locked_with or {}
        self._locked_with = {**was, **_said_of(new), "previous": [*was.get("previous", ()), old.fingerprint]}
        self.unlock(new)

    def _reseal(self, key: Key) -> None:
        """Seal with another key what an unlocked model keeps sealed beside its weights."""

    def stripped(self) -> Self:
        """A copy whose keyed modules are removed, and which answers all the same: what a thief has.

        Raises
        ------
        RuntimeError
            If the model is untrained, sealed, or was trained without a key.
        """
        if not self.is_trained_ or self._locked_with is None or self._sealed is not None:
            msg = "Expected a model that was trained with a key and is not sealed, found another. Unlock it first."
            raise RuntimeError(msg)
        thief = copy.copy(self)
        thief.module = keyed_nn.unkeyed(copy.deepcopy(self.module))
        thief._locked_with = thief._key = None
        return thief

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_key": None}

    def _check_ready(self) -> None:
        if not self.is_trained_:
            msg = "Expected a trained model, found an untrained one. Call `train` first."
            raise RuntimeError(msg)
        if self.is_locked:
            msg = (
                f"Expected an unlocked model, found it locked with the key of fingerprint {self.key_fingerprint}. "
                "Call `model.unlock(key)` first."
            )
            raise RuntimeError(msg)

    @contextmanager
    def _with_key(self, key: Key | None, share: Share) -> Iterator[None]:
        """Key the network for training; a training that fails on a fresh model leaves it plain."""
        fresh = self._locked_with is None
        if key is None:
            self._check_no_key_needed()
            yield
            return
        _check_key(key)
        if self._key_scheme is None:
            msg = "Expected no key with `key_scheme=None`, found one. Drop the key, or choose a key scheme."
            raise ValueError(msg)
        if fresh and self.is_trained_:
            msg = (
                "Expected an untrained model or one trained with a key, found one trained without: its weights are "
                "known in the open, so a key would guard nothing. Make a new model."
            )
            raise ValueError(msg)
        if not fresh:
            self.unlock(key)
            yield
            return
        plain = copy.deepcopy(self.module)
        self._key_module(self._key_scheme, self._key_options, share)
        self._draw_initial_weights(key)
        keyed_nn.set_key(self.module, key.coordinates)
        self._key = key
        self._locked_with = {"scheme": self._key_scheme, "options": self._key_options, **_said_of(key)}
        try:
            yield
        except BaseException:
            self.module = plain
            self._locked_with = self._key = None
            raise

    def _key_module(self, scheme: str, options: Mapping[str, Any], share: Share) -> None:
        """Swap the linear layers of the plain network for keyed ones."""
        if share == "projected" and self.first_layer is not None:
            keyed_nn.projected(self.module, self.first_layer)
        generator = torch.Generator().manual_seed(self._module_rng)
        keyed_nn.keyed(self.module, scheme, generator=generator, **options)

    def _draw_initial_weights(self, key: Key) -> None:
        """Draw the initial weights from the key, uniform for linear layers as torch does, normal for tables.

        From a public seed, whoever has the final weights could tell how far each of them moved.
        """
        with torch.no_grad():
            for name, layer in keyed_nn.keyed_layers(self.module).items():
                for what, parameter in layer.named_parameters(recurse=False):
                    label = f"{name}/initial {what}/{self._module_rng}"
                    values = torch.from_numpy(key.coordinates(label, tuple(parameter.shape)))
                    if isinstance(layer, keyed_nn.CoordinateTable):
                        values = np.sqrt(2) * torch.erfinv(values * (1 - 1e-9)) * layer.std
                    else:
                        values = values / np.sqrt(layer.in_features)
                    parameter.copy_(values)

    def _check_no_key_needed(self) -> None:
        if self._locked_with is not None:
            msg = (
                f"Expected the key with fingerprint {self.key_fingerprint}, found none: the model was trained with "
                "it. Pass `key=`."
            )
            raise ValueError(msg)
        if self._key_scheme is not None and not self.is_trained_:
            warnings.warn(
                "Training without a key: the model is federated but not keyed, whoever holds its weights can use it. "
                "Pass `key=Key.generate()`, or make the model with `key_scheme=None` to say that this is meant.",
                UserWarning,
                stacklevel=6,
            )

    # ---- training

    def _federate(
        self,
        data: Mapping[str, tuple[Batches, Batches]],
        training: LocalTraining,
        *,
        key: Key | None,
        strategy: Strategy,
        protections: Sequence[Protection] | Literal["default"],
        n_rounds: int,
        journal: str | os.PathLike[str] | None,
        device: str,
        share: Share,
        loss_options: Mapping[str, Mapping[str, Any]],
        prepare: Mapping[str, Callable[[nn.Module], None]] | None = None,
        describe: Mapping[str, Mapping[str, float]] | None = None,
        **options: Any,
    ) -> None:
        """Train over sites that were given as (training, validation) observations by name."""
        target = resolve_device(device)
        if protections == "default":
            protections = default_protections(key, len(data), stacklevel=5)
        if self._seat is None:
            _check_validation(data, protections)
        share = self._check_share(share, key)
        with self._with_key(key, share):
            self.module.to(target)
            network, lock, open_state = self._training_network(key)
            shared = shared_names(network, share)
            taken_in_turns = SharedNetwork(network, open_state)

            def make_sites(training: LocalTraining, protections: Sequence[Protection]) -> list[LocalSite]:
                return [
                    LocalSite(
                        name,
                        taken_in_turns,
                        shared,
                        train,
                        validation,
                        training,
                        strategy,
                        lock=lock,
                        prepare=partial(prepare[name], network) if prepare else None,
                        protections=protections,
                        key_version=key.version if key else None,
                        loss_options=loss_options.get(name),
                        describe=describe[name] if describe else None,
                    )
                    for name, (train, validation) in data.items()
                ]

            sites = make_sites(training, protections)
            if self._is_rehearsal:
                sites = make_sites(replace(training, epochs=1), ())  # no budget is spent
            for site in sites:
                if site.name in self._local_states:
                    site.load_local_state(self._at_boundary(self._local_states[site.name], keyed_nn.unlock))
            settings = {
                "model": type(self).__name__,
                "init_params": self.init_params_,
                "features": hashlib.sha256("\n".join(self.var_names).encode()).hexdigest(),
                "key": self._locked_with,
                "training": vars(training),
                "strategy": repr(strategy),
                "protections": [_settings_of(protection) for protection in protections],
                "share": share,
                "sites": {site.name: site.n_obs for site in sites},
                "options": {name: value for name, value in options.items() if name not in ("progress", "derive")},
            }
            payload = self._payload or self._open_payload()
            state = self._shared_state(shared)
            log = None if journal is None else Journal(journal, None if key is None else Seal(key))
            with payload.inspected(self._linter(network, shared).check):
                if self._is_rehearsal:
                    chosen = {name: options[name] for name in ("fraction", "min_sites") if name in options}
                    n_sites = 1 if self._seat is None else len(self._seat.sites)
                    rehearse(
                        sites,
                        state,
                        strategy,
                        protections,
                        payload,
                        n_rounds=n_rounds,
                        journal=log,
                        n_elsewhere=n_sites - 1,
                        **chosen,
                    )
                    return
                run = (simulate if self._seat is None else self._seat.engine)(
                    sites,
                    state,
                    strategy,
                    protections,
                    n_rounds=n_rounds,
                    rng=training.rng,
                    journal=log,
                    settings=settings,
                    payload=payload,
                    **options,
                )
        self._share = share
        self._finish(run)

    def _open_payload(self) -> Payload:
        """Start a new list of what leaves the sites."""
        self._payload = Payload(PayloadLinter().check, planned=self._is_rehearsal)
        return self._payload

    def _linter(self, network: nn.Module, shared: Collection[str]) -> PayloadLinter:
        """Refuses what neither the share rule nor the key lets out."""
        shapes = {name: tuple(p.shape) for name, p in network.named_parameters() if name in shared}
        return PayloadLinter(shapes, secrets=secret_arrays(self.module) if self._key is not None else None)

    def _rehearse(self, arguments: Mapping[str, Any]) -> None:
        """Train a copy without a server, and keep the list of what would have left the sites."""
        twin = copy.copy(self)
        kept = {
            name: copy.copy(value) if isinstance(value, dict | list) else value for name, value in vars(self).items()
        }
        twin.__dict__.update({**kept, "module": copy.deepcopy(self.module), "_is_rehearsal": True})
        if self._key is not None:
            keyed_nn.set_key(twin.module, self._key.coordinates)
        left_out = ("self", "__class__", "dry_run")
        type(self).train(twin, **{name: value for name, value in arguments.items() if name not in left_out})
        self._payload = twin._payload

    def _training_network(self, key: Key | None) -> tuple[nn.Module, Lock, Open]:
        """Network that the sites train, and how its parameters become what is sent, and back.

        Where the key acts at the boundary that is the plain network; else the keyed one, with the key inside.
        """
        network = copy.deepcopy(self.module)  # comes without the key
        if keyed_nn.at_boundary(self.module):
            network = keyed_nn.unkeyed(network)
            lock: Lock = partial(keyed_nn.lock, self.module)
            open_state: Open = _Opener(self.module)
        else:
            lock, open_state = dict, as_tensors
        if key is not None and keyed_nn.keyed_layers(network):
            keyed_nn.set_key(network, key.coordinates)
        return network, lock, open_state

    def _check_share(self, share: Share, key: Key | None) -> Share:
        """The rule, a list of layers as a list, if it fits this model."""
        check_share(share)
        share = share if isinstance(share, str) else list(share)
        if share == "projected" and key is None:
            msg = "Expected a key for `share='projected'`, found none: the projection is derived from it. Pass `key=`."
            raise ValueError(msg)
        if share == "projected" and self.first_layer is None:
            msg = (
                f"Expected `share` to be 'all', 'meta' or a list of layers, found 'projected': a "
                f"{type(self).__name__} has no first layer that reads cells."
            )
            raise ValueError(msg)
        if self.is_trained_ and share != self._share:
            msg = (
                f"Expected the share rule that the model was trained with ({self._share!r}), found {share!r}. "
                "Make a new model."
            )
            raise ValueError(msg)
        return share

    def _shared_state(self, shared: Collection[str]) -> State:
        """Parameters that travel, as the (locked) module holds them."""
        return {name: p.detach().cpu().numpy().copy() for name, p in self.module.named_parameters() if name in shared}

    def _finish(self, run: Run) -> None:
        parameters = dict(self.module.named_parameters())
        with torch.no_grad():
            for name, array in run.best_state.items():
                parameters[name].copy_(torch.from_numpy(array))
        self.module.eval()
        self._local_states = {
            site: self._at_boundary(state, keyed_nn.lock) for site, state in run.best_local.items() if state
        }
        self._history = pd.DataFrame(run.history).set_index("round")
        self._history.attrs["best_round"] = run.best_round
        self._site_history = pd.DataFrame(run.site_history).set_index(["round", "site"])
        self.is_trained_ = True

    def _at_boundary(self, state: State, change: Callable[..., dict[str, torch.Tensor]]) -> State:
        """What stays at a site, from the plain form to the module's (``lock``) or back (``unlock``)."""
        if not keyed_nn.at_boundary(self.module):
            return state
        tensors = {name: tensor.to(self.device) for name, tensor in as_tensors(state).items()}
        return {name: tensor.cpu().numpy() for name, tensor in change(self.module, tensors).items()}

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.module.parameters()).device

    @property
    def is_personal(self) -> bool:
        """Whether every site has parameters of its own, so that a prediction must name the site."""
        return isinstance(self._share, list) or self._share == "meta"

    # ---- files

    def save(
        self,
        dir_path: str | os.PathLike[str],
        *,
        site: str | None = None,
        sealed: bool | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write the model to a folder: the weights, and a json document that describes them.

        The document holds the names of features and labels and the history of mean metrics, readable by anybody. The
        weights of a model that was trained with a key are locked, and sealed: encrypted with the key and bound to the
        document, see :class:`scinfl.privacy.Seal`. The files hold neither the key nor anything derived from it.

        Parameters
        ----------
        dir_path
            Folder to write; appears whole or not at all.
        site
            Whose personal parameters to save, where the share rule leaves some at the sites.
        sealed
            Encrypt the weights; by default where the model was trained with a key. ``False`` writes them locked only:
            they still predict at chance as they are, but whoever has the file may attack the lock, for example by
            fine-tuning on labelled data of his own.
        overwrite
            Replace a model that is there.

        Raises
        ------
        FileExistsError
            If something is there already.
        RuntimeError
            If the model is untrained, or should be sealed and does not have its key.
        """
        if not self.is_trained_:
            msg = "Expected a trained model, found an untrained one. Call `train` first."
            raise RuntimeError(msg)
        seal = self._seal_for_saving(sealed)
        history = self._history
        document = {
            "class": type(self).__name__,
            "scinfl_version": __version__,
            "init_params": self.init_params_,
            "registry": self.registry_,
            "key": self._locked_with,
            "share": self._share,
            "history": {
                "rounds": {} if history is None else history.reset_index().to_dict("list"),
                "best_round": None if history is None else history.attrs.get("best_round"),
            },
            "facts": self._facts(),
        }
        left_out = self._unsaved_names()
        state = {
            name: tensor.detach().cpu().numpy()
            for name, tensor in self.module.state_dict().items()
            if name not in left_out
        }
        state.update({name: array for name, array in self._personal(site).items() if name in state})
        state.update({f"{_ARRAY}{name}": array for name, array in self._arrays(site).items()})
        write_model(dir_path, document, state, seal=seal, overwrite=overwrite)

    def _unsaved_names(self) -> set[str]:
        """Running statistics stay where they are: they would let an attacker fit missing scales."""
        return {name for name, _ in self.module.named_buffers()}

    def _facts(self) -> dict[str, Any]:
        """What a model must know of itself beside its arguments, readable by anybody."""
        return {}

    def _arrays(self, site: str | None) -> State:
        """What a model knows beside its parameters, saved with them."""
        del site
        return {}

    def _take_arrays(self, arrays: State) -> None:
        """Restore what :meth:`_arrays` gave."""

    @classmethod
    def _made_of(
        cls, adata: AnnData | None, registry: dict | None, arguments: dict[str, Any], facts: dict[str, Any]
    ) -> Self:
        """Untrained model of a saved description."""
        del facts
        return cls(adata, registry=registry, **arguments)

    def _personal(self, site: str | None) -> State:
        """Personal parameters of a site; none where the whole model is shared."""
        if not self.is_personal or (site is None and not self._local_states):
            return {}  # a loaded model is that of one site already
        if site not in self._local_states:
            msg = (
                f"Expected `site` to name one of the sites {sorted(self._local_states)}, found {site!r}: with "
                f"`share={self._share!r}` each has a model of its own."
            )
            raise ValueError(msg)
        return self._local_states[site]

    def _seal_for_saving(self, sealed: bool | None) -> Seal | None:  # noqa: FBT001
        if self._sealed is not None or (self._locked_with is not None and sealed is not False and self._key is None):
            msg = "Expected an unlocked model to save, found a locked one. Call `model.unlock(key)` first."
            raise RuntimeError(msg)
        if self._locked_with is None:
            if sealed:
                msg = "Expected a model that was trained with a key to seal, found a plain one. Train it with `key=`."
                raise RuntimeError(msg)
            return None
        if sealed is False and self._locked_with.get("previous"):
            msg = (
                "Expected a rekeyed model to be saved sealed, found `sealed=False`: whoever keeps the old model and "
                "its key could read the new lock off the difference. Leave `sealed` out, or train a new model with the "
                "new key."
            )
            raise ValueError(msg)
        if sealed is False:
            logger.warning(
                "Saved locked but not sealed: the weights predict at chance without the key, but whoever has the file "
                "may attack the lock with labelled data of his own."
            )
            return None
        if self._key is None or self._key.fingerprint != self.key_fingerprint:
            msg = "Expected the model's own key to seal it, found another. Call `model.unlock(key)` with the right key."
            raise RuntimeError(msg)
        return Seal(self._key)

    @classmethod
    def load(cls, dir_path: str | os.PathLike[str], adata: AnnData | None = None, *, device: str = "auto") -> Self:
        """Read a model that :meth:`save` wrote. Nothing is unpickled. A keyed model is locked until :meth:`unlock`.

        Parameters
        ----------
        dir_path
            Folder of the model.
        adata
            Data with the model's features in the model's order. Labels are optional; where they are present they must
            be labels of the model.
        device
            Where to compute.

        Raises
        ------
        FileNotFoundError
            If there is no model.
        ValueError
            If a file is damaged, the class differs, or the features differ.
        """
        document = read_document(dir_path, cls.__name__)
        registry = _with_arrays(document["registry"])
        make = partial(cls._made_of, arguments=document["init_params"]["non_kwargs"], facts=document.get("facts", {}))
        if adata is not None:
            cls._check_features(adata, registry)
            if cls._can_train_on(adata, setup := registry[_SETUP_ARGS_KEY]):
                cls._set_up_again(adata, registry, setup)
                model = make(adata, None)
            else:
                model = make(None, registry)
                model._adata = adata
        else:
            model = make(None, registry)
        model._share = document["share"]
        if document["key"] is not None:
            model._key_module(document["key"]["scheme"], document["key"]["options"], document["share"])
            model._locked_with = document["key"]
        content = read_weights(dir_path, document)
        if document["weights"]["sealed"]:
            model._sealed = _SealedWeights(content, seal_labels(document, document["weights"]["file"]))
        else:
            model._load_weights(content)
        model.module.to(resolve_device(device)).eval()
        model.is_trained_ = True
        rounds = document["history"]["rounds"]
        if rounds:
            model._history = pd.DataFrame(rounds).set_index("round")
            model._history.attrs["best_round"] = document["history"]["best_round"]
        return model

    def _load_weights(self, content: bytes) -> None:
        left_out = self._unsaved_names()
        expected = {name: tuple(t.shape) for name, t in self.module.state_dict().items() if name not in left_out}
        state, arrays = parse_weights(content, expected, beside=_ARRAY)
        self.module.load_state_dict(as_tensors(state), strict=False)
        self._take_arrays(arrays)

    @classmethod
    def _can_train_on(cls, adata: AnnData, setup: dict[str, Any]) -> bool:
        """Whether data have all that the setup of a loaded model names."""
        columns = [setup.get(name) for name in cls._columns_to_train]
        return not adata.is_view and all(column is None or column in adata.obs for column in columns)

    @classmethod
    def load_registry(cls, dir_path: str | os.PathLike[str], prefix: str | None = None) -> dict:
        """Registry of a saved model."""
        del prefix
        return _with_arrays(read_document(dir_path, cls.__name__)["registry"])

    @classmethod
    def convert_legacy_save(cls, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: files of that form are pickles."""
        del args, kwargs
        msg = "scinfl never reads pickled models. Save them with `model.save`."
        raise NotImplementedError(msg)

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} of {len(self.var_names)} features: {self._summary()}"]
        if self._history is None:
            lines.append("  trained elsewhere" if self.is_trained_ else "  untrained")
        else:
            n_sites = int(self._history["n_sites"].iloc[-1])
            lines.append(
                f"  trained {len(self._history)} rounds over {n_sites} site{'s' if n_sites != 1 else ''}, "
                f"best round {self._history.attrs['best_round']}"
            )
        if self._locked_with is not None:
            state = "sealed and locked" if self._sealed else "locked" if self.is_locked else "unlocked"
            lines.append(f"  {state}, key scheme '{self._locked_with['scheme']}', fingerprint {self.key_fingerprint}")
        else:
            lines.append("  no key")
        return "\n".join(lines)

    def _summary(self) -> str:
        return ""


@dataclass(frozen=True)
class RemoteContext:
    """The place of one site in a federation whose other sites are elsewhere.

    Parameters
    ----------
    site
        Name of the site, whose rows are all that the model has.
    sites
        Names of all sites.
    engine
        Trains together with the others, in place of :func:`scinfl.federation.simulate`.
    facts
        What the sites told each other before, by site.
    """

    site: str
    sites: Sequence[str]
    engine: Callable[..., Run]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """Place among all sites in the order of their names."""
        return sorted(self.sites).index(self.site)


def _check_validation(data: Mapping[str, tuple[Batches, Batches]], protections: Sequence[Protection]) -> None:
    n_validating = sum(len(validation) > 0 for _, validation in data.values())
    least = max([1, *(getattr(protection, "min_sites", 1) for protection in protections)])
    if 0 < n_validating < least <= len(data):  # too few sites are refused for that
        msg = (
            f"Expected validation rows at {least} sites at least, as the protections ask for, found them at "
            f"{n_validating}. Raise `validation_size`, or set it to 0 to keep the last round."
        )
        raise ValueError(msg)


@dataclass(frozen=True)
class _SealedWeights:
    """Weights of a loaded model until its key is there."""

    content: bytes
    labels: Mapping[str, Any]

    def open(self, key: Key) -> bytes:
        return Seal(key).unseal(self.content, **self.labels)


class _Opener:
    """Unlocks the shared state once, however many sites of this process and steps of a round ask for it."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._state: State | None = None
        self._plain: Mapping[str, torch.Tensor] = {}

    def __call__(self, state: State) -> Mapping[str, torch.Tensor]:
        if state is not self._state:
            device = next(self._module.parameters()).device
            tensors = {name: tensor.to(device) for name, tensor in as_tensors(state).items()}
            self._state, self._plain = state, keyed_nn.unlock(self._module, tensors)
        return self._plain


def resolve_device(device: str) -> torch.device:
    """``"auto"`` is the first GPU where there is one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device)
    except RuntimeError:
        msg = f"Expected `device` to be 'auto', 'cpu' or 'cuda:0', found {device!r}."
        raise ValueError(msg) from None


def _check_key(key: object) -> None:
    if not isinstance(key, Key):
        msg = (
            f"Expected `key` to be a scinfl.privacy.Key, found {type(key).__name__}. "
            "Read it with `Key.load(path)` or make one with `Key.generate()`."
        )
        raise TypeError(msg)


def _settings_of(protection: Protection) -> str:
    """What a protection says of its settings; another noise, for example, is another run."""
    told = type(protection).__repr__ is not object.__repr__
    return repr(protection) if told else type(protection).__name__  # which would name a place in memory


def _said_of(key: Key) -> dict[str, Any]:
    """What a model and its files say of their key, readable by anybody."""
    return {"fingerprint": key.fingerprint, "version": key.version, "federation": key.federation}


def features_of(registry: Mapping[str, Any]) -> dict[str, pd.Index]:
    """Names of features by field."""
    fields = registry[_FIELD_REGISTRIES_KEY]
    states = {name: field[_STATE_REGISTRY_KEY] for name, field in fields.items()}
    return {name: pd.Index(state["column_names"]) for name, state in states.items() if "column_names" in state}


def categories_of(registry: Mapping[str, Any] | None, name: str) -> list[str] | None:
    """Categories of a field as text; ``None`` without a registry."""
    if registry is None:
        return None
    return list(map(str, registry[_FIELD_REGISTRIES_KEY][name][_STATE_REGISTRY_KEY]["categorical_mapping"]))


def _with_arrays(registry: Any) -> Any:
    """Registry as scvi-tools wants it: some lists are arrays."""
    if isinstance(registry, dict):
        return {
            name: np.array(value, dtype=object) if name in _ARRAYS_OF_REGISTRY else _with_arrays(value)
            for name, value in registry.items()
        }
    return registry
