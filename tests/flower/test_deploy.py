"""Examples of services: systemd reads them, and the command line has what they call."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scinfl.cli._main import _parser

UNITS = sorted((Path(__file__).parents[2] / "docs" / "deploy").glob("*.service"))


def command_of(unit):
    (line,) = re.findall(r"^ExecStart=(.*)$", unit.read_text(), re.MULTILINE)
    words = shlex.split(line)
    if words[0] == "/bin/sh":
        words = shlex.split(re.sub(r"\$\(.*\)", "--resume", words[2]).removeprefix("exec "))
    return words


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_the_command_of_a_unit_is_one_that_there_is(unit):
    program, *arguments = command_of(unit)
    assert program.endswith("/scinfl")
    options = _parser().parse_args(arguments)
    assert options.run.__name__ == f"_{unit.stem.removeprefix('scinfl-')}"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_reads_a_unit(unit, tmp_path):
    (tmp_path / unit.name).write_text(unit.read_text().replace("/opt/scinfl/bin/scinfl", sys.executable))
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / unit.name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
