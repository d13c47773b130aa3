"""The folder that `flwr run` takes, where Flower runs already."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from scinfl._checks import new_path
from scinfl.flower.setup._job import Job
from scinfl.flower.setup._kit import pinned_identities
from scinfl.flower.setup._templates import app_template
from scinfl.privacy import PublicIdentity

APP = "pyproject.toml"
_JOB, _IDENTITIES = "job", "identities"
FOLDER, RESUME = "folder", "resume"


def make_app(kit: str | PathLike[str], path: str | PathLike[str], *, job: str | PathLike[str]) -> Path:
    """Write the folder of a Flower app that trains a job, for ``flwr run`` on a SuperLink that is there already.

    It names the apps of the installed scinfl, and holds the job and the public identities of the sites: no code, no key
    and no path. Sites name folder, data and key in the configuration of their own nodes.

    Parameters
    ----------
    kit
        Folder of the operator, from :func:`make_kit`.
    path
        Folder to write.
    job
        File of the job.

    Returns
    -------
    The folder.

    Raises
    ------
    ValueError
        If the job cannot be used, or the identity of a site is missing.
    FileExistsError
        If there is something at the path.

    Examples
    --------
    >>> import tempfile, scinfl as si
    >>> kit = tempfile.mkdtemp() + "/kit"
    >>> si.flower.make_kit(kit, ["north", "south", "west"])
    >>> app = si.flower.make_app(f"{kit}/server", f"{kit}/app", job=f"{kit}/server/job.toml")
    >>> [file.name for file in app.iterdir()]
    ['pyproject.toml']
    """
    path, parsed = new_path(path, overwrite=False), Job.read(job)
    parsed.check_options()
    pinned = pinned_identities(Path(kit))
    if missing := sorted(set(parsed.sites) - pinned.keys()):
        msg = (
            f"Expected the public identity of every site of the job in '{kit}', found none of {missing}. Name the "
            "folder 'server' of the kit, and add sites with `scinfl federation add`."
        )
        raise ValueError(msg)
    texts = [pinned[site].to_text() for site in parsed.sites]
    path.mkdir(parents=True)
    (path / APP).write_text(
        app_template({_JOB: parsed.text, _IDENTITIES: json.dumps(texts), FOLDER: "", RESUME: False})
    )
    return path


def read_app(config: Mapping[str, Any]) -> tuple[Job, dict[str, PublicIdentity]]:
    """Job and public identities in the configuration of a run.

    Raises
    ------
    ValueError
        If they are missing, or cannot be used.
    """
    if missing := sorted({_JOB, _IDENTITIES} - config.keys()):
        msg = f"Expected job and identities in the configuration of the run, found no {missing}. Use `flwr run` with "
        msg += "the folder that `scinfl federation app` wrote."
        raise ValueError(msg)
    identities = [PublicIdentity.from_text(text) for text in json.loads(str(config[_IDENTITIES]))]
    return Job.parse(str(config[_JOB])), {own.site: own for own in identities}
