"""The command line, as a user calls it."""

from __future__ import annotations

import argparse
import shlex
import stat
import subprocess
import sys
from importlib.metadata import version

import anndata as ad
import pandas as pd
import pytest
import torch

import scinfl
from scinfl import _extras
from scinfl._spelling import argument, spelling
from scinfl.cli import _keys, _main, _text, main
from scinfl.privacy import Key


@pytest.fixture
def files(cells, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells.write_h5ad("data.h5ad")
    Key(bytes(range(32)), federation="lung").save("a.key")
    return tmp_path


def run(*arguments, capsys):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_train_then_predict_with_the_right_the_wrong_and_no_key(files, capsys):
    train = ["train", "data.h5ad", "--labels", "label", "--site", "site", "--rounds", 3, "--hidden", 16]
    code, out, _ = run(*train, "--key", "a.key", "--out", "run", "--journal", "journal", capsys=capsys)
    assert code == 0
    assert "Saved to 'run'" in out
    code, out, _ = run("predict", "run", "data.h5ad", "--key", "a.key", capsys=capsys)
    assert code == 0
    labelled = ad.read_h5ad("data_infl.h5ad")
    assert (labelled.obs["infl_label"].astype(str) == labelled.obs["label"].astype(str)).mean() > 0.9
    assert "X_infl" in labelled.obsm
    code, out, _ = run("predict", "run", "data.h5ad", "--key", "a.key", "--out", "l.csv", capsys=capsys)
    assert code == 0
    table = pd.read_csv("l.csv", index_col=0)
    assert list(table.columns) == ["infl_label", "type_0", "type_1", "type_2", "type_3"]

    code, _, err = run("predict", "run", "data.h5ad", "--key", "a.key", capsys=capsys)
    assert code == 1
    assert err.startswith("scinfl: error: Expected nothing at 'data_infl.h5ad'")
    assert run("predict", "run", "data.h5ad", "--key", "a.key", "--overwrite", capsys=capsys)[0] == 0
    code, _, err = run("predict", "run", "data.h5ad", "--out", "x.csv", capsys=capsys)
    assert code == 1
    assert "Pass its key file with `--key`" in err
    main(["key", "new", "b.key"])
    code, _, err = run("predict", "run", "data.h5ad", "--key", "b.key", "--out", "x.csv", capsys=capsys)
    assert code == 1
    assert "Use the key of this model" in err
    assert not (files / "x.csv").exists()
    assert not [path for path in files.iterdir() if "part" in path.name]

    code, out, _ = run("info", "run", capsys=capsys)
    assert code == 0
    assert "locked" in out
    assert "labels: type_0, type_1" in out


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_cells_that_share_a_name_are_labelled_one_by_one(files, cells, capsys):
    train = ["train", "data.h5ad", "--labels", "label", "--rounds", 1, "--hidden", 8, "--out", "run", "--key", "a.key"]
    assert run(*train, capsys=capsys)[0] == 0
    model = scinfl.model.Classifier.load("run")
    model.unlock(Key.load("a.key"))
    cells.obs_names = [f"cell{i % 100}" for i in range(cells.n_obs)]
    cells.write_h5ad("twice.h5ad")
    assert run("predict", "run", "twice.h5ad", "--key", "a.key", "--out", "l.csv", capsys=capsys)[0] == 0
    table = pd.read_csv("l.csv", index_col=0)
    assert table.index.tolist() == cells.obs_names.tolist()
    assert table["infl_label"].tolist() == model.predict(cells).tolist()
    cells.X[0, 0] = float("nan")
    cells.write_h5ad("nan.h5ad")
    code, _, err = run("predict", "run", "nan.h5ad", "--key", "a.key", "--out", "x.csv", capsys=capsys)
    assert code == 1
    assert "or train with `--missing zero`" in err


def test_a_dry_run_lists_what_would_leave_and_writes_no_model(files, capsys):
    train = ["train", "data.h5ad", "--labels", "label", "--site", "site", "--rounds", 3, "--hidden", 16]
    code, out, _ = run(*train, "--key", "a.key", "--out", "run", "--dry-run", capsys=capsys)
    assert code == 0
    assert "encoder.1.weight" in out
    assert out.count("hospital_1") > 10
    assert "Nothing was trained, sent or written to 'run'" in out
    assert not (files / "run").exists()


def test_keys_are_made_once_and_shown_without_their_secret(files, capsys):
    capsys.readouterr()
    assert stat.S_IMODE((files / "a.key").stat().st_mode) == 0o600
    code, out, _ = run("key", "show", "a.key", capsys=capsys)
    assert code == 0
    key = Key.load("a.key")
    assert key.fingerprint in out
    assert key._secret.hex() not in out
    code, _, err = run("key", "new", "a.key", capsys=capsys)
    assert code == 1
    assert "cannot be recovered" in err
    assert Key.load("a.key") == key
    (files / "a.key").chmod(0o644)
    code, _, err = run("key", "show", "a.key", capsys=capsys)
    assert code == 1
    assert "chmod 600" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "none.h5ad", "--labels", "label", "--out", "r"], "none.h5ad"),
        (["train", "bad.h5ad", "--labels", "label", "--out", "r"], "another kind, or a damaged one"),
        (["train", "data.h5ad", "--labels", "celltype", "--out", "r"], "celltype"),
        (["train", "data.h5ad", "--labels", "label", "--out", "r", "--key", "none.key"], "none.key"),
        (["predict", "none", "data.h5ad"], "Check the path"),
        (["predict", "none", "data.h5ad", "--out", "a.txt"], ".csv"),
        (["info", "none"], "Check the path"),
    ],
)
def test_errors_are_one_line_and_exit_with_1(files, capsys, arguments, message):
    (files / "bad.h5ad").write_bytes(b"not hdf5")
    capsys.readouterr()
    code, _, err = run(*arguments, capsys=capsys)
    assert code == 1
    assert message in err
    assert err.count("\n") == 1
    assert not (files / "r").exists()


