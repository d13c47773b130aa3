"""What a federation is asked to train, and how one site reads its own data."""

from __future__ import annotations

import hashlib
import inspect
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from scinfl._checks import first_of, number_between, one_of, whole_number

JOB = "job.toml"
SITE_SETTINGS = "site.toml"
_MODELS = ("Classifier",)
_LATER = ("GEARS", "SpaMosaic")
_BY_US = {  # what the federation itself decides
    "key": "every site passes its own with `--key`",
    "protections": "updates travel as keyed sums; for other protections train in one process",
    "min_sites": "write it in [federation]",
    "fraction": "all sites take part in every round; name `min_sites` in [federation]",
    "strategy": "write [strategy]",
    "journal": "every site keeps one in its folder",
    "progress": "the command prints one line a round",
    "dry_run": "start the site with `--dry-run`",
    "device": "every site names its own in site.toml",
}
_STRATEGIES = ("FedAvg", "FedAvgM", "FedAdam", "FedProx")


@dataclass(frozen=True)
class Job:
    """A model and its hyper-parameters, the sites, and when a round counts; the same text at every site.

    Parameters
    ----------
    text
        The file as it was written.
    sites
        Names of the sites that are expected.
    min_sites
        Least number of sites in a sum.
    deadline
        Seconds that the server waits for slow sites once ``min_sites`` have answered.
    give_up
        Seconds without any answer after which the server stops; it can be resumed.
    wait
        Seconds after which the run starts without the sites that are missing then; 0 waits for all.
    bits
        Bits of the numbers in keyed sums: 64 or 32.
    model
        Name of the model class.
    model_options, setup_options, train_options
        Arguments of the class, of its ``setup_anndata`` and of its ``train``.
    strategy, strategy_options
        Name and arguments of the strategy.
    """

    text: str
    sites: tuple[str, ...]
    min_sites: int = 3
    deadline: float = 600.0
    give_up: float = 86400.0
    wait: float = 0.0
    bits: Literal[64, 32] = 64
    model: str = "Classifier"
    model_options: Mapping[str, Any] = field(default_factory=dict)
    setup_options: Mapping[str, Any] = field(default_factory=dict)
    train_options: Mapping[str, Any] = field(default_factory=dict)
    strategy: str = "FedAvg"
    strategy_options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | PathLike[str]) -> Job:
        """Read a file of a job."""
        path = Path(path)
        if not path.is_file():
            msg = f"Expected a job at '{path}', found none. `scinfl federation init` writes one to start from."
            raise FileNotFoundError(msg)
        return cls.parse(path.read_text())

    @classmethod
    def parse(cls, text: str) -> Job:
        """Read the text of a job.

        Raises
        ------
        ValueError
            If it cannot be used; the message names the entry.
        """
        try:
            content = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            msg = f"Expected a job in TOML, found a mistake: {error}. Compare it with the template."
            raise ValueError(msg) from error
        known = ("federation", "model", "setup", "train", "strategy")
        for section in content:
            one_of("section of the job", section, known)
        federation = dict(content.get("federation", {}))
        allowed = {"sites", "min_sites", "deadline", "give_up", "wait", "bits"}
        _refuse_unknown("federation", federation, allowed)
        model = dict(content.get("model", {}))
        strategy = dict(content.get("strategy", {}))
        federation["sites"] = tuple(sorted(map(str, federation.get("sites", ()))))
        return cls(
            text=text,
            **federation,
            model=str(model.pop("class", "Classifier")),
            model_options=model,
            setup_options=dict(content.get("setup", {})),
            train_options=dict(content.get("train", {})),
            strategy=str(strategy.pop("class", "FedAvg")),
            strategy_options=strategy,
        )

    def __post_init__(self) -> None:
        if self.model in _LATER:
            msg = (
                f"Expected a Classifier in the job, found a {self.model}: its sums before training do not travel over "
                f"Flower yet. Train it in one process with `scinfl.model.{self.model}`."
            )
            raise ValueError(msg)
        one_of("class in [model]", self.model, _MODELS)
        one_of("class in [strategy]", self.strategy, _STRATEGIES)
        one_of("bits in [federation]", self.bits, [64, 32])
        number_between("deadline in [federation]", self.deadline, 0, 1e7, open_low=True)
        number_between("give_up in [federation]", self.give_up, 0, 1e8, open_low=True)
        number_between("wait in [federation]", self.wait, 0, 1e8)
        whole_number("min_sites in [federation]", self.min_sites, 2)
        if self.min_sites > len(set(self.sites)) or len(set(self.sites)) < len(self.sites):
            msg = (
                f"Expected at least {self.min_sites} sites with different names in [federation], as `min_sites` asks "
                f"for, found {list(self.sites)}. Name them all in `sites`."
            )
            raise ValueError(msg)
        for name, why in _BY_US.items():
            if name in self.train_options:
                msg = f"Expected no `{name}` in [train], found one: {why}."
                raise ValueError(msg)

    @property
    def digest(self) -> str:
        """Hash of what the job says, comments and order aside."""
        content = json.dumps(tomllib.loads(self.text), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def n_rounds(self) -> int:
        """Rounds of training."""
        return int(self.train_options.get("n_rounds", 50))

    @property
    def validates(self) -> bool:
        """Whether sites set rows aside."""
        return float(self.train_options.get("validation_size", 0.1)) > 0

    @property
    def n_steps(self) -> int:
        """Sums of a whole run: of weights, of every round, and of the metrics of the last round."""
        return self.n_rounds + (2 if self.validates else 1)

    def terms(self, step: int) -> list[tuple[str, int]]:
        """Purpose and round of what is summed in a step, in the order in which sites read it."""
        if step == 0:
            terms = [("total of evaluation", 0)] if self.validates else []
            return [*terms, ("total of training", 0)]
        terms = [("evaluation", step - 1)] if self.validates and step > 1 else []
        return terms + ([("training", step)] if step <= self.n_rounds else [])

    def check_sites(self, sites: Sequence[str]) -> None:
        """Refuse a job for other sites."""
        if set(sites) != set(self.sites):
            msg = f"Expected the job to name the sites {sorted(sites)}, found {list(self.sites)}. Correct `sites`."
            raise ValueError(msg)

    def check_options(self) -> None:
        """Refuse options that model, setup and training do not have; needs the model, hence a few seconds."""
        from scinfl import model

        kind = getattr(model, self.model)
        for section, function, options in (
            ("model", kind.__init__, self.model_options),
            ("setup", kind.setup_anndata, self.setup_options),
            ("train", kind.train, self.train_options),
        ):
            _refuse_unknown(section, options, set(inspect.signature(function).parameters) - {"self", "adata"})

    def differences(self, other: Job) -> list[str]:
        """Entries in which two jobs differ, as ``section.name``."""
        ours, theirs = (tomllib.loads(job.text) for job in (self, other))
        return sorted(
            f"{section}.{name}"
            for section in ours.keys() | theirs.keys()
            for name in ours.get(section, {}).keys() | theirs.get(section, {}).keys()
            if ours.get(section, {}).get(name) != theirs.get(section, {}).get(name)
        )


@dataclass(frozen=True)
class SiteSettings:
    """How one site reads its own data.

    Parameters
    ----------
    site
        Name of the site.
    labels_key, layer, group_key
        Where this site has labels, values and donors, where that differs from the job.
    device
        Where to compute.
    min_cells_per_label
        Least number of cells of each label that is present; a label with fewer could be told from the update.
    """

    site: str
    labels_key: str | None = None
    layer: str | None = None
    group_key: str | None = None
    device: str = "cpu"
    min_cells_per_label: int = 1

    @classmethod
    def read(cls, path: str | Path) -> SiteSettings:
        """Read a site's settings."""
        path = Path(path)
        if not path.is_file():
            msg = f"Expected the settings of a site at '{path}', found none. Name the folder that the operator sent."
            raise FileNotFoundError(msg)
        content = tomllib.loads(path.read_text())
        _refuse_unknown(path.name, content, {entry.name for entry in fields(cls)})
        if "site" not in content:
            msg = f"Expected `site` in '{path}', found none. Write for example `site = \"north\"`."
            raise ValueError(msg)
        return cls(**content)

    def setup_options(self, job: Job) -> dict[str, Any]:
        """Arguments of ``setup_anndata`` at this site."""
        own = {"labels_key": self.labels_key, "layer": self.layer, "group_key": self.group_key}
        return {**job.setup_options, **{name: value for name, value in own.items() if value is not None}}


def _refuse_unknown(section: str, options: Mapping[str, Any], allowed: set[str]) -> None:
    odd = sorted(set(options) - allowed)
    if odd:
        msg = f"Expected entries of [{section}] among {sorted(allowed)}, found {first_of(odd)}."
        raise ValueError(msg)
