"""Every cure that a message offers can be typed: arguments, options, functions and commands that it names are there."""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from functools import cache, reduce
from pathlib import Path

import anndata
import mudata
import pytest
import scanpy

import scinfl as si
from scinfl.cli._main import _parser
from scinfl.model.scvi._model import ScviModel

SOURCE = Path(si.__file__).parent
MODELS = [si.model.Classifier, si.model.GEARS, si.model.SpaMosaic]
EVERY_MODEL = frozenset({"_checks.py", "model/base"})
"""Where a message may be about any model: an argument that it offers must be one of all of them."""
OF_OTHERS = {"model": MODELS, "adata": [anndata.AnnData], "mdata": [mudata.MuData], "sc": [scanpy]}
"""Whose attributes are meant where a message spells a name as users do."""
LIBRARIES = {
    name: importlib.import_module(name) for name in ("anndata", "mudata", "scinfl", "spatialdata", "squidpy")
} | {"pd": importlib.import_module("pandas")}
FOREIGN = {"subplot_kw", "modality_weights", "dispersion"}
"""Arguments of functions of other libraries."""


def text_of(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "{}"


def spans(path: Path) -> Iterator[tuple[int, str]]:
    """What stands between backticks in the text of a file, without its docstrings."""
    tree = ast.parse(path.read_text())
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in parts | docs:
            for span in re.findall(r"`([^`]+)`", text_of(node)):
                yield node.lineno, span


SPANS = [
    (str(path.relative_to(SOURCE)), line, span) for path in sorted(SOURCE.rglob("*.py")) for line, span in spans(path)
]


def is_error(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, BaseException)


def arguments_of(found: object) -> frozenset[str]:
    """Arguments of a function, or of a class and of its methods."""
    members = [value for _, value in inspect.getmembers(found, inspect.isroutine)] if inspect.isclass(found) else []
    names: set[str] = set()
    for value in (found, *members):
        if (getattr(value, "__module__", None) or "").startswith("scinfl") and not is_error(value):
            names |= set(inspect.signature(value).parameters)
    return frozenset(names)


@cache
def scope(file: str) -> frozenset[str]:
    """Arguments that a message of a file may offer."""
    part = file.partition("/")[0]
    if any(file.startswith(shared) for shared in EVERY_MODEL):
        return frozenset.intersection(*map(arguments_of, MODELS))
    own = {"_audit": si.tl, "cli": si.tl}.get(part) or getattr(si, part, si)
    kinds: list[object] = [si.nn.projected] if part == "nn" else []
    modules = [own, *{"privacy": [si.privacy.aggregation, si.privacy.dp, si.privacy.attacks]}.get(part, [])]
    if part != "model":
        kinds += [getattr(module, name) for module in modules for name in module.__all__ if name not in si.__all__]
        if part in {"privacy", "federation", "_audit", "flower", "cli", "pl"}:  # about what a training was asked for
            kinds += MODELS
    else:
        kinds += [kind for kind in MODELS if kind.__name__.lower() in file.replace("_", "")]
        kinds += [si.model.from_scvi, si.model.map_query, ScviModel] if file.startswith("model/scvi/") else []
    return frozenset().union(*(arguments_of(kind) for kind in kinds if callable(kind)))


def public_names() -> dict[str, object]:
    modules = [getattr(si, name) for name in si.__all__ if not name.startswith("_")]
    modules += [si.privacy.aggregation, si.privacy.attacks]
    names = {name: getattr(module, name) for module in modules for name in getattr(module, "__all__", ())}
    kinds = [kind for kind in names.values() if inspect.isclass(kind)]
    return {name: getattr(kind, name) for kind in kinds for name in dir(kind)} | names


PUBLIC = public_names()


@cache
def commands() -> dict[str, argparse.ArgumentParser]:
    def below(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
        yield name, parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for word, child in action.choices.items():
                    yield from below(child, f"{name} {word}")

    return dict(below(_parser(), "scinfl"))


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}


def check_command(span: str) -> None:
    words = span.replace("COMMAND", "").split()
    named = max((n for n in range(len(words) + 1) if " ".join(words[:n]) in commands()), default=0)
    words = [word for word in words if "{}" not in word]
    if words[:1] == ["scinfl"]:
        assert named > 1 or "COMMAND" in span, f"no command {span}"
    parsers = [commands()[" ".join(words[:named])]] if named else list(commands().values())
    known = set().union(*map(options_of, parsers))
    assert {word.split("=")[0] for word in words if word.startswith("--")} <= known, span


def resolved(name: str) -> list[object]:
    """What a dotted name means, as users write it: one of these must have what is asked for."""
    first, *rest = name.split(".")
    if first in LIBRARIES:
        starts = [LIBRARIES[first]]
    elif first in OF_OTHERS:
        starts = OF_OTHERS[first]
    elif not rest and any(hasattr(model, first) for model in MODELS):
        starts, rest = list(MODELS), [first]
    else:
        starts = [PUBLIC[first]] if first in PUBLIC else []
    found = []
    for start in starts:
        try:
            found.append(reduce(getattr, rest, start))
        except AttributeError:
            continue
    return found


def check_call(call: ast.Call, file: str) -> None:
    name = ast.unparse(call.func)
    if not re.fullmatch(r"[A-Za-z_.]+", name) or name.split(".")[0] in {"x", "table"}:
        return  # a method of what a variable holds
    if name.startswith("adata.") and name.count(".") > 1:
        return  # a method of a table
    meant = resolved(name)
    assert meant, f"nothing is called {name}"
    given = {keyword.arg for keyword in call.keywords}
    known = [set(inspect.signature(value).parameters) for value in meant if callable(value)]
    assert any(given <= names for names in known), f"{name} has no {given}"


SETTINGS_OF_A_JOB = frozenset(
    re.findall(r"^(?:# )?(\w+) = ", (SOURCE / "flower/setup/_templates.py").read_text(), re.MULTILINE)
) | {"site", "continues", "features", "sum", "sites"}


@pytest.mark.parametrize("file", sorted({file for file, _, _ in SPANS}))
def test_what_a_message_advises_can_be_typed(file):
    known = scope(file) | (SETTINGS_OF_A_JOB if file.startswith("flower") else frozenset())
    for at, line, span in SPANS:
        if at != file:
            continue
        where = f"{file}:{line}: `{span}`"
        if span.startswith(("--", "scinfl ")):
            check_command(span)
        elif found := re.match(r"(\w+) ?=(?!=)", span):
            assert found[1] in known | FOREIGN | {"adata"}, f"{where}: no such argument"
        elif re.fullmatch(r"[a-z]\w*", span):
            assert span in known | FOREIGN | set(PUBLIC), f"{where}: no such argument or function"
        elif re.fullmatch(r"scinfl(\.\w+)+", span):
            assert resolved(span), f"{where}: no such function"
        elif re.match(r"[\w.]+\(", span):
            code = re.sub(r"=(?=[,)])", "=None", span).replace("{}", "name")
            try:
                tree = ast.parse(code)
            except SyntaxError:
                continue  # a pattern of text, not code
            for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
                check_call(call, file)


def test_a_cure_that_does_not_exist_is_found():
    with pytest.raises(AssertionError, match="has no"):
        check_call(ast.parse("scinfl.pp.align_genes(adata, everywhere=1)").body[0].value, "pp/x.py")
    with pytest.raises(AssertionError, match="nothing is called"):
        check_call(ast.parse("model.fly()").body[0].value, "model/x.py")
    with pytest.raises(AssertionError, match="fly"):
        check_command("scinfl train --fly")
    with pytest.raises(AssertionError, match="no command"):
        check_command("scinfl fly")
    assert "missing" in scope("model/_classifier.py")
    assert "missing" not in scope("model/gears/_model.py") | scope("_checks.py")