def test_an_occupied_output_is_refused_before_training(files, capsys):
    (files / "run" / "mine").mkdir(parents=True)
    code, _, err = run("train", "data.h5ad", "--labels", "label", "--out", "run", capsys=capsys)
    assert code == 1
    assert "Training" not in err
    assert "Expected nothing at 'run'" in err


def test_versions_and_help(capsys):
    assert main([]) == 2
    assert "start here" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"scinfl {scinfl.__version__}\n"
    result = subprocess.run([sys.executable, "-m", "scinfl.cli", "--help"], capture_output=True, text=True, check=True)
    assert "federat" in result.stdout or "sites" in result.stdout
    assert subprocess.run([sys.executable, "-m", "scinfl.cli", "fly"], capture_output=True, check=False).returncode == 2


def commands_of(parser, name=()):
    """Every command that can be run, with its parser."""
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not actions:
        yield " ".join(name), parser
    for action in actions:
        for word, below in action.choices.items():
            yield from commands_of(below, (*name, word))


COMMANDS = {
    name: parser
    for name, parser in commands_of(_main._parser(), ("scinfl",))
    if not name.startswith("scinfl federation")
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_examples_that_can_be_typed(name):
    parser = COMMANDS[name]
    heading, *examples = parser.epilog.splitlines()
    assert heading == ("example:" if len(examples) == 1 else "examples:")
    for example in examples:
        assert example.startswith(f"  {name} ") or example == f"  {name}"
        assert _main._parser().parse_args(shlex.split(example)[1:]).run is parser.get_default("run")
    for action in parser._actions:
        assert action.help, f"{name}: {action.dest} is not explained"


@pytest.mark.parametrize("line", [*_main._START.splitlines()[1:], *_keys._LIFE_OF_A_KEY.splitlines()[1:]])
def test_the_stories_can_be_typed(line):
    typed = line.split("&&")[-1].strip().split("   ")[0]
    assert _main._parser().parse_args(shlex.split(typed)[1:]).run


def test_info_shows_versions_devices_and_what_an_extra_lacks(monkeypatch, capsys):
    requirements = [
        "anndata>=0.12",
        'anndata>=0.12; extra == "there"',
        'nothing-of-this-name>=1; extra == "dp"',
        'anndata>=999; extra == "he"',
        "pytest>=8; extra == 'test'",
        'anndata>=0.12; (python_version >= "3.11") and extra == "test"',
    ]
    monkeypatch.setattr(_extras, "requires", lambda name: requirements)
    assert main(["info"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if " " not in line] == ["versions", "devices", "extras"]
    assert f"scinfl {scinfl.__version__}" in lines
    assert any(line.startswith(f"CPU {torch.get_num_threads()} threads of torch") for line in lines)
    assert {line.split()[0] for line in lines} >= {"python", "torch", "scvi-tools", "CUDA", "MPS", "auto"}
    extras = lines[lines.index("extras") + 1 :]
    found = version("anndata")
    assert extras == [
        "dp nothing-of-this-name is missing: pip install 'nothing-of-this-name>=1'",
        f"he anndata is {found}, not >=999: pip install 'anndata>=999'",
        f"there anndata {found}",
    ]


def test_info_knows_the_extras_of_this_package(capsys):
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    assert "leiden" in shown.partition("extras")[2].split()
    assert "lint" not in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "data.h5ad", "--labels", "celltype", "--out", "r"], "Expected `--labels` to name a column"),
        (["train", "data.h5ad", "--labels", "label", "--site", "x", "--out", "r"], "Expected `--site` to name a"),
        (["train", "data.h5ad", "--labels", "label", "--site", "one", "--out", "r"], "pooled site with no `--site`"),
        (["train", "data.h5ad", "--labels", "label", "--rounds", "0", "--out", "r"], "Expected `--rounds` to be"),
        (["train", "data.h5ad", "--labels", "label", "--hidden", "0", "--out", "r"], "Expected `--hidden` to be"),
        (["train", "data.h5ad", "--labels", "label", "--layer", "x", "--out", "r"], "Expected `--layer` to name a"),
        (["train", "data.h5ad", "--labels", "label", "--out", "a.key"], "Name another path, or pass `--overwrite`."),
        (["train", "nan.h5ad", "--labels", "label", "--out", "r"], "or pass `--missing zero`."),
        (
            ["train", "none.h5ad", "--labels", "label", "--out", "r"],
            "category and name it as `--unlabeled`",
        ),
        (["train", "data.h5ad", "--labels", "label", "--out", "a.key/run"], "found a file at"),
        (
            ["train", "data.h5ad", "--labels", "label", "--out", "a.key", "--overwrite"],
            "Expected a scinfl model to",
        ),
        (
            ["train", "data.h5ad", "--labels", "label", "--out", "r", "--device", "cuda:77"],
            "Expected `--device` to be",
        ),
        (["key", "new", "a.key"], "save under another name."),
        (
            ["key", "rotate", ".", "--identity", "x", "--pinned", "y", "--out", "z"],
            "Expected a file at 'y', found none",
        ),
        (["predict", "none", "data.h5ad", "--out", "no/where.csv"], "existing folder for `--out`, found none at 'no'"),
        (
            ["predict", "none", "data.h5ad", "--min-confidence", "2"],
            "Expected `--min-confidence` to be a number from 0",
        ),
        (["audit", "none", "data.h5ad", "--out", "a.pdf"], "`--out (ending)` to be one of ['.html', '.md']"),
        (["audit", "none", "data.h5ad", "--out", "no/a.md"], "existing folder for `--out`"),
        (["info", "."], "Check the path"),
    ],
)
def test_errors_name_options_and_come_before_the_work(files, cells, capsys, arguments, message):
    cells.obs["one"] = "x"
    cells.write_h5ad("data.h5ad")
    cells.X[0, 0] = float("nan")
    cells.write_h5ad("nan.h5ad")
    cells.obs["label"] = cells.obs["label"].astype(object).where(cells.obs_names != cells.obs_names[0])
    cells.X[0, 0] = 0
    cells.write_h5ad("none.h5ad")
    capsys.readouterr()
    code, out, err = run(*arguments, capsys=capsys)
    assert code == 1
    assert message in err
    assert err.count("\n") == 1
    assert not out
    assert "=" not in err


