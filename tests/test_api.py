"""The public API keeps its conventions."""

from __future__ import annotations

import inspect
import resource
import subprocess
import sys

import pytest

import scinfl as si

PARTS = [name for name in si.__all__ if not name.startswith("_")]


def public(part: str) -> list[tuple[str, object]]:
    module = getattr(si, part)
    found = [(f"{part}.{name}", getattr(module, name)) for name in module.__all__]
    return [(name, value) for name, value in found if callable(value)]


OBJECTS = [item for part in PARTS for item in public(part)]
FUNCTIONS = [(name, value) for name, value in OBJECTS if inspect.isfunction(value)]
CLASSES = [(name, value) for name, value in OBJECTS if inspect.isclass(value) and value.__module__.startswith("scinfl")]


def test_importing_scinfl_is_quick_and_loads_nothing_heavy():
    code = "import sys, scinfl; print(sorted({'torch', 'scvi', 'scanpy', 'pandas'} & set(sys.modules)))"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


def test_every_part_is_found_and_nothing_else():
    assert set(dir(si)) == set(si.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        si.nothing  # noqa: B018


@pytest.mark.parametrize(("name", "value"), FUNCTIONS, ids=lambda value: value if isinstance(value, str) else "")
def test_functions_are_documented_with_all_their_arguments(name, value):
    doc = inspect.getdoc(value)
    assert doc, name
    for argument in inspect.signature(value).parameters:
        assert argument in doc, f"{name}: {argument} is not documented"


@pytest.mark.parametrize(("name", "value"), CLASSES, ids=lambda value: value if isinstance(value, str) else "")
def test_classes_and_their_methods_are_documented(name, value):
    assert inspect.getdoc(value), name
    for method, member in inspect.getmembers(value, inspect.isfunction):
        if not method.startswith("_") and member.__module__.startswith("scinfl"):
            assert inspect.getdoc(member), f"{name}.{method}"


@pytest.mark.parametrize("part", ["tl", "pl", "pp"])
def test_tools_take_data_first_and_options_by_name(part):
    for name, function in public(part):
        parameters = list(inspect.signature(function).parameters.values())
        makes_one = {"pp.join_sections": {"adatas"}, "pp.read_visium": {"folder"}}
        first = makes_one.get(name, {"adata", "mdata", "sdata", "model", "table"})
        assert parameters[0].name in first, name
        most = 3 if name == "pl.perturbation" else 2  # cells, model and what to draw
        assert sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters) <= most, name


@pytest.mark.parametrize(("name", "function"), public("pl"), ids=lambda value: value if isinstance(value, str) else "")
def test_plots_take_axes(name, function):
    signature = inspect.signature(function)
    assert signature.parameters["ax"].default is None
    assert signature.return_annotation == "Axes"


def signatures():
    for name, value in OBJECTS:
        if inspect.isfunction(value):
            yield name, inspect.signature(value)
        elif inspect.isclass(value) and value.__module__.startswith("scinfl"):
            for method, member in inspect.getmembers(value, inspect.isroutine):
                if (not method.startswith("_") or method == "__init__") and (
                    getattr(member, "__module__", None) or ""
                ).startswith("scinfl"):
                    yield f"{name}.{method}", inspect.signature(member)


def test_a_key_has_no_default_and_is_no_argument_of_a_models_constructor():
    for name, signature in signatures():
        if "key" in signature.parameters:
            made = name.startswith(("model.", "module.")) and name.endswith("__init__")
            assert not made or name.endswith("Options.__init__"), name  # settings of a run name the key of that run
            assert signature.parameters["key"].default in (None, inspect.Parameter.empty), name


def test_randomness_is_an_argument_called_rng_and_sites_are_sites():
    for name, signature in signatures():
        for argument in signature.parameters:
            assert argument not in {"seed", "random_state"}, name
            assert not any(word in argument for word in ("client", "node", "center", "centre")), name
