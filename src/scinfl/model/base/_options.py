"""Settings of a training run, the same for all models: documented, checked and passed on as one object."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Literal

from scinfl._checks import number_between, one_of, whole_number
from scinfl.federation import FedAvg, Protection, Strategy
from scinfl.model.base._local_training import LocalTraining
from scinfl.model.base._remote import RemoteContext
from scinfl.privacy import Key


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainOptions:
    """Settings of a run over sites; every argument of a model's ``train`` beside those of its own.

    Parameters
    ----------
    n_rounds
        Rounds of local training and averaging.
    key
        Secret of the sites. Without it the model is federated but not keyed.
    local_epochs, lr, batch_size, weight_decay
        Local training, started afresh each round: passes over the rows of a site, learning rate, rows per step.
    share
        What leaves a site: ``"all"`` trained parameters; ``"meta"`` only the meta learners, so that every site
        keeps a model of its own; ``"projected"`` puts a fixed secret projection in place of the first layer, which
        is never sent, so that its gradient does not show cells; or a list of layer names (``["encoder"]``).
    strategy
        How updates become the next state; :class:`~scinfl.federation.FedAvg` by default.
    protections
        What guards updates and sums, in order. ``"default"`` is a :class:`~scinfl.privacy.KeyedSum` where there is a
        key and more than one site: secure aggregation, whose terms the server cannot read. ``()`` sends updates in the
        open.
    fraction, min_sites
        Share and least number of the sites that take part in a round.
    validation_size
        Share of the rows of each site (of GEARS: of the training perturbations, where the split has none) set aside to
        choose the best round; 0 keeps the last round.
    smoothing
        Weight of the past in the moving average of shared states that is validated and kept; 0 keeps the states as
        they are. See :func:`scinfl.federation.simulate`.
    monitor
        Column of ``history`` that decides the best round.
    early_stopping
        Stop after so many rounds without a better value of ``monitor``.
    rng
        Seed of the validation split, the choice of sites, batches and dropout.
    run
        Name of the run. All that `rng` is a seed of, and the initial weights, then follow from the key and this name:
        the same name repeats them, another does not, so that sums of two runs show little of a site that is in one
        of them only. Over several machines it is the name that the server gave the run.
    device
        ``"auto"``, ``"cpu"`` or ``"cuda:0"``.
    progress
        Show a progress bar with round, loss and monitored value.
    journal
        Folder for a checkpoint after every round and an audit log. If it holds this run, the run is resumed.
    dry_run
        Train nothing and send nothing: list in ``payload`` what would leave each site, from one local epoch of each.
        The model stays as it is.
    remote
        Where the other sites are, if not in this process; set by an engine such as ``scinfl.flower``.

    Raises
    ------
    ValueError
        If a setting cannot be used; before any training.
    """

    n_rounds: int = 50
    key: Key | None = None
    local_epochs: int = 2
    lr: float = 3e-3
    batch_size: int | None = None
    weight_decay: float = 5e-4
    share: str | Sequence[str] = "all"
    strategy: Strategy | None = None
    protections: Sequence[Protection] | Literal["default"] = "default"
    fraction: float = 1.0
    min_sites: int = 1
    validation_size: float = 0.1
    smoothing: float = 0.0
    monitor: str = "validation_loss"
    early_stopping: int | None = None
    rng: int = 0
    run: str | None = None
    device: str = "auto"
    progress: bool = True
    journal: str | os.PathLike[str] | None = None
    dry_run: bool = False
    remote: RemoteContext | None = None

    monitors: ClassVar[Sequence[str]] = ("loss",)
    """Validation metrics that can be monitored."""

    def __post_init__(self) -> None:
        whole_number("n_rounds", self.n_rounds, 1)
        whole_number("local_epochs", self.local_epochs, 1)
        number_between("lr", self.lr, 0, 10, open_low=True)
        number_between("weight_decay", self.weight_decay, 0, 10)
        if self.batch_size is not None:
            whole_number("batch_size", self.batch_size, 1)
        number_between("validation_size", self.validation_size, 0, 0.9)
        number_between("smoothing", self.smoothing, 0, 0.999)
        if self.early_stopping is not None:
            whole_number("early_stopping", self.early_stopping, 1)
        whole_number("rng", self.rng, 0)
        if self.run is not None and self.key is None:
            msg = f"Expected a key with `run={self.run!r}`, found none: randomness follows from both. Pass `key=`."
            raise ValueError(msg)
        for protection in () if self.protections == "default" else self.protections:
            if not isinstance(protection, Protection):
                msg = (
                    "Expected protections that inherit from `scinfl.federation.Protection`, found a "
                    f"{type(protection).__name__}. Pass some of `scinfl.privacy`, or subclass it."
                )
                raise TypeError(msg)
        one_of("monitor", self.monitor, [f"validation_{name}" for name in self.monitors])

    @property
    def averaging(self) -> Strategy:
        """The strategy, or the usual one."""
        return self.strategy or FedAvg()

    @property
    def seed(self) -> int:
        """Seed of what sites draw in this run, 63 bits of key and run where it has a name."""
        if self.run is None or self.key is None:
            return self.rng
        return int.from_bytes(self.key.derive("randomness of a run", f"{self.rng}/{self.run}")[:8], "big") >> 1

    @property
    def first_number(self) -> int:
        """Number of the first site of this process among all sites."""
        return 0 if self.remote is None else self.remote.number

    def local_training(self, batch_size: int | None = None, **settings: Any) -> LocalTraining:
        """How a site trains between two averages.

        Parameters
        ----------
        batch_size
            Rows per step, where the model chooses them.
        settings
            Further settings of that training, which a model chooses.
        """
        size = batch_size or self.batch_size or 1
        return LocalTraining(self.local_epochs, size, self.lr, self.weight_decay, self.seed, **settings)


def takes(options: type[TrainOptions]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a ``train`` that is called with settings by name receive them as one checked object.

    Its signature shows every setting with its default.
    """

    def decorated(train: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(train)
        def with_options(self: Any, n_rounds: int | None = None, **settings: Any) -> None:
            known = {field.name for field in fields(options)}
            if unknown := [name for name in settings if name not in known]:
                msg = f"{type(self).__name__}.train() got an unexpected keyword argument '{unknown[0]}'"
                raise TypeError(msg)
            if n_rounds is not None:
                settings["n_rounds"] = n_rounds
            train(self, options(**settings))

        own = inspect.signature(train).parameters
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters = [
            inspect.Parameter(field.name, kind, default=field.default, annotation=field.type)
            for field in fields(options)
            if field.default is not MISSING
        ]
        parameters[0] = parameters[0].replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD)
        with_options.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [own["self"], *parameters], return_annotation="None"
        )
        return with_options

    return decorated