def test_a_locked_model_asks_for_its_key_file(files, capsys):
    train = ["train", "data.h5ad", "--labels", "label", "--rounds", 1, "--hidden", 8]
    assert run(*train, "--key", "a.key", "--out", "run", capsys=capsys)[0] == 0
    code, _, err = run("predict", "run", "data.h5ad", capsys=capsys)
    assert code == 1
    assert err.endswith("Pass its key file with `--key`.\n")
    error = PermissionError(13, "Permission denied", "x")
    assert _text.error_line(error) == "Expected to read or write 'x', found: Permission denied."


def test_messages_name_only_the_options_that_a_command_has():
    options = _main._parser().parse_args(["audit", "run", "data.h5ad"])
    with spelling(_text.as_typed(options)):
        assert argument("attributes") == "`--attributes`"
        assert argument("layer") == "`layer`"
    with spelling(_text.as_typed(_main._parser().parse_args(["federation", "revoke", "kit", "west"]))):
        assert argument("site_key") == "`site_key`"
    assert argument("attributes") == "`attributes`"


def test_the_demo_shows_the_lock(tmp_path, capsys):
    from scinfl.cli._demo import demo

    table = demo(tmp_path / "out", n_rounds=10, progress=False)
    balanced = table["balanced accuracy"]
    right = balanced["keyed, right key"]  # the key of a demo is a new one each time
    assert right > 0.4
    assert abs(right - balanced["federated, no key"]) < 0.03  # the same start: equal up to rounding
    assert balanced["keyed, wrong keys (best of 50)"] < right - 0.05
    assert abs(balanced["keyed, wrong keys (mean of 50)"] - balanced["untrained networks (mean of 50)"]) < 0.05
    assert balanced["keyed, modules removed"] < right - 0.1
    names = {path.name for path in (tmp_path / "out").iterdir()}
    figures = {f"{name}.png" for name in ("history", "sites", "confusion", "umap")}
    assert names == {"cells.h5ad", "comparison.csv", "consortium.key", "model", *figures}
    labelled = ad.read_h5ad(tmp_path / "out" / "cells.h5ad")
    assert {"infl_label", "held_out"} <= set(labelled.obs)
    assert "X_infl" in labelled.obsm
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(FileExistsError, match="overwrite"):
        demo(tmp_path / "out")
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="something else"):
        demo(tmp_path / "mine", overwrite=True)


