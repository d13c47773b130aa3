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
from scinfl.federation import State
from scinfl.federation.rounds import write_atomically
from scinfl.privacy import Seal

FORMAT = "scinfl-model-1"
DOCUMENT = "model.json"
_CURE = "Restore the folder from a copy."


def write_model(
    path: str | os.PathLike[str], document: dict[str, Any], state: State, *, seal: Seal | None, overwrite: bool
) -> None:
    """Write a model folder: the weights, and ``model.json`` that names them.

    Weights are ``weights-….safetensors``, or with a seal ``weights-….sealed``, which opens only together with the
    document that it was written with. A new folder appears whole. An overwritten model is valid at every moment: the
    new weights are written beside the old ones, then the document is replaced, then the old weights are removed.
    """
    path = new_path(path, overwrite=overwrite)
    check_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    document = json.loads(json.dumps({"format": FORMAT, **document}, default=_jsonable))
    weights = save_tensors({name: np.asarray(array, order="C") for name, array in state.items()})
    name = f"weights-{os.urandom(8).hex()}.{'safetensors' if seal is None else 'sealed'}"
    if seal is not None:
        weights = seal.seal(weights, **seal_labels(document, name))
    entry = {"file": name, "sha256": hashlib.sha256(weights).hexdigest(), "sealed": seal is not None}
    text = json.dumps({**document, "weights": entry}, indent=1).encode()
    if path.exists():
        try:
            write_atomically(path / name, weights)
            write_atomically(path / DOCUMENT, text)
        except BaseException:
            (path / name).unlink(missing_ok=True)
            raise
        for old in path.glob("weights-*"):
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


def check_replaceable(path: Path) -> None:
    """Refuse to replace what is not a model."""
    if path.exists() and any(path.iterdir() if path.is_dir() else [path]) and not (path / DOCUMENT).is_file():
        msg = f"Expected a scinfl model to overwrite at '{path}', found something else. Name another path."
        raise FileExistsError(msg)


def seal_labels(document: dict[str, Any], name: str) -> dict[str, str | int | None]:
    """What sealed weights are bound to: their class, round and name, and every word of the document."""
    rest = {key: value for key, value in document.items() if key != "weights"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    return {"class": document["class"], "round": document["history"]["best_round"], "name": name, "document": digest}


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


def read_weights(path: str | os.PathLike[str], document: dict[str, Any]) -> bytes:
    """Read the file of weights that a document names, as it was written."""
    name, digest = str(document["weights"]["file"]), document["weights"]["sha256"]
    file = Path(path) / Path(name).name  # never outside the folder
    if not file.is_file():
        msg = f"Expected weights '{name}' in '{path}', found none. {_CURE}"
        raise FileNotFoundError(msg)
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        msg = f"Expected the weights that were saved in '{file}', found a truncated or changed file. {_CURE}"
        raise ValueError(msg)
    return content


def parse_weights(content: bytes, expected: dict[str, tuple[int, ...]], *, beside: str) -> tuple[State, State]:
    """Read safetensors and check names and shapes; arrays whose names start with ``beside`` come apart, without it."""
    try:
        state = load_tensors(content)
    except SafetensorError as error:
        msg = f"Expected safetensors as weights, found something else ({error}). {_CURE}"
        raise ValueError(msg) from error
    arrays = {name.removeprefix(beside): state.pop(name) for name in list(state) if name.startswith(beside)}
    found = {key: array.shape for key, array in state.items()}
    if found != expected:
        odd = sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
        msg = f"Expected the parameters of the model, found others: {first_of(odd)}. {_CURE}"
        raise ValueError(msg)
    return state, arrays


def _jsonable(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    msg = f"{type(value).__name__} does not fit into json"
    raise TypeError(msg)
