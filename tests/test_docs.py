"""What the documentation says is there, is there, and what is there is in the documentation."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from functools import reduce
from pathlib import Path
from types import ModuleType

import pytest

import scinfl as si
from scinfl.model.base import RemoteContext

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "api").glob("*.md"), ROOT / "README.md"])
PARTS = {name: getattr(si, name) for name in si.__all__ if not name.startswith("_")}
PARTS["privacy.attacks"] = si.privacy.attacks
NAMES = [(part, name) for part, module in PARTS.items() for name in module.__all__]
CLASSES = [
    (part, name)
    for part, name in NAMES
    if inspect.isclass(found := getattr(PARTS[part], name)) and found.__module__.startswith("scinfl")
]


def python_of(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)


def api_page(part: str) -> str:
    return (ROOT / "docs" / "api" / f"{part.split('.', maxsplit=1)[0]}.md").read_text()


def own_methods(kind: type) -> dict[str, object]:
    members = {name: value for name, value in vars(kind).items() if not name.startswith("_")}
    hooks = {"extra_repr"}  # torch prints it
    return {
        name: value
        for name, value in members.items()
        if isinstance(value, property | classmethod | staticmethod) or inspect.isfunction(value)
        if name not in hooks
    }


def directive(part: str, name: str) -> re.Match[str] | None:
    pattern = rf"^\.\. (?:auto(?:function|class|data)|py:data):: {name}\n((?:   .*\n)*)"
    return re.search(pattern, api_page(part), re.MULTILINE)


@pytest.mark.parametrize("path", [ROOT / "docs" / "index.md", ROOT / "README.md"], ids=lambda path: path.name)
@pytest.mark.filterwarnings("ignore")
def test_the_first_example_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = python_of(path)
    names: dict[str, object] = {}
    exec(compile(code, path.name, "exec"), names)
    test = names["test"]
    assert (test.obs["infl_label"].astype(str) == test.obs["bulk_labels"].astype(str)).mean() > 0.7
    assert {"distances", "connectivities"} <= set(test.obsp)


@pytest.mark.filterwarnings("ignore")
def test_the_example_model_of_the_architecture_page_is_federated_keyed_and_saved(tmp_path, monkeypatch):
    (code,) = python_of(ROOT / "docs" / "architecture.md")
    example = ModuleType("example")
    monkeypatch.setitem(sys.modules, "example", example)
    exec(compile(code, "architecture.md", "exec"), vars(example))
    kind = example.Autoencoder
    adata = si.datasets.pbmc()
    si.pp.split_sites(adata, n_sites=4, rng=0)
    kind.setup_anndata(adata, site_key="site")
    model, key = kind(adata), si.privacy.Key.generate()
    model.train(8, key=key, lr=1e-2, progress=False)

    def error() -> float:
        return float(((model.reconstruct() - adata.X) ** 2).mean())

    right = error()
    assert right < 0.95 * adata.X.var()
    model.save(tmp_path / "model")
    again = kind.load(tmp_path / "model", adata)
    again.unlock(key)
    assert (again.reconstruct() == model.reconstruct()).all()
    model.unlock(si.privacy.Key.generate(), force=True)
    assert error() > adata.X.var()  # worse than the mean
    fresh = kind(adata)
    fresh.train(8, key=key, dry_run=True, progress=False)
    assert set(fresh.payload["site"]) == {f"site_{number}" for number in range(1, 5)}
    assert not fresh.is_trained_
    with pytest.raises(KeyError, match="nowhere"):
        kind.setup_anndata(adata.copy(), site_key="nowhere")
    one = adata[adata.obs["site"] == "site_1"].copy()
    kind.setup_anndata(one)
    given = {}

    def engine(sites, state, strategy, protections, **settings):
        given.update(sites=sites, by=protections)

    among = RemoteContext("site_1", [f"site_{number}" for number in range(1, 5)], engine)
    kind(one).train(1, key=key, remote=among, progress=False)
    assert [site.name for site in given["sites"]] == ["site_1"]
    assert [type(protection).__name__ for protection in given["by"]] == ["KeyedSum"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_python_of_a_page_is_python_and_names_what_exists(path):
    for code in python_of(path):
        compile(code, path.name, "exec")
    for name in set(re.findall(r"\b(?:si|scinfl)((?:\.[A-Za-z]\w*)+)", " ".join(python_of(path)))):
        reduce(getattr, name[1:].split("."), si)


@pytest.mark.parametrize(("part", "name"), NAMES, ids=lambda value: value)
def test_a_public_name_has_a_docstring_and_stands_in_its_page_of_the_reference(part, name):
    value = getattr(PARTS[part], name)
    assert inspect.getdoc(value) or not (inspect.isfunction(value) or inspect.isclass(value))
    if part == "privacy.attacks":  # listed as a whole
        assert "automodule:: scinfl.privacy.attacks\n   :members:\n" in api_page(part)
    else:
        assert directive(part, name), f"add `{name}` to docs/api/{part}.md"


@pytest.mark.parametrize(("part", "name"), CLASSES, ids=lambda value: value)
def test_methods_of_a_public_class_are_documented_and_listed(part, name):
    methods = own_methods(getattr(PARTS[part], name))
    for method, value in methods.items():
        assert inspect.getdoc(getattr(value, "fget", value)), f"{name}.{method} has no docstring"
    found = directive(part, name)
    members = re.search(r":members:(.*)", found[1]) if found else None
    if part == "privacy.attacks" or not methods or (members and not members[1].strip()):
        return
    listed = {word.strip() for word in members[1].split(",")} if members else set()
    assert set(methods) <= listed, f"list them under `{name}` in docs/api/{part}.md"


@pytest.fixture
def check_links():
    spec = importlib.util.spec_from_file_location("check_links", ROOT / "docs" / "check_links.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_links_of_the_readme_lead_somewhere(check_links):
    assert check_links.dead_links([ROOT / "README.md", ROOT / "CONTRIBUTING.md"]) == []


def test_dead_links_are_found(check_links, tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<p id="here"><a href="#here"></a><a href="#there"></a><img src="lost.png"></p>')
    (tmp_path / "other.html").write_text('<a href="page.html#here"></a><a href="https://example.org/lost"></a>')
    dead = check_links.dead_links([page, tmp_path / "other.html"])
    assert dead == ["page.html: #there", "page.html: lost.png"]


def test_figures_of_the_reference_are_those_of_plots():
    stored = {path.stem for path in (ROOT / "docs" / "_static" / "pl").glob("*.png")}
    assert stored <= set(PARTS["pl"].__all__), "draw them again with `make figures`"
    assert {"sections", "perturbation", "imputation"} <= stored