def test_three_sites_rotate_revoke_and_rekey(cells, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for site in "abc":
        (tmp_path / site).mkdir()
        assert main(["key", "identity", f"{site}.identity", "--site", site]) == 0
    assert main(["key", "new", "a/first.key", "--federation", "lung"]) == 0
    for site in "bc":
        Key.load("a/first.key").save(f"{site}/first.key")

    def key(site, action, *arguments):
        others = [f"{other}.identity.pub" for other in "abc" if other != site]
        who = ["--identity", f"{site}.identity", "--pinned", *others]
        return run("key", action, site, *arguments, *who, capsys=capsys)

    capsys.readouterr()
    code, out, _ = key("a", "rotate", "--out", "letters")
    assert code == 0
    assert "is version 2 now" in out
    code, out, _ = key("b", "unwrap", "letters/b.key.json")
    assert code == 0
    assert "is version 2 now" in out
    code, _, err = key("c", "unwrap", "letters/b.key.json")
    assert code == 1
    assert "found one for site 'b'" in err
    assert key("c", "unwrap", "letters/c.key.json")[0] == 0
    code, out, _ = key("a", "revoke", "c", "--out", "letters")
    assert code == 0
    assert "Site 'c' keeps the keys and models that it had" in out
    assert key("b", "unwrap", "letters/b.key.json", "letters/c.revocation.json")[0] == 0
    code, out, _ = key("c", "unwrap", "letters/c.revocation.json")
    assert code == 0
    assert "Expected a key from version 3" in out
    code, _, err = key("b", "wrap", "c", "--out", "letters")
    assert code == 1
    assert "pinned sites ['a', 'b']" in err
    assert key("b", "wrap", "a", "--out", "more")[0] == 0

    cells.write_h5ad("data.h5ad")
    first, last = "a/first.key", sorted(str(path) for path in (tmp_path / "b").glob("*.key"))[-1]
    train = ["train", "data.h5ad", "--labels", "label", "--site", "site", "--rounds", 3, "--hidden", 16]
    assert run(*train, "--key", first, "--out", "old", capsys=capsys)[0] == 0
    code, out, _ = run("key", "rekey", "old", "--old", first, "--new", last, "--out", "new", capsys=capsys)
    assert code == 0
    assert "Copies of the old model open with the old key as before" in out
    for model, opener, name in (("old", first, "one.csv"), ("new", last, "two.csv")):
        assert run("predict", model, "data.h5ad", "--key", opener, "--out", name, capsys=capsys)[0] == 0
    one, two = (pd.read_csv(name, index_col=0) for name in ("one.csv", "two.csv"))
    pd.testing.assert_frame_equal(one, two, atol=1e-5, rtol=0)  # offsets cost float32 some digits
    code, _, err = run("predict", "new", "data.h5ad", "--key", first, "--out", "three.csv", capsys=capsys)
    assert code == 1
    assert "before it was rekeyed" in err
    files = [*tmp_path.glob("*/*.key"), *tmp_path.glob("*.identity"), *tmp_path.glob("letters/*")]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)
    code, _, err = run("key", "identity", "a.identity", "--site", "a", capsys=capsys)
    assert code == 1
    assert "Expected nothing at 'a.identity.pub'" in err


