"""What ``scinfl info`` shows: the installation, or a saved model."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

from scinfl._extras import extras, install_line
from scinfl.cli._models import load_model

_PACKAGES = (
    "scinfl",
    "anndata",
    "mudata",
    "scanpy",
    "scvi-tools",
    "squidpy",
    "spatialdata",
    "torch",
    "torch-geometric",
    "numpy",
    "scipy",
    "pandas",
    "scikit-learn",
    "cryptography",
)


def describe_setup() -> Iterator[str]:
    """Versions, devices and extras, line by line."""
    yield "versions"
    yield _line("python", f"{platform.python_version()} ({platform.system()} {platform.machine()})")
    for package in _PACKAGES:
        yield _line(package, _version(package) or "missing")
    yield "devices"
    for name, found in _devices():
        yield _line(name, found)
    yield "extras"
    for extra, requirements in extras().items():
        yield _line(extra, _state(extra, requirements))


def describe_model(path: Path) -> Iterator[str]:
    """What a saved model shows without its key, line by line."""
    model = load_model(path)
    yield str(model)
    if hasattr(model, "labels"):
        yield f"  labels: {', '.join(model.labels)}"


def _line(name: str, value: str) -> str:
    return f"  {name:<16}{value}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices() -> Iterator[tuple[str, str]]:
    """What there is, and what ``device="auto"`` takes; Apple's MPS is shown because people look for it."""
    import torch

    yield "CPU", f"{torch.get_num_threads()} threads of torch, {os.cpu_count()} cores"
    cuda = torch.cuda.is_available()
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if cuda else []
    yield "CUDA", ", ".join(names) or "none"
    yield "MPS", "there, but not used" if torch.backends.mps.is_available() else "none"
    yield "auto", "cuda" if cuda else "cpu"


def _state(extra: str, requirements: list[Requirement]) -> str:
    there, lacking = [], []
    for requirement in requirements:
        found = _version(requirement.name)
        if found is None:
            lacking.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(found, prereleases=True):
            lacking.append(f"{requirement.name} is {found}, not {requirement.specifier}")
        else:
            there.append(f"{requirement.name} {found}")
    if not lacking:
        return ", ".join(there)
    return f"{', '.join(lacking)}: {install_line(extra)}"
