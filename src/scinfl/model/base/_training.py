"""One training of a keyed network over sites: in process, across machines, or as a dry run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from scinfl import nn as keyed_nn
from scinfl._spelling import argument
from scinfl.federation import Journal, Payload, Protection, Run, State, Strategy, simulate
from scinfl.federation.rounds import rehearse
from scinfl.model.base._keyed_network import KeyedNetwork
from scinfl.model.base._local_training import Batches, LocalSite, LocalTraining, SharedNetwork
from scinfl.model.base._options import TrainOptions
from scinfl.model.base._round_offsets import with_offsets
from scinfl.model.base._secrets import secret_arrays
from scinfl.model.base._shared_parameters import Share, check_share, shared_names
from scinfl.privacy import PayloadLinter, Seal


@dataclass(frozen=True)
class SiteData:
    """What one site trains on.

    Parameters
    ----------
    train, validation
        Observations to train on and to choose the best round with.
    loss_options
        Passed to the loss, for example class weights of the site.
    prepare
        Puts into the network what only the site knows.
    metadata
        Numbers that go along with every update as metrics, for a strategy that asks for them.
    """

    train: Batches
    validation: Batches
    loss_options: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[nn.Module], None] | None = None
    metadata: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Training:
    """One training of a network, which it leaves as it is.

    Parameters
    ----------
    keyed
        Network, with its key where it has one.
    sites
        Data by site.
    local
        How a site trains between two averages.
    options
        Settings of the run.
    strategy, protections
        How updates become the next state, and what guards them.
    description
        What the run was asked to do, for its journal.
    payload
        Records what leaves each site.
    local_states
        What stayed at the sites in an earlier training.
    derive
        See :func:`scinfl.federation.simulate`.
    """

    keyed: KeyedNetwork
    sites: Mapping[str, SiteData]
    local: LocalTraining
    options: TrainOptions
    strategy: Strategy
    protections: Sequence[Protection]
    description: Mapping[str, Any]
    payload: Payload
    local_states: Mapping[str, State] = field(default_factory=dict)
    derive: Callable[[Mapping[str, float], float], Mapping[str, float]] | None = None

    def __call__(self) -> Run | None:
        """Train; ``None`` after a dry run."""
        options, key = self.options, self.options.key
        self.keyed.module.to(resolve_device(options.device))
        network, lock, open_state = self.keyed.for_training(key)
        shared = shared_names(network, options.share)
        taken_in_turns = SharedNetwork(network, open_state)
        local = replace(self.local, epochs=1) if options.dry_run else self.local
        sites = [
            LocalSite(
                name,
                taken_in_turns,
                shared,
                own.train,
                own.validation,
                local,
                self.strategy,
                lock=lock,
                prepare=partial(own.prepare, network) if own.prepare else None,
                protections=() if options.dry_run else self.protections,  # a dry run spends no budget
                key_version=key.version if key else None,
                loss_options=own.loss_options,
                describe=own.metadata,
                receives=options.remote is not None and not any(protection.sums for protection in self.protections),
            )
            for name, own in self.sites.items()
        ]
        for site in sites:
            if site.name in self.local_states:
                site.load_local_state(self.keyed.opened(self.local_states[site.name]))
        state = self.keyed.shared_state(shared)
        protections = self.protections
        if options.remote is None:  # a sum that travels shows the server nothing
            protections = with_offsets(protections, self.keyed.module, self.keyed.key, keyed_nn.new_model_id())
        journal = None if options.journal is None else Journal(options.journal, None if key is None else Seal(key))
        shapes = {name: tuple(p.shape) for name, p in network.named_parameters() if name in shared}
        secrets = secret_arrays(self.keyed.module) if self.keyed.key is not None else None
        rules: dict[str, Any] = {
            "n_rounds": options.n_rounds,
            "fraction": options.fraction,
            "min_sites": options.min_sites,
        }
        with self.payload.inspected(PayloadLinter(shapes, secrets=secrets).check):
            if options.dry_run:
                rehearse(
                    sites,
                    state,
                    self.strategy,
                    protections,
                    self.payload,
                    journal=journal,
                    n_elsewhere=0 if options.remote is None else len(options.remote.sites) - 1,
                    **rules,
                )
                return None
            choice: dict[str, Any] = {
                "fraction": options.fraction,
                "min_sites": options.min_sites,
                "smoothing": options.smoothing,
                "monitor": options.monitor,
                "patience": options.early_stopping,
            }
            return (simulate if options.remote is None else options.remote.engine)(
                sites,
                state,
                self.strategy,
                protections,
                n_rounds=options.n_rounds,
                rng=options.seed,
                journal=journal,
                settings={
                    **self.description,
                    "key": self.keyed.locked_with,
                    "training": {**vars(local), "rng": options.rng},
                    **({} if options.run is None else {"run": options.run}),
                    "strategy": repr(self.strategy),
                    "protections": [_settings_of(protection) for protection in self.protections],
                    "share": options.share if isinstance(options.share, str) else list(options.share),
                    "sites": {site.name: site.n_obs for site in sites},
                    "options": choice,
                },
                payload=self.payload,
                progress=options.progress,
                derive=self.derive,
                **choice,
            )


def checked_share(share: Share, *, has_key: bool, first_layer: str | None, model: str) -> Share:
    """The rule, or a list of layers as a list, if it fits the model."""
    check_share(share)
    if share == "projected" and not has_key:
        msg = "Expected a key for `share='projected'`, found none: the projection is derived from it. Pass `key=`."
        raise ValueError(msg)
    if share == "projected" and first_layer is None:
        msg = (
            f"Expected `share` to be 'all', 'meta' or a list of layers, found 'projected': a {model} has no first "
            "layer that reads cells."
        )
        raise ValueError(msg)
    return share if isinstance(share, str) else list(share)


def check_validation(sites: Mapping[str, SiteData], protections: Sequence[Protection]) -> None:
    """Refuse validation at fewer sites than protections ask for: the mean of few would show their metrics."""
    n_validating = sum(len(own.validation) > 0 for own in sites.values())
    least = max((protection.min_sites for protection in protections), default=1)
    if 0 < n_validating < least <= len(sites):  # too few sites are refused for that
        msg = (
            f"Expected validation rows at {least} sites at least, as the protections ask for, found them at "
            f"{n_validating}. Raise `validation_size`, or set it to 0 to keep the last round."
        )
        raise ValueError(msg)


def resolve_device(device: str) -> torch.device:
    """``"auto"`` is the first GPU where there is one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, dtype=torch.float64, device=device)  # keys and statistics need double precision
        return torch.device(device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError):  # none, none here, or no double precision
        there = ["auto", "cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        msg = (
            f"Expected {argument('device')} to be one of {there}, found {device!r}. Other devices need their driver, "
            "and an installation of torch for them."
        )
        raise ValueError(msg) from None


def _settings_of(protection: Protection) -> str:
    """Settings of a protection; another noise, for example, is another run."""
    has_own = type(protection).__repr__ is not object.__repr__
    return repr(protection) if has_own else type(protection).__name__  # which would name a place in memory
