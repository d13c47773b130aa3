"""What users copy runs as it stands."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_with_outputs_and_without_paths_of_a_machine(path):
    notebook = nbformat.read(path, 4)
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert sum(bool(cell.outputs) for cell in codes) > len(codes) / 2
    assert not any(output.output_type == "error" for cell in codes for output in cell.outputs)
    assert not re.search(r"(/home/|/root/|/tmp/|/work/|/Users/|site-packages)", path.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore")
def test_notebooks_run(path):
    NotebookClient(nbformat.read(path, 4), timeout=600, kernel_name="python3").execute(cwd=str(path.parent))


def test_no_file_of_the_project_names_a_machine():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not files:
        pytest.skip("not a git checkout")
    for name in files:
        path = ROOT / name
        if path.is_file() and path.suffix not in {".png", ".ipynb"} and path.name != Path(__file__).name:
            assert not re.search(r"/home/\w|/root/|/work/main", path.read_text(errors="ignore")), name