def test_help_shows_the_life_of_a_key_by_example(capsys):
    with pytest.raises(SystemExit):
        main(["key", "--help"])
    out = capsys.readouterr().out
    for action in ("identity", "rotate", "unwrap", "revoke", "wrap", "rekey"):
        assert f"scinfl key {action}" in out


def test_a_trained_model_is_audited(files, capsys):
    train = ["train", "data.h5ad", "--labels", "label", "--site", "site", "--rounds", 2, "--hidden", 16]
    assert run(*train, "--key", "a.key", "--out", "run", capsys=capsys)[0] == 0
    code, _, err = run("audit", "run", "data.h5ad", "--quick", capsys=capsys)
    assert code == 1
    assert err.startswith("scinfl: error: Expected")
    code, out, err = run("audit", "run", "data.h5ad", "--key", "a.key", "--quick", "--out", "a.md", capsys=capsys)
    assert code == 0, err
    assert "model-stealing attacker" in out
    assert (files / "a.md").read_text().startswith("# ")
    assert Key.load("a.key")._secret.hex() not in (files / "a.md").read_text()
    assert run("audit", "run", "data.h5ad", "--key", "a.key", "--quick", "--out", "a.md", capsys=capsys)[0] == 1


@pytest.mark.parametrize("level", ["debug", "error"])
def test_a_log_level_is_that_of_our_own_logs(level, capsys, monkeypatch):
    import logging

    monkeypatch.setattr(logging.getLogger("scinfl"), "level", logging.NOTSET)
    assert main(["--log-level", level, "info"]) == 0
    assert logging.getLogger("scinfl").level == getattr(logging, level.upper())
    assert logging.getLogger("httpcore").getEffectiveLevel() >= logging.INFO
