"""A model whose network a key locks, in memory and on disk."""

from __future__ import annotations

import copy
import logging
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, Self

import pandas as pd
import torch
from anndata import AnnData
from torch import nn

from scinfl import __version__
from scinfl import nn as keyed_nn
from scinfl._checks import one_of, whole_number
from scinfl._spelling import spelled
from scinfl.federation import Payload, State
from scinfl.model.base._files import parse_weights, read_document, read_weights, seal_labels, write_model
from scinfl.model.base._keyed_network import KeyedNetwork, check_key
from scinfl.model.base._local_training import as_tensors
from scinfl.model.base._registered_model import RegisteredModel
from scinfl.model.base._registry import setup_of, with_arrays, without_counts
from scinfl.model.base._shared_parameters import Share
from scinfl.model.base._training import resolve_device
from scinfl.privacy import Key, Seal
from scinfl.privacy.keys import check_successor

logger = logging.getLogger(__name__)

_ARRAY = "array/"  # before the names of what is saved beside parameters


class LockedModel(RegisteredModel):
    """A network that a key locks, in memory and on disk.

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
        with _set_up_for(type(self).__name__):
            super().__init__(adata, registry=registry)
        if train_meta and key_scheme != "coordinate":
            msg = f"Expected `train_meta` with `key_scheme='coordinate'`, found it with {key_scheme!r}. Leave it out."
            raise ValueError(msg)
        self._share: Share = "all"
        self._sealed: SealedWeights | None = None
        self._history: pd.DataFrame | None = None
        self._site_history: pd.DataFrame | None = None
        self._local_states: dict[str, State] = {}
        self._payload: Payload | None = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng)
            module = self._make_module()
        options = {"train_meta": True} if train_meta else {}
        self._keyed = KeyedNetwork(module, scheme=key_scheme, options=options, rng=rng, first_layer=self.first_layer)

    @abstractmethod
    def _make_module(self) -> nn.Module:
        """Build the plain network from the arguments and the registry."""

    @property
    def module(self) -> Any:
        """The network."""
        return self._keyed.module

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.module.parameters()).device

    # ---- what it learnt

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

    # ---- the lock

    @property
    def is_locked(self) -> bool:
        """Whether the model was trained with a key and does not have it."""
        return self._keyed.is_locked

    @property
    def key_fingerprint(self) -> str | None:
        """Fingerprint of the key that the model was trained with."""
        return self._keyed.fingerprint

    @property
    def is_personal(self) -> bool:
        """Whether every site has parameters of its own, so that a prediction must name the site."""
        return isinstance(self._share, list) or self._share == "meta"

    def unlock(self, key: Key, *, force: bool = False) -> None:
        """Give the model its key, for as long as this object lives.

        Parameters
        ----------
        key
            The key that it was trained with.
        force
            Take another key nevertheless, to see what a wrong key predicts.

        Raises
        ------
        ValueError
            If the key is another one, or the model was trained without.
        """
        self._keyed.check(key, force=force)
        if self._sealed is not None:
            self._load_weights(self._sealed.open(key))
            self._sealed = None
        self._keyed.give(key)

    def lock(self) -> None:
        """Forget the key."""
        self._keyed.forget()

    def rekey(self, old: Key, new: Key, *, force: bool = False) -> None:
        """Lock the trained model with another key: it predicts the same, and the old key is worth nothing to it.

        Unfolds the old key and folds the new one in every keyed layer and table, and in the personal parameters of
        every site; trained meta learners keep their parameters. The model is left unlocked with the new key.

        Anyone who keeps the old model and its key goes on using it: rekeying takes nothing back. Without the offsets of
        the scheme, they could also compare its weights with the new ones and read off what the new key does to each
        unit, so such a rekeyed model is saved sealed only.

        Parameters
        ----------
        old
            The key that the model is locked with.
        new
            A later version of it, see :func:`scinfl.privacy.rotate`.
        force
            Take a key of another federation, or of an earlier version, nevertheless.

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
        check_key(old)
        check_key(new)
        check_successor(old, new, force=force)
        self._keyed.check_rekeyable()
        self.unlock(old)
        self._local_states = self._keyed.rekey(old, new, self._local_states)
        self._reseal(new)
        self.unlock(new)

    def _reseal(self, key: Key) -> None:
        """Seal with another key what an unlocked model keeps sealed beside its weights."""

    def stripped(self) -> Self:
        """A copy whose keyed modules are removed and that predicts nevertheless: what a model-stealing attacker has.

        Raises
        ------
        RuntimeError
            If the model is untrained, sealed, or was trained without a key.
        """
        if not self.is_trained_ or self.key_fingerprint is None or self._sealed is not None:
            msg = "Expected a model that was trained with a key and is not sealed, found another. Unlock it first."
            raise RuntimeError(msg)
        plain = copy.copy(self)
        plain._keyed = self._keyed.stripped()
        return plain

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_keyed": copy.copy(self._keyed)}  # comes without the key

    def _check_ready(self) -> None:
        self.check_trained()
        if self.is_locked:
            msg = (
                f"Expected an unlocked model, found it locked with the key of fingerprint {self.key_fingerprint}. "
                f"{spelled('Call `model.unlock(key)` first')}."
            )
            raise RuntimeError(msg)

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
            behind offsets (``key_scheme="coordinate"``) they are noise without the key, but nobody notices when the
            file is changed. Under other schemes anyone with the file can attack the lock.
        overwrite
            Replace a model that is there.

        Raises
        ------
        FileExistsError
            If something is there already.
        RuntimeError
            If the model is untrained, or should be sealed and does not have its key.
        """
        self.check_trained()
        seal = _seal_for_saving(self._keyed, sealed, is_sealed=self._sealed is not None)
        history = self.history
        keyed, personal = self._keyed, self._personal(site)
        if keyed.key is not None:  # under an id of its own, so that two files cannot be subtracted
            keyed = keyed.copy()
            personal = keyed.rename(keyed_nn.new_model_id(), {"": personal})[""]
        document = {
            "class": type(self).__name__,
            "scinfl_version": __version__,
            "init_params": self.init_params_,
            "registry": without_counts(self.registry_),
            "key": keyed.locked_with,
            "share": self._share,
            "history": {
                "rounds": {} if history is None else history.reset_index().to_dict("list"),
                **{name: None if history is None else history.attrs.get(name) for name in ("best_round", "monitor")},
            },
            "facts": self._facts(),
        }
        left_out = self._unsaved_names()
        state: State = {
            name: tensor.detach().cpu().numpy()
            for name, tensor in keyed.module.state_dict().items()
            if name not in left_out
        }
        state.update({name: array for name, array in personal.items() if name in state})
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
        registry = with_arrays(document["registry"])
        make = partial(cls._made_of, arguments=document["init_params"]["non_kwargs"], facts=document.get("facts", {}))
        if adata is not None:
            cls._check_features(adata, registry)
            if cls._can_train_on(adata, setup := setup_of(registry)):
                cls._set_up_again(adata, registry, setup)
                model = make(adata, None)
            else:
                model = make(None, registry)
                model._adata = adata
        else:
            model = make(None, registry)
        model._share = document["share"]
        if document["key"] is not None:
            model._keyed.swap_layers(document["key"]["scheme"], document["key"]["options"], document["share"])
            model._keyed.locked_with = document["key"]
            keyed_nn.set_model_id(model.module, model._keyed.model_id)
        content = read_weights(dir_path, document)
        if document["weights"]["sealed"]:
            model._sealed = SealedWeights(content, seal_labels(document, document["weights"]["file"]))
        else:
            model._load_weights(content)
        model.module.to(resolve_device(device)).eval()
        model.is_trained_ = True
        rounds = document["history"]["rounds"]
        if rounds:
            model._history = pd.DataFrame(rounds).set_index("round")
            model._history.attrs.update({name: document["history"].get(name) for name in ("best_round", "monitor")})
        return model

    def _load_weights(self, content: bytes) -> None:
        """Take the content of a file of weights."""
        left_out = self._unsaved_names()
        expected = {name: tuple(t.shape) for name, t in self.module.state_dict().items() if name not in left_out}
        state, arrays = parse_weights(content, expected, beside=_ARRAY)
        self.module.load_state_dict(as_tensors(state), strict=False)
        self._take_arrays(arrays)

    @classmethod
    def load_registry(cls, dir_path: str | os.PathLike[str], prefix: str | None = None) -> dict:
        """Registry of a saved model."""
        del prefix
        return with_arrays(read_document(dir_path, cls.__name__)["registry"])

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
        if (lock := self._keyed.locked_with) is not None:
            state = "sealed and locked" if self._sealed else "locked" if self.is_locked else "unlocked"
            lines.append(f"  {state}, key scheme '{lock['scheme']}', fingerprint {self.key_fingerprint}")
        else:
            lines.append("  no key")
        return "\n".join(lines)

    def _summary(self) -> str:
        return ""


@dataclass(frozen=True)
class SealedWeights:
    """Weights of a loaded model until its key is there."""

    content: bytes
    labels: Mapping[str, Any]

    def open(self, key: Key) -> bytes:
        """Decrypt the weights."""
        return Seal(key).unseal(self.content, **self.labels)


def _seal_for_saving(keyed: KeyedNetwork, sealed: bool | None, *, is_sealed: bool) -> Seal | None:  # noqa: FBT001
    locked_with, key = keyed.locked_with, keyed.key
    if is_sealed or (locked_with is not None and sealed is not False and key is None):
        cure = spelled("Call `model.unlock(key)` first")
        msg = f"Expected an unlocked model to save, found a locked one. {cure}."
        raise RuntimeError(msg)
    if locked_with is None:
        if sealed:
            msg = "Expected a model that was trained with a key to seal, found a plain one. Train it with `key=`."
            raise RuntimeError(msg)
        return None
    if sealed is False and keyed.model_id is None:  # without offsets
        if locked_with.get("previous"):
            msg = (
                "Expected a rekeyed model to be saved sealed, found `sealed=False`: anyone who keeps the old model and "
                "its key could read the new lock off the difference. Leave `sealed` out, or train a new model with the "
                "new key."
            )
            raise ValueError(msg)
        logger.warning(
            "Saved locked but not sealed: the weights predict at chance without the key, but anyone who has the file "
            "may attack the lock with labelled data of their own."
        )
    if sealed is False:
        return None
    if key is None or key.fingerprint != keyed.fingerprint:
        msg = "Expected the model's own key to seal it, found another. Call `model.unlock(key)` with the right key."
        raise RuntimeError(msg)
    return Seal(key)


@contextmanager
def _set_up_for(name: str) -> Iterator[None]:
    """Say in words of ours that data were not set up."""
    try:
        yield
    except ValueError as error:
        msg = (
            f"Expected data that went through `{name}.setup_anndata`, found others, or a copy made since. Run it on "
            "the data that you pass."
        )
        raise ValueError(msg) from error
