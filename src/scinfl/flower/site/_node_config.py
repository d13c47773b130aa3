"""Where a site of a Flower that runs already has its folder, data and key: in the configuration of its own node."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scinfl._checks import first_of

NODES = "SCINFL_NODES"
"""Environment variable with the file of the nodes of a simulation."""

_PREFIX = "scinfl-"
_NAMES = ("folder", "data", "key", "runs", "accept-difference")
_PARTITION = "partition-id"


@dataclass(frozen=True)
class NodeConfig:
    """Configuration of one node; nothing of it comes from the run.

    Parameters
    ----------
    folder
        Folder of the site, from :func:`scinfl.flower.make_kit`.
    data
        The site's own data.
    key
        File of the key of the sites.
    runs
        Runs that the site agrees to take part in, over the life of its folder.
    accept_difference
        See :func:`scinfl.flower.run_site`.
    """

    folder: Path
    data: Path
    key: Path
    runs: int = 1
    accept_difference: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> NodeConfig:
        """Read the configuration of a node, or find that of a simulated one, which Flower only numbers.

        Raises
        ------
        ValueError
            If it lacks an entry, or has an unknown one.
        """
        own = {name.removeprefix(_PREFIX): value for name, value in config.items() if name.startswith(_PREFIX)}
        if own or _PARTITION not in config:
            return cls._read(own, Path(), "--node-config")
        file = Path(os.environ.get(NODES, ""))
        nodes = tomllib.loads(file.read_text()).get("nodes", []) if file.is_file() else []
        number = int(config[_PARTITION])
        if number >= len(nodes):
            msg = (
                f"Expected an entry [[nodes]] for node {number} in the file that {NODES} names, found {len(nodes)}. "
                "Write one for each simulated node, with its folder, data and key."
            )
            raise ValueError(msg)
        return cls._read(nodes[number], file.parent, f"'{file}'")

    @classmethod
    def _read(cls, own: Mapping[str, Any], base: Path, where: str) -> NodeConfig:
        odd = sorted(own.keys() - set(_NAMES))
        missing = [name for name in _NAMES[:3] if not own.get(name)]
        if odd or missing:
            what = f"{first_of(odd)} beside them" if odd else f"none for {first_of(missing)}"
            names = ", ".join(f"{_PREFIX}{name}" for name in _NAMES)
            msg = (
                f"Expected folder, data and key of this site in {where} ({names}), found {what}. This app takes part "
                "with what the site names, never with what a run names."
            )
            raise ValueError(msg)
        folder, data, key = (base / str(own[name]) for name in _NAMES[:3])
        accepted = [name.strip() for name in str(own.get("accept-difference", "")).split(",") if name.strip()]
        return cls(folder, data, key, int(own.get("runs", 1)), tuple(accepted))
