"""What a site contributes to a kind of model, what it shares with the other sites, and the model that they make."""

from __future__ import annotations

import hashlib
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from anndata import AnnData

from scinfl._checks import first_of, gene_names, looks_like_counts, obs_column, values_of
from scinfl._spelling import spelling
from scinfl.flower.setup._job import Job, SiteSettings
from scinfl.privacy import Key

Facts = Mapping[str, Mapping[str, Any]]
"""What sites share with each other, sealed under the key: by site."""


class Task(ABC):
    """Data of one site, for a kind of model."""

    kind: ClassVar[str]

    def __init__(self, data: Any, job: Job, settings: SiteSettings) -> None:
        from scinfl import model

        self.data, self._job, self._settings = data, job, settings
        self._class: Any = getattr(model, self.kind)
        self._options = settings.setup_options(job)
        self._check()

    @property
    def features(self) -> list[str]:
        """Names of the features, in order."""
        return list(gene_names(self.data, None))

    @property
    def scale(self) -> list[str]:
        """Whether values are counts."""
        return ["counts" if looks_like_counts(self._values()) else "other"]

    def facts(self) -> dict[str, Any]:
        """What the other sites must know; they alone can read it."""
        own = self._facts()
        return own if self._job.features == "same" else {**own, "features": self.features}

    def join(self, facts: Facts) -> None:
        """Bring the data to the features that all sites agreed on.

        Raises
        ------
        ValueError
            If this site came later and has what the run began without.
        """
        self._check_known(facts)
        if self._job.features == "same":
            return
        names = _shared(facts, self._job.features)
        missing = [name for name in names if name not in set(self.features)]
        if missing and self._job.features == "intersection":
            msg = (
                f"Expected the features that the run began with, found {len(missing)} of them missing here: "
                f"{first_of(missing)}. Let the operator start a new run with all sites."
            )
            raise ValueError(msg)
        from scinfl import pp

        frame = AnnData(None, var=pd.DataFrame(index=pd.Index(names)))
        pp.align_genes(frame, [self.data], how="union")
        self.data = self.data[:, names].copy()

    def digest(self, facts: Facts, model: Any) -> str:
        """Text that is the same at sites that agree."""
        start = ""
        if self._job.continues:
            from scinfl.model.base import ModelView

            state = ModelView(model).state_without_offsets  # each site's file has offsets of its own
            arrays = (value.detach().cpu().numpy().tobytes() for _, value in sorted(state.items()))
            start = hashlib.sha256(b"".join(arrays)).hexdigest()
        return json.dumps([facts, list(map(str, model.var_names)), start], sort_keys=True)

    def owners(self, facts: Facts) -> dict[str, list[str]]:
        """Sites that have a part of the model, by the parts that some lack; sums of a part are those of its sites."""
        del facts
        return {}

    def shown(self, facts: Facts) -> dict[str, list[str]]:
        """What sums show of few sites: parts of the model that fewer than ``min_sites`` have, with these sites."""
        least = min(self._job.min_sites, len(facts))
        return {part: own for part, own in self.owners(facts).items() if len(own) < least}

    def least(self, facts: Facts) -> int:
        """Sites that a sum needs, so that each part of this site is summed over ``min_sites`` at least."""
        site = self._settings.site
        n_lacking = [len(facts) - len(own) for own in self.owners(facts).values() if site in own]
        return min(self._job.min_sites + max(n_lacking, default=0), len(facts))

    @abstractmethod
    def make_model(self, facts: Facts) -> Any:
        """The model of all sites, with the data of this one."""

    def load_model(self, path: Path, key: Key) -> Any:
        """The model that all sites have, with the data of this one."""
        model = self._class.load(path, device=self._settings.device)
        model.unlock(key)
        from scinfl.model.base import ModelView

        ModelView(model).attach(self.data, self._options)
        return model

    @abstractmethod
    def describe(self, facts: Facts) -> str:
        """What sites agree on, as text for the log of this site."""

    def rehearsal(self) -> Facts:
        """Facts for a dry run, which knows no other site."""
        return {self._settings.site: self.facts()}

    @abstractmethod
    def _check(self) -> None:
        """Refuse data that this site should not take part with."""

    @abstractmethod
    def _facts(self) -> dict[str, Any]:
        """What the other sites must know."""

    @abstractmethod
    def _check_known(self, facts: Facts) -> None:
        """Refuse to join a run that began without what is here."""

    def _values(self) -> Any:
        with spelling({"`layer`": "`layer` in site.toml"}):
            return values_of(self.data, self._options.get("layer"))

    def _column(self, name: str) -> pd.Series:
        """The column of obs that an option names."""
        with spelling({f"`{name}`": f"`{name}` in site.toml"}):
            return obs_column(self.data, self._options.get(name), name)  # type: ignore[arg-type]

    def _setup(self) -> dict[str, Any]:
        """All arguments of the setup, defaults included."""
        known = inspect.signature(self._class.setup_anndata).parameters.values()
        defaults = {p.name: p.default for p in known if p.kind is not p.VAR_KEYWORD and p.name != "adata"}
        return {**defaults, **self._options}


def _shared(facts: Facts, how: str) -> list[str]:
    """Features of all sites, in the order of the first one."""
    lists = [list(map(str, facts[site]["features"])) for site in sorted(facts)]
    if how == "union":
        return list(dict.fromkeys(name for own in lists for name in own))
    others: Sequence[set[str]] = [set(own) for own in lists[1:]]
    names = [name for name in lists[0] if all(name in own for own in others)]
    if not names:
        msg = "Expected features in common, found none. Use the same kind of names (symbols or ids) at all sites."
        raise ValueError(msg)
    return names
