"""Models on disk: safetensors and json, written whole or not at all, read without unpickling."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from scinfl._checks import first_of, new_path
from scinfl.federation import State, write_atomically

FORMAT = "scinfl-model-1"
DOCUMENT = "model.json"


def write_model(path: str | os.PathLike[str], document: dict[str, Any], state: State, *, overwrite: bool) -> None:
    """Write a model folder: ``weights-<hash>.safetensors``, and ``model.json`` that names it.

    A new folder appears whole. An overwritten model is valid at every moment: the new weights are written beside the
    old ones, then the document is replaced, then the old weights are removed.
    """
    path = new_path(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = save_tensors({name: np.ascontiguousarray(array) for name, array in state.items()})
    digest = hashlib.sha256(weights).hexdigest()
    name = f"weights-{digest[:16]}.safetensors"
    document = {"format": FORMAT, **document, "weights": {"file": name, "sha256": digest}}
    text = json.dumps(document, indent=1, default=_jsonable).encode()
    if path.exists():
        if not (path / DOCUMENT).is_file():
            msg = f"Expected a scinfl model to overwrite at '{path}', found something else. Name another path."
            raise FileExistsError(msg)
        write_atomically(path / name, weights)
        write_atomically(path / DOCUMENT, text)
        for old in path.glob("weights-*.safetensors"):
            if old.name != name:
                old.unlink()
        return
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        temporary.chmod(0o755)
        write_atomically(temporary / name, weights)
        write_atomically(temporary / DOCUMENT, text)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_document(path: str | os.PathLike[str], class_name: str | None = None) -> dict[str, Any]:
    """Read ``model.json`` of a model folder and check its class.

    Raises
    ------
    FileNotFoundError
        If the folder holds no model.
    ValueError
        If it is damaged, holds a pickle, or another class.
    """
    path = Path(path)
    file = path / DOCUMENT
    if not file.is_file():
        pickles = sorted(p.name for p in path.glob("*") if p.suffix in {".pt", ".pth", ".pkl", ".pickle", ".ckpt"})
        if pickles:
            msg = (
                f"Expected a scinfl model ('{DOCUMENT}') in '{path}', found '{pickles[0]}'. Such a file can run code "
                "when it is loaded, so scinfl never reads it. Ask its owner to save it with `model.save`."
            )
            raise ValueError(msg)
        msg = f"Expected a scinfl model ('{DOCUMENT}') in '{path}', found none. Check the path."
        raise FileNotFoundError(msg)
    try:
        document = json.loads(file.read_bytes())
        if document["format"] != FORMAT:
            msg = f"format {document['format']!r}, this version reads {FORMAT!r}"
            raise ValueError(msg)  # noqa: TRY301
        found = document["class"]
    except (ValueError, KeyError, TypeError) as error:
        msg = f"Expected a scinfl model in '{file}', found a damaged or foreign file ({error}). Restore it from a copy."
        raise ValueError(msg) from error
    if class_name is not None and found != class_name:
        msg = f"Expected a {class_name} in '{path}', found a {found}. Load it with `scinfl.model.{found}.load`."
        raise ValueError(msg)
    return document


def read_weights(path: str | os.PathLike[str], document: dict[str, Any], expected: dict[str, tuple[int, ...]]) -> State:
    """Read the weights that a document names and check their hash, names and shapes."""
    name, digest = str(document["weights"]["file"]), document["weights"]["sha256"]
    file = Path(path) / Path(name).name  # never outside the folder
    cure = "Restore the folder from a copy."
    if not file.is_file():
        msg = f"Expected weights '{name}' in '{path}', found none. {cure}"
        raise FileNotFoundError(msg)
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        msg = f"Expected the weights that were saved in '{file}', found a truncated or changed file. {cure}"
        raise ValueError(msg)
    try:
        state = load_tensors(content)
    except SafetensorError as error:
        msg = f"Expected safetensors in '{file}', found something else ({error}). {cure}"
        raise ValueError(msg) from error
    found = {key: array.shape for key, array in state.items()}
    if found != expected:
        odd = sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
        msg = f"Expected the parameters of the model in '{file}', found others: {first_of(odd)}. {cure}"
        raise ValueError(msg)
    return state


def _jsonable(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    msg = f"{type(value).__name__} does not fit into json"
    raise TypeError(msg)
