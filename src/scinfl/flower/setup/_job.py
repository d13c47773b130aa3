"""What a federation is asked to train, and how one site reads its own data."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from scinfl._checks import first_of, number_between, one_of, whole_number
from scinfl._names import OF_SCVI

JOB = "job.toml"
SITE_SETTINGS = "site.toml"
_MODELS = ("Classifier", "GEARS", "SpaMosaic")
OF_ADAPTER = ("key_scheme", "rng")
"""Options of a model of scvi-tools that are the adapter's; others are those of the class."""
_NOISE = ("SampleDP", "UpdateDP")
_MOST_TEXT = 1 << 18
_MOST_DOTS = 32  # in a line: the parser takes time in the product of the parts of a header and of the keys below it
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,40}")
"""Names of sites and runs: they become names of files."""
_BY_US = {  # what the federation itself decides
    "key": "every site passes its own with `--key`",
    "protections": "write `sum` in [federation], and [[protections]]",
    "min_sites": "write it in [federation]",
    "fraction": "all sites take part in every round; name `min_sites` in [federation]",
    "strategy": "write [strategy]",
    "journal": "every site keeps one in its folder",
    "progress": "the command prints one line per round",
    "dry_run": "start the site with `--dry-run`",
    "device": "every site names its own in site.toml",
    "run": "the server gives every run a name",
    "remote": "the sites are given in [federation]",
}
_NOT_IN_A_JOB = {"self", "adata", "mdata", "data", "registry", "facts", "gene_ontology", "kwargs"}
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
        Bits of the numbers in masked sums: 64 or 32.
    sum
        ``"keyed"``: sites that share the key hide their terms from the server; ``"pairwise"``: also from a site that
        colludes with the server, at three messages per step in place of one.
    features
        ``"same"`` refuses sites whose features differ; ``"intersection"`` and ``"union"`` let the sites exchange
        theirs, sealed under the key, and bring all to the shared ones (of a union, those a site lacks are 0).
    continues
        Go on from the model in the folder of each site, for example when a new hospital joins: it gets that folder
        (sealed) from another site. Otherwise a new model is trained.
    model
        Name of the model class; ``"scvi.SCVI"`` and others of scvi-tools.
    model_options, setup_options, train_options
        Arguments of the class, of its ``setup_anndata`` and of its ``train``.
    strategy, strategy_options
        Name and arguments of the strategy.
    noise
        Names and arguments of protections by noise, which act at each site before its term is masked.
    """

    text: str
    sites: tuple[str, ...]
    min_sites: int = 3
    deadline: float = 600.0
    give_up: float = 86400.0
    wait: float = 0.0
    bits: Literal[64, 32] = 64
    sum: Literal["keyed", "pairwise"] = "keyed"
    features: Literal["same", "intersection", "union"] = "same"
    continues: bool = False
    model: str = "Classifier"
    model_options: Mapping[str, Any] = field(default_factory=dict)
    setup_options: Mapping[str, Any] = field(default_factory=dict)
    train_options: Mapping[str, Any] = field(default_factory=dict)
    strategy: str = "FedAvg"
    strategy_options: Mapping[str, Any] = field(default_factory=dict)
    noise: tuple[tuple[str, Mapping[str, Any]], ...] = ()

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
        content = _read_toml(text, "a job")
        known = ("federation", "model", "setup", "train", "strategy", "protections")
        for section in content:
            one_of("section of the job", section, known)
        federation = dict(content.get("federation", {}))
        allowed = {"sites", "min_sites", "deadline", "give_up", "wait", "bits", "sum", "features", "continues"}
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
            noise=tuple((str(own.pop("class", "")), own) for own in map(dict, content.get("protections", ()))),
        )

    def __post_init__(self) -> None:
        if not self.model.startswith(OF_SCVI):
            one_of("class in [model]", self.model, [*_MODELS, f"{OF_SCVI}SCVI and others of scvi-tools"])
        one_of("class in [strategy]", self.strategy, _STRATEGIES)
        one_of("bits in [federation]", self.bits, [64, 32])
        one_of("sum in [federation]", self.sum, ["keyed", "pairwise"])
        if self.sum == "pairwise" and self.min_sites < 3:
            msg = f'Expected `min_sites` from 3 with `sum = "pairwise"`, found {self.min_sites}: two hide nothing.'
            raise ValueError(msg)
        one_of("features in [federation]", self.features, ["same", "intersection", "union"])
        if self.continues and (self.model_options or self.model == "SpaMosaic" or self.features != "same"):
            msg = (
                "Expected `continues = true` with a Classifier or a GEARS, the features and the options that it has, "
                f'found it with class = "{self.model}", features = "{self.features}" and the options '
                f"{sorted(self.model_options)} in [model]. Leave these out, or train a new model."
            )
            raise ValueError(msg)
        for name, _ in self.noise:
            one_of("class in [[protections]]", name, _NOISE)
        number_between("deadline in [federation]", self.deadline, 0, 1e7, open_low=True)
        number_between("give_up in [federation]", self.give_up, 0, 1e8, open_low=True)
        number_between("wait in [federation]", self.wait, 0, 1e8)
        whole_number("min_sites in [federation]", self.min_sites, 2)
        check_names(self.sites)
        if self.min_sites > len(set(self.sites)) or len({site.casefold() for site in self.sites}) < len(self.sites):
            msg = (
                f"Expected at least {self.min_sites} sites with different names in [federation], as `min_sites` asks "
                f"for, found {list(self.sites)}. Name them all in `sites`."
            )
            raise ValueError(msg)
        if "site_key" in self.setup_options:
            msg = "Expected no `site_key` in [setup], found one: every site has a file of its own. Drop it."
            raise ValueError(msg)
        for name, why in _BY_US.items():
            if name in self.train_options:
                msg = f"Expected no `{name}` in [train], found one: {why}."
                raise ValueError(msg)

    @property
    def digest(self) -> str:
        """Hash of the content of the job, without comments and order."""
        content = json.dumps(tomllib.loads(self.text), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def n_rounds(self) -> int:
        """Rounds of training; where the job leaves them out those of the model, which takes seconds to import."""
        if "n_rounds" in self.train_options:
            return int(self.train_options["n_rounds"])
        return int(inspect.signature(self._kind().train).parameters["n_rounds"].default)

    def _kind(self) -> Any:
        """Class of the model, which takes seconds to import."""
        from scinfl import model

        return model.ScviModel if self.model.startswith(OF_SCVI) else getattr(model, self.model)

    def check_sites(self, sites: Sequence[str]) -> None:
        """Refuse a job for other sites."""
        if set(sites) != set(self.sites):
            msg = f"Expected the job to name the sites {sorted(sites)}, found {list(self.sites)}. Correct `sites`."
            raise ValueError(msg)

    def check_options(self) -> None:
        """Refuse options that model, setup and training do not have; needs the model, hence a few seconds."""
        from scinfl import privacy

        kind, of_class = self._kind(), self.model_options
        if self.model.startswith(OF_SCVI):
            from scinfl.model.scvi import checked_arguments

            arguments = {option: value for option, value in of_class.items() if option not in OF_ADAPTER}
            checked_arguments(self.model.removeprefix(OF_SCVI), arguments)
            of_class = {}
        setups = [kind.setup_anndata, *([kind.setup_mudata] if self.model == "SpaMosaic" else [])]
        for section, functions, options in (
            ("model", [kind.__init__], of_class),
            ("setup", setups, self.setup_options),
            ("train", [kind.train], self.train_options),
            *(("[protections]", [getattr(privacy, name)], own) for name, own in self.noise),
        ):
            known = {name for function in functions for name in inspect.signature(function).parameters}
            _refuse_unknown(section, options, known - _NOT_IN_A_JOB)

    def differences(self, other: Job) -> list[str]:
        """Entries in which two jobs differ, as ``section.name``."""
        ours, theirs = (tomllib.loads(job.text) for job in (self, other))
        return sorted(
            f"{section}.{name}"
            for section in ours.keys() | theirs.keys()
            for name in _entries(ours, section).keys() | _entries(theirs, section).keys()
            if _entries(ours, section).get(name) != _entries(theirs, section).get(name)
        )


def check_names(names: Sequence[str]) -> None:
    """Refuse names that should not become those of files."""
    if odd := [name for name in names if not NAME.fullmatch(name)]:
        msg = f"Expected names of letters, digits, '_' and '-', found {first_of(odd)}. Write for example 'north'."
        raise ValueError(msg)


_COLUMNS = ("labels_key", "layer", "group_key", "condition_key", "section_key", "spatial_key")


@dataclass(frozen=True)
class SiteSettings:
    """How one site reads its own data.

    Parameters
    ----------
    site
        Name of the site.
    labels_key, layer, group_key, condition_key, section_key, spatial_key
        Where this site has labels, values, donors, perturbations, sections and coordinates, where that differs from the
        job.
    gene_ontology
        File of the gene ontology at this site, as seen from the folder of the kit; the same at all sites.
    device
        Where to compute.
    min_cells_per_label
        Least number of cells of each label that is present; a label with fewer could be recognised in the update.
    """

    site: str
    labels_key: str | None = None
    layer: str | None = None
    group_key: str | None = None
    condition_key: str | None = None
    section_key: str | None = None
    spatial_key: str | None = None
    gene_ontology: str | None = None
    device: str = "cpu"
    min_cells_per_label: int = 1

    @classmethod
    def read(cls, path: str | Path) -> SiteSettings:
        """Read a site's settings."""
        path = Path(path)
        if not path.is_file():
            msg = f"Expected the settings of a site at '{path}', found none. Name the folder that the operator sent."
            raise FileNotFoundError(msg)
        content = _read_toml(path.read_text(), "the settings of a site")
        _refuse_unknown(path.name, content, {entry.name for entry in fields(cls)})
        if "site" not in content:
            msg = f"Expected `site` in '{path}', found none. Write for example `site = \"north\"`."
            raise ValueError(msg)
        if "gene_ontology" in content:
            content["gene_ontology"] = str(path.parent / content["gene_ontology"])
        return cls(**content)

    def setup_options(self, job: Job) -> dict[str, Any]:
        """Arguments of ``setup_anndata`` at this site."""
        own = {name: getattr(self, name) for name in _COLUMNS}
        return {**job.setup_options, **{name: value for name, value in own.items() if value is not None}}


def _read_toml(text: str, what: str) -> dict[str, Any]:
    """Content of a text that another party may have written, under limits that keep parsing short."""
    dots = max(line.count(".") for line in text.split("\n"))
    if len(text) > _MOST_TEXT or dots > _MOST_DOTS:
        msg = (
            f"Expected {what} of at most {_MOST_TEXT} characters, with up to {_MOST_DOTS} dots in a line, found "
            f"{len(text)} and {dots}. Compare it with the template; write a long list in several lines."
        )
        raise ValueError(msg)
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        msg = f"Expected {what} in TOML, found a mistake: {error}. Compare it with the template."
        raise ValueError(msg) from error


def _refuse_unknown(section: str, options: Mapping[str, Any], allowed: set[str]) -> None:
    odd = sorted(set(options) - allowed)
    if odd:
        msg = f"Expected entries of [{section}] among {sorted(allowed)}, found {first_of(odd)}."
        raise ValueError(msg)


def _entries(content: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    """Entries of a section; of a list of sections, each under its number."""
    found = content.get(section, {})
    return found if isinstance(found, Mapping) else {str(number): own for number, own in enumerate(found)}
