"""Imports point one way."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "scinfl"
EVERYONE = {"_names", "_checks", "_conditions", "_errors", "_spelling"}
ALLOWED = {
    "nn": set(),
    "federation": set(),
    "privacy": {"federation"},
    "privacy.attacks": {"nn", "privacy", "federation"},
    "metrics": set(),
    "module": {"nn"},
    "datasets": set(),
    "pp": {"federation", "privacy", "metrics"},
    "model": {"module", "nn", "federation", "privacy", "metrics", "pp"},  # prepares as users do, validates as reported
    "_audit": {"model", "module", "metrics", "federation", "privacy", "privacy.attacks", "nn"},
    "tl": {"_audit", "model", "module", "metrics", "federation", "privacy", "privacy.attacks", "nn"},
    "pl": {"model"},  # for types only, checked below
    "flower": {"model", "federation", "privacy", "pp"},  # brings sites to the same features
    "cli": {"datasets", "pp", "model", "tl", "pl", "privacy", "privacy.attacks", "metrics", "nn", "flower"},
    "": set(),
}
MAY_IMPORT_SCVI = {"model", "tl"}
KNOWS_PRIVATE_SCVI = "model/base/_model.py"
FILES = sorted(SOURCE.rglob("*.py"))


def part_of(names: list[str]) -> str:
    """Part of the package that a dotted name (without ``scinfl``) belongs to."""
    if names[:2] == ["privacy", "attacks"]:
        return "privacy.attacks"
    return names[0] if names else ""


def imports(path: Path, *, types: bool) -> set[str]:
    """Dotted names that a file imports; with ``types`` those under TYPE_CHECKING too."""
    tree = ast.parse(path.read_text())
    if not types:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                node.body = [ast.Pass()]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {path}"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_one_way(path):
    own = part_of(list(path.relative_to(SOURCE).with_suffix("").parts))
    own = "" if own == "__init__" else own
    if own in EVERYONE:
        allowed = {"_spelling"} if own == "_checks" else set()
    else:
        assert own in ALLOWED, f"{path} belongs to no part of the plan"
        allowed = ALLOWED[own] | EVERYONE | {own}
    for name in imports(path, types=True):
        parts = name.split(".")
        if parts[0] == "scinfl" and parts[1:] != ["__version__"]:
            target = part_of(parts[1:])
            if own == "cli" and parts == ["scinfl"]:
                continue  # `import scinfl as si` inside a command
            assert target in allowed, f"{path.relative_to(SOURCE)} imports {name}"
        if parts[0] == "scvi":
            assert own in MAY_IMPORT_SCVI, f"{path.relative_to(SOURCE)} imports scvi"


def test_plots_know_models_by_type_only():
    for path in (SOURCE / "pl").glob("*.py"):
        assert not any(name.startswith("scinfl.model") for name in imports(path, types=False))


def test_only_the_base_knows_private_names_of_scvi():
    for path in FILES:
        private = {name for name in imports(path, types=True) if name.startswith("scvi") and "._" in name}
        knows = path == SOURCE / KNOWS_PRIVATE_SCVI
        assert knows or not private
        assert knows or "_scvi" not in path.read_text()


def test_no_prints_outside_the_command_line_and_no_handlers():
    for path in FILES:
        calls = {ast.unparse(n.func) for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)}
        if path != SOURCE / "cli" / "_main.py":
            assert not calls & {"print", "logging.basicConfig"}, path
        assert not calls & {"pickle.load", "pickle.loads", "torch.load", "joblib.load", "eval", "exec"}, path
