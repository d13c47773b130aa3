"""A run that is killed goes on from its last finished round."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from scinfl.federation import Journal
from scinfl.model import Classifier
from scinfl.nn import unlock
from scinfl.privacy import Seal

SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from scinfl.model import Classifier
from scinfl.privacy import Key
from tests.conftest import make_cells

folder, journal, out = map(Path, sys.argv[1:])
cells = make_cells(900)
Classifier.setup_anndata(cells, "label", site_key="site")
model = Classifier(cells, n_hidden=64)
model.train(12, key=Key.load(folder / "a.key"), journal=journal, fraction=0.67, local_epochs=4, progress=False)
model.save(out)
"""


def start(*arguments: Path) -> subprocess.Popen:
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)], env=environment, stderr=subprocess.PIPE, text=True
    )


def sent_in(folder: Path) -> list[dict]:
    return [sent for event in Journal(folder).events() if event["event"] == "round" for sent in event["sent"]]


def wait(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors


def test_a_killed_run_resumes_to_the_same_final_weights(tmp_path, key):
    key.save(tmp_path / "a.key")
    wait(start(tmp_path, tmp_path / "whole", tmp_path / "model_whole"))

    killed = start(tmp_path, tmp_path / "cut", tmp_path / "model_cut")
    log = tmp_path / "cut" / "audit.jsonl"
    deadline = time.monotonic() + 240
    while not (log.exists() and log.read_bytes().count(b'"event": "round"') >= 4):
        assert time.monotonic() < deadline
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    n_finished = len(Journal(tmp_path / "cut", Seal(key)).load()[1]["history"])
    assert 3 <= n_finished < 12
    assert not (tmp_path / "model_cut").exists()

    wait(start(tmp_path, tmp_path / "cut", tmp_path / "model_cut"))
    events = [event["event"] for event in Journal(tmp_path / "cut").events()]
    assert events.count("resume") == 1
    assert Journal(tmp_path / "cut").verify()
    whole, cut = (Classifier.load(tmp_path / name) for name in ("model_whole", "model_cut"))
    for model in (whole, cut):
        model.unlock(key)
    plain = [unlock(model.module, model.module.state_dict()) for model in (whole, cut)]
    for name, tensor in plain[0].items():
        assert torch.equal(tensor, plain[1][name]), name  # files have offsets of their own
    kept = [Journal(tmp_path / folder, Seal(key)).load()[0]["state"] for folder in ("whole", "cut")]
    for name, array in kept[0].items():
        np.testing.assert_array_equal(array, kept[1][name])
    nonces = [sent["header"]["nonce"] for folder in ("whole", "cut") for sent in sent_in(tmp_path / folder)]
    assert len(nonces) == len(set(nonces)) >= 2 * 12 * 3


@pytest.mark.parametrize("change", [{"lr": 0.001}, {"batch_size": 16}, {"rng": 1}])
def test_a_journal_of_other_settings_is_refused(cells, key, tmp_path, change):
    from tests.model.test_classifier import fit

    fit(cells, 1, key=key, journal=tmp_path)
    with pytest.raises(ValueError, match="other settings"):
        fit(cells, 2, key=key, journal=tmp_path, **change)
