"""Imports point one way, what is private stays private, and no file or class grows too large."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "scinfl"
EVERYONE = {
    "_names",
    "_checks",
    "_colours",
    "_conditions",
    "_coordinates",
    "_data_files",
    "_errors",
    "_linear_rule",
    "_extras",
    "_mapped",
    "_spelling",
}
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
    "tl": {"_audit", "model", "module", "metrics", "pp", "federation", "privacy", "privacy.attacks", "nn"},
    "pl": {"model", "metrics"},  # model for types only, checked below
    "flower": {"model", "federation", "privacy", "pp"},  # brings sites to the same features
    "cli": {"datasets", "pp", "model", "tl", "pl", "privacy", "privacy.attacks", "metrics", "nn", "flower"},
    "": set(),
}
MAY_IMPORT_SCVI = {"model", "tl"}
KNOWS_PRIVATE_SCVI = "model/base/_registry.py"
FILES = sorted(SOURCE.rglob("*.py"))
PRIVATE_OF_OTHERS = {  # `x._name` of something that the file does not define itself: by file, names and reason
    "model/base/_view.py": (None, "the view that audits, tools and engines have of any model"),
    "model/gears/_view.py": (None, "the view of a GEARS"),
    "model/spamosaic/_view.py": (None, "the view of a SpaMosaic"),
    "model/scvi/_view.py": (None, "the view of a model of scvi-tools"),
    "model/base/_locked_model.py": ({"_adata"}, "`load` completes the model that it makes"),
    "model/gears/_model.py": ({"_put_graphs"}, "`from_cell_gears` completes the model that it makes"),
    "model/scvi/_map_query.py": (
        {"_lock_as", "_plain_network", "_setup_args", "_training_cells"},
        "`map_query` completes the model that it makes",
    ),
    "model/scvi/_template.py": (
        {"_set_indices_and_labels"},
        "scvi-tools gives labels in no public way",
    ),
    "privacy/aggregation/_keyed_sum.py": ({"_derive"}, "masks are derived from the bytes of the key"),
    "privacy/keys/_rotation.py": ({"_secret"}, "a key is wrapped and unwrapped as bytes"),
    "flower/_flwr.py": (None, "the one file that knows private names of Flower"),
    "flower/server/_superlink_process.py": ({"_exit"}, "os._exit is public, despite its name"),
    "_checks.py": ({"_getframe"}, "sys._getframe is public, despite its name"),
    "nn/_offsets.py": ({"_version"}, "torch has no public name for how often a tensor was changed in place"),
    "nn/_keyed.py": ({"_modules"}, "torch has no public name for modules under several names"),
    "pp/_align_genes.py": ({"_init_as_actual"}, "anndata has no public way to replace all of an object"),
    "pp/_perturbations.py": ({"_inplace_subset_obs"}, "anndata has no public way to drop rows in place"),
}
MOST_LINES, MOST_LINES_OF_A_CLASS = 500, 400


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
        leaves = {"_checks": {"_mapped", "_spelling"}, "_coordinates": {"_checks"}, "_data_files": {"_checks"}}
        allowed = leaves.get(own, set())
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
        assert knows or not re.search(r"(?<!\w)_scvi", path.read_text())


def test_no_prints_outside_the_command_line_and_no_handlers():
    for path in FILES:
        calls = {ast.unparse(n.func) for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)}
        if path != SOURCE / "cli" / "_main.py":
            assert not calls & {"print", "logging.basicConfig"}, path
        assert not calls & {"pickle.load", "pickle.loads", "torch.load", "joblib.load", "eval", "exec"}, path


def own_names(tree: ast.AST) -> set[str]:
    """Names that a file defines, as functions, classes, variables, or attributes of what it defines."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "cls", "super()"):
            found.add(node.attr)
    return found


def test_private_attributes_are_read_where_they_are_defined():
    read = {}
    for path in FILES:
        tree = ast.parse(path.read_text())
        attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        private = {name for name in attributes if name.startswith("_") and not name.startswith("__")}
        if foreign := private - own_names(tree):
            read[str(path.relative_to(SOURCE))] = foreign
    assert set(read) == set(PRIVATE_OF_OTHERS)  # what is gone must leave the list
    for path, names in read.items():
        allowed, _ = PRIVATE_OF_OTHERS[path]
        assert allowed is None or names == allowed, path


def test_packages_import_from_each_other_by_public_names_only():
    for path in FILES:
        own = path.relative_to(SOURCE).parts[0]
        for name in imports(path, types=True):
            parts = name.split(".")
            if parts[0] == "scinfl" and len(parts) > 2 and parts[1] != own:
                assert not any(part.startswith("_") for part in parts[2:]), f"{path.relative_to(SOURCE)}: {name}"


def test_files_and_classes_stay_small():
    for path in FILES:
        text = path.read_text()
        assert text.count("\n") <= MOST_LINES, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                assert node.end_lineno - node.lineno <= MOST_LINES_OF_A_CLASS, f"{path}: {node.name}"


def test_files_do_not_import_each_other_in_circles():
    names = {".".join(path.relative_to(SOURCE.parent).with_suffix("").parts): path for path in FILES}
    files = {name.removesuffix(".__init__"): path for name, path in names.items()}

    def file_of(name: str) -> Path | None:
        while name and name not in files:
            name = name.rpartition(".")[0]
        return files.get(name)

    graph = {path: {file_of(name) for name in imports(path, types=True)} - {path, None} for path in FILES}
    TopologicalSorter(graph).prepare()  # raises a CycleError that names the circle
