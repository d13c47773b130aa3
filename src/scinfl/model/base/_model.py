"""A model that is trained over sites: in process, across machines, or as a dry run."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Self

import numpy as np
import pandas as pd

from scinfl.federation import Payload, Protection, Run, Strategy
from scinfl.model.base._cells import sites_of
from scinfl.model.base._local_training import LocalTraining
from scinfl.model.base._locked_model import LockedModel
from scinfl.model.base._options import TrainOptions
from scinfl.model.base._shared_parameters import Share
from scinfl.model.base._training import SiteData, Training, check_validation, checked_share
from scinfl.nn import new_model_id
from scinfl.privacy import PayloadLinter
from scinfl.privacy.aggregation import default_protections


class FederatedModel(LockedModel):
    """A model that is trained over sites.

    Its parts: what it was set up with (``RegisteredModel``), a network that a key locks, in memory and on disk
    (``LockedModel`` over a ``KeyedNetwork``), settings (``TrainOptions``) and a ``Training`` over sites.
    """

    @contextmanager
    def _training(self, options: TrainOptions) -> Iterator[Self]:
        """The model to train: this one, or for a dry run a copy of it, of which the payload alone is kept."""
        model = self._copy() if options.dry_run else self
        model._payload = Payload(PayloadLinter().check, planned=options.dry_run)
        try:
            yield model
        finally:
            self._payload = model._payload

    def _copy(self) -> Self:
        twin = copy.copy(self)
        twin.__dict__.update({n: copy.copy(value) for n, value in vars(self).items() if isinstance(value, dict | list)})
        twin._keyed = self._keyed.copy()
        return twin

    def _site_of_rows(self, options: TrainOptions) -> np.ndarray:
        """Site of each row; where the others are on machines of their own, all are of this one."""
        if options.remote is not None:
            return np.full(self._adata.n_obs, options.remote.site)
        return sites_of(self._adata, self._setup_args()["site_key"]).astype(str).to_numpy()

    def _protections(self, options: TrainOptions, n_sites: int) -> Sequence[Protection]:
        """Protections of a run over ``n_sites`` here or the sites elsewhere, with the default filled in."""
        if options.protections == "default":
            return default_protections(options.key, n_sites if options.remote is None else len(options.remote.sites))
        return options.protections

    def _training_of(
        self,
        sites: Mapping[str, SiteData],
        local: LocalTraining,
        options: TrainOptions,
        protections: Sequence[Protection],
        *,
        strategy: Strategy | None = None,
        derive: Callable[[Mapping[str, float], float], Mapping[str, float]] | None = None,
    ) -> Training:
        """A training of this model, whose share rule and validation rows are checked."""
        if options.remote is None:
            check_validation(sites, protections)
        self._check_share(options)
        description = {
            "model": type(self).__name__,
            "init_params": self.init_params_,
            "features": hashlib.sha256("\n".join(self.var_names).encode()).hexdigest(),
        }
        return Training(
            self._keyed,
            sites,
            local,
            options,
            strategy or options.averaging,
            protections,
            description,
            self._payload or Payload(),
            self._local_states,
            derive,
        )

    def _check_share(self, options: TrainOptions) -> Share:
        """The rule by which parameters leave a site, if it fits this model."""
        has_key, kind = options.key is not None, type(self).__name__
        share = checked_share(options.share, has_key=has_key, first_layer=self.first_layer, model=kind)
        if self.is_trained_ and share != self._share:
            msg = (
                f"Expected the share rule that the model was trained with ({self._share!r}), found {share!r}. "
                "Make a new model."
            )
            raise ValueError(msg)
        return share

    @contextmanager
    def _with_key(self, options: TrainOptions) -> Iterator[None]:
        """Key the network for training; a training that fails on a fresh model leaves it plain."""
        key = options.key
        self._keyed.check_trainable(key, is_trained=self.is_trained_)
        if key is None:
            yield
        elif self.key_fingerprint is not None:
            self.unlock(key)
            self._name_version(None)
            try:
                yield
            except BaseException:
                self._name_version(new_model_id())
                raise
        else:
            with self._keyed.keyed(key, options.share, options.run):
                yield

    def _name_version(self, model_id: str | None) -> None:
        """Exchange the offsets of all parameters for those of another id; ``None`` takes them off for training."""
        self._local_states = self._keyed.rename(model_id, self._local_states)

    def _federate(self, *trainings: Training) -> list[Run | None]:
        """Results of trainings that start alike, to be taken with :meth:`_finish`; ``None`` after a dry run."""
        with self._with_key(trainings[0].options):
            return [replace(training, local_states=self._local_states)() for training in trainings]

    def _finish(self, run: Run | None, options: TrainOptions) -> None:
        """Take the result of a training, under an id of its own; a dry run has none."""
        if run is None:
            return
        self._share = self._check_share(options)
        self._keyed.take(run.best_state)
        self._local_states = {site: self._keyed.locked(state) for site, state in run.best_local.items() if state}
        self._name_version(new_model_id())
        self._history = pd.DataFrame(run.history).set_index("round")
        monitor = options.monitor if options.monitor in self._history else None
        self._history.attrs.update(best_round=run.best_round, monitor=monitor)
        none = pd.DataFrame(columns=["round", "site"])  # of a site that was away in all rounds
        self._site_history = (pd.DataFrame(run.site_history) if run.site_history else none).set_index(["round", "site"])
        self.is_trained_ = True
