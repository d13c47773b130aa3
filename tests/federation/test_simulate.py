"""Runs over toy sites, computed by hand."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from scinfl.federation import FedAvg, Journal, Payload, Protection, Update, mean_of, simulate
from scinfl.federation.rounds import write_atomically
from scinfl.privacy import KeyedSum, PairwiseSum

START = {"w": np.array([0.0])}


def run(sites, n_rounds=3, **options):
    return simulate(sites, START, FedAvg(), n_rounds=n_rounds, progress=False, **options)


def test_rounds_are_fit_then_mean(toy_sites):
    result = run(toy_sites, 2)
    target = (10 * 1 + 30 * 2 + 20 * 6) / 60
    assert result.history[0]["train_loss"] == pytest.approx(target)
    np.testing.assert_allclose(result.state["w"], target * 0.75)
    assert [record["n_sites"] for record in result.history] == [3, 3]
    assert [(r["round"], r["site"], r["n_obs"]) for r in result.site_history[:3]] == [
        (1, "a", 10),
        (1, "b", 30),
        (1, "c", 20),
    ]


def test_the_best_round_is_that_of_the_sites_validation(toy_sites):
    for site in toy_sites:
        site.n_validation = 0
    toy_sites[0].n_validation = 5  # only the site that wants 1.0 has validation observations
    result = run(toy_sites, 6)
    losses = [record["validation_loss"] for record in result.history]
    assert result.best_round == int(np.argmin(losses)) + 1 < 6
    np.testing.assert_allclose(abs(result.best_state["w"] - 1.0), min(losses))


def test_the_kept_state_is_a_moving_average_and_training_goes_on_from_the_last(toy_sites):
    rough, smooth = run(toy_sites, 30), run(toy_sites, 30, smoothing=0.5)
    np.testing.assert_array_equal(rough.state["w"], smooth.state["w"])
    past = state = 0.0
    target = (10 * 1 + 30 * 2 + 20 * 6) / 60
    for number in range(1, 31):
        state = (state + target) / 2
        weight = min(0.5, (number - 1) / (number + 9))
        past = weight * past + (1 - weight) * state
    np.testing.assert_allclose(smooth.smooth["w"], past)
    with pytest.raises(ValueError, match="smoothing"):
        run(toy_sites, 1, smoothing=1.0)


def test_what_stays_at_the_sites_is_kept_from_the_best_round(toy_sites, tmp_path):
    for site in toy_sites:
        site.n_validation = 0
    toy_sites[0].n_validation = 5
    result = run(toy_sites, 6, journal=Journal(tmp_path))
    assert result.best_round < 6
    assert int(result.best_local["a"]["n_fits"]) == result.best_round
    resumed = run(toy_sites, 6, journal=Journal(tmp_path))
    assert int(resumed.best_local["a"]["n_fits"]) == result.best_round


def test_without_validation_the_last_round_is_kept(toy_sites):
    for site in toy_sites:
        site.n_validation = 0
    result = run(toy_sites, 4, patience=2)
    assert (result.best_round, result.n_rounds) == (4, 4)
    assert "validation_loss" not in result.history[0]


def test_early_stopping_counts_rounds_without_improvement(toy_sites):
    for site in toy_sites[1:]:
        site.n_validation = 0
    result = run(toy_sites, 50, patience=3)
    assert result.n_rounds == result.best_round + 3


def test_a_metric_that_is_no_loss_is_best_when_highest(toy_sites):
    for site in toy_sites:
        evaluate = site.evaluate
        site.evaluate = lambda round, state, evaluate=evaluate: replace(
            evaluate(round, state), metrics={"accuracy": -abs(round - 3)}
        )
    assert run(toy_sites, 5, monitor="validation_accuracy").best_round == 3


def test_few_rows_do_not_choose_a_round_by_accuracy_and_many_do(toy_sites):
    accuracies = [0.2, 1.0, 0.7, 0.8, 0.7]
    for n, kept in ((1, 5), (1000, 2)):
        for site in toy_sites:
            site.n_validation = n
            site.evaluate = lambda round, state, n=n, name=site.name: Update(
                name, round, {}, n, float(n), metrics={"accuracy": accuracies[round - 1]}, purpose="evaluation"
            )
        assert run(toy_sites, 5, monitor="validation_accuracy").best_round == kept
        assert run(toy_sites, 5, monitor="validation_accuracy", patience=2).n_rounds == 4  # two without a higher one


@pytest.mark.parametrize("monitor", ["validation_mse_de", "validation_mse", "validation_loss"])
def test_losses_and_squared_errors_are_best_when_lowest(toy_sites, monitor):
    for site in toy_sites:
        evaluate = site.evaluate
        site.evaluate = lambda round, state, evaluate=evaluate: replace(
            evaluate(round, state), metrics={monitor.removeprefix("validation_"): abs(round - 3)}
        )
    assert run(toy_sites, 5, monitor=monitor).best_round == 3


def test_derived_metrics_take_the_place_of_the_means_of_the_sites(toy_sites):
    for site in toy_sites:
        evaluate, square = site.evaluate, site.target**2
        site.evaluate = lambda round, state, evaluate=evaluate, square=square: replace(
            evaluate(round, state), metrics={"square": square, "round": float(round)}
        )
    seen = []

    def derive(metrics, n):
        assert n == 6  # validation observations of all sites
        seen.append(dict(metrics))
        return {"root": metrics["square"] ** 0.5, "loss": abs(metrics["round"] - 2)}

    result, plain = run(toy_sites, 3, derive=derive), run(toy_sites, 3)
    mean = (1 + 4 + 36) / 3  # every site has as many validation observations
    assert [metrics["square"] for metrics in seen] == pytest.approx([mean] * 3)
    assert [record["validation_root"] for record in result.history] == pytest.approx([mean**0.5] * 3)
    assert not any("square" in name for record in result.history for name in record)
    assert plain.history[0]["validation_square"] == pytest.approx(mean)
    assert "validation_root" not in plain.history[0]
    assert result.best_round == 2  # what is monitored is what was derived
    assert [r["train_loss"] for r in result.history] == [r["train_loss"] for r in plain.history]


def test_without_validation_nothing_is_derived(toy_sites):
    for site in toy_sites:
        site.n_validation = 0

    def derive(metrics, n):
        raise AssertionError

    assert run(toy_sites, 2, derive=derive).n_rounds == 2


def test_a_share_of_the_sites_takes_part_drawn_anew_each_round(toy_sites):
    result = run(toy_sites, 40, fraction=0.5, rng=1)
    drawn = [tuple(r["site"] for r in result.site_history if r["round"] == n) for n in range(1, 41)]
    assert {len(sites) for sites in drawn} == {2}
    assert len(set(drawn)) == 3
    assert run(toy_sites, 40, fraction=0.5, rng=1).state == result.state
    assert run(toy_sites, 40, fraction=0.5, rng=2).site_history != result.site_history
    assert run(toy_sites, 1, fraction=0.1, min_sites=3).history[0]["n_sites"] == 3
    assert run(toy_sites, 1, fraction=0.1).history[0]["n_sites"] == 1


class Mask(Protection):
    """A protection that hides every update behind a number that cancels in the sum."""

    masks: ClassVar = {"a": 5.0, "b": -2.0, "c": -3.0}

    def __init__(self):
        self.seen_by_server, self.members = [], []

    def encode(self, update):
        state = {name: array * update.weight + self.masks[update.site] for name, array in update.state.items()}
        return replace(update, state=state, header={"nonce": update.site.encode()})

    def combine(self, encoded):
        self.seen_by_server += [update.state for update in encoded]
        state = {name: sum(u.state[name] for u in encoded) for name in encoded[0].state}
        metrics = {"loss": np.mean([u.metrics["loss"] for u in encoded])}
        return replace(encoded[0], site="", state=state, weight=sum(u.weight for u in encoded), metrics=metrics)

    def decode(self, combined, members):
        self.members.append([(member.header["nonce"], member.state) for member in members])
        return replace(combined, state={name: array / combined.weight for name, array in combined.state.items()})


class Double(Protection):
    """A protection that changes updates and leaves the sum to others."""

    def encode(self, update):
        return replace(update, state={name: 2 * array for name, array in update.state.items()})

    def combine(self, encoded):
        return None

    def decode(self, combined, members):
        return replace(combined, state={name: array / 2 for name, array in combined.state.items()})


def test_protections_hide_updates_from_the_server_and_leave_the_run_as_it_was(toy_sites):
    plain = run(toy_sites, 3)
    mask = Mask()
    hidden = run(toy_sites, 3, protections=[Double(), mask])
    np.testing.assert_allclose(hidden.state["w"], plain.state["w"])
    assert mask.members[0] == [(b"a", {}), (b"b", {}), (b"c", {})]
    assert [float(s["w"][0]) for s in mask.seen_by_server[:3]] == [10 * 1 + 5, 30 * 2 - 2, 20 * 6 - 3]


def test_a_resumed_run_ends_like_one_that_was_never_cut(toy_sites, tmp_path):
    whole = run(toy_sites, 6, fraction=0.5, smoothing=0.5)
    settings = {"model": "toy"}
    run(toy_sites, 2, fraction=0.5, smoothing=0.5, journal=Journal(tmp_path), settings=settings)
    for site in toy_sites:
        site.n_fits = 0
    resumed = run(toy_sites, 6, fraction=0.5, smoothing=0.5, journal=Journal(tmp_path), settings=settings)
    np.testing.assert_array_equal(resumed.state["w"], whole.state["w"])
    np.testing.assert_array_equal(resumed.best_state["w"], whole.best_state["w"])
    assert resumed.best_round == whole.best_round
    assert resumed.site_history == whole.site_history
    assert set(resumed.best_local) == {"a", "b", "c"}
    assert sum(site.n_fits for site in toy_sites) == 12 + 4 + 8  # what the sites keep came back from the journal
    again = run(toy_sites, 6, fraction=0.5, smoothing=0.5, journal=Journal(tmp_path), settings=settings)
    np.testing.assert_array_equal(again.state["w"], whole.state["w"])


def test_a_journal_of_another_run_is_refused(toy_sites, tmp_path):
    run(toy_sites, 1, journal=Journal(tmp_path), settings={"lr": 1, "rng": 0})
    with pytest.raises(ValueError, match=r"other settings: \['lr'\]"):
        run(toy_sites, 2, journal=Journal(tmp_path), settings={"lr": 2, "rng": 0})


def test_the_audit_log_names_what_left_each_site(toy_sites, tmp_path):
    run(toy_sites, 2, journal=Journal(tmp_path))
    events = Journal(tmp_path).events()
    assert [event["event"] for event in events] == ["start", "round", "round"]
    assert events[1]["sent"][0] == {"site": "a", "arrays": [["w", [1], "float64", 8]], "bytes": 8, "header": {}}
    assert Journal(tmp_path).verify()


def test_impossible_runs_are_refused_before_any_training(toy_sites):
    with pytest.raises(ValueError, match="different names"):
        run([toy_sites[0], toy_sites[0]])
    with pytest.raises(ValueError, match="different names"):
        run([])
    with pytest.raises(ValueError, match="fraction"):
        run(toy_sites, fraction=0)
    with pytest.raises(ValueError, match="min_sites"):
        run(toy_sites, min_sites=4)

    class Median(FedAvg):
        needs_plaintext = True

    with pytest.raises(ValueError, match="masked sum hides"):
        simulate(toy_sites, START, Median(), [Mask()], n_rounds=1, progress=False)
    assert all(site.n_fits == 0 for site in toy_sites)


def test_a_log_line_that_was_changed_dropped_or_cut_short(toy_sites, tmp_path):
    run(toy_sites, 3, journal=Journal(tmp_path))
    path = tmp_path / "audit.jsonl"
    good = path.read_bytes()
    lines = good.splitlines(keepends=True)
    for bad in (good.replace(b'"site": "a"', b'"site": "x"'), b"".join(lines[:1] + lines[2:]), b"".join(lines[1:])):
        path.write_bytes(bad)
        assert not Journal(tmp_path).verify()
    path.write_bytes(good + b'{"event": "ro')  # killed while writing
    journal = Journal(tmp_path)
    journal.log("resume")
    assert journal.verify()
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["start", *["round"] * 3, "resume"]


def test_a_damaged_checkpoint_is_refused(toy_sites, tmp_path):
    run(toy_sites, 1, journal=Journal(tmp_path))
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ValueError, match="damaged"):
        run(toy_sites, 2, journal=Journal(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="Name another path"):
        Journal(tmp_path / "file")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


# ---- the mean of what sites know before training

COUNTS = {"a": 10, "b": 30, "c": 20}


def known(purpose="moments"):
    generator = np.random.default_rng(0)
    return [
        Update(
            site,
            0,
            {"mean": generator.normal(3, 1, 6), "products": generator.normal(size=(4, 5)).astype(np.float32)},
            n,
            float(n),
            {"n_genes": float(n)},
            purpose=purpose,
        )
        for site, n in COUNTS.items()
    ]


def naive_mean(updates, name):
    return sum(u.weight * u.state[name].astype(np.float64) for u in updates) / sum(u.weight for u in updates)


@pytest.mark.parametrize("protect", [False, True])
def test_the_mean_of_what_sites_know_is_weighted(key, protect):
    mean = mean_of(known(), [KeyedSum(key)] if protect else [])
    for name in ("mean", "products"):
        np.testing.assert_allclose(mean.state[name], naive_mean(known(), name), rtol=1e-6)
        assert mean.state[name].dtype == known()[0].state[name].dtype
    assert mean.metrics["n_genes"] == pytest.approx((100 + 900 + 400) / 60)
    assert mean.site == ""
    assert mean.weight == pytest.approx(60)


@pytest.mark.parametrize("kind", [KeyedSum, PairwiseSum])
def test_a_total_serves_other_purposes_with_the_same_weights(key, kind):
    guard, payload = kind(key), Payload()
    first = mean_of(known(), [guard], payload=payload)
    for _ in range(2):  # its rounds start again
        again = [replace(update, purpose="more") for update in known()]
        other = mean_of(again, [guard], payload=payload, agree=known()[0].purpose)
        assert other.weight == first.weight
        for name, array in first.state.items():
            np.testing.assert_array_equal(other.state[name], array)
    assert [purpose for purpose in payload.table["purpose"].unique() if purpose.startswith("total of")] == [
        f"total of {known()[0].purpose}"
    ]
    with pytest.raises(RuntimeError, match="agreed"):
        mean_of([replace(update, purpose="else") for update in known()], [guard], agree="never agreed on")


def test_what_travels_to_the_mean_does_not_hold_the_numbers(key, monkeypatch):
    protection, travelled = KeyedSum(key), []
    combine = protection.combine
    monkeypatch.setattr(protection, "combine", lambda encoded: travelled.extend(encoded) or combine(encoded))
    mean_of(known(), [protection])
    assert [update.site for update in travelled] == list(COUNTS)
    for sent, own in zip(travelled, known(), strict=True):
        assert list(sent.state) == ["masked"]
        assert (sent.n_obs, sent.weight, sent.metrics) == (0, 0.0, {})
        content = b"".join(array.tobytes() for array in sent.state.values()) + b"".join(sent.header.values())
        for array in own.state.values():
            for value in (array, array.astype(np.float32), array.astype(np.float64), array * own.weight / 60):
                assert not any(number.tobytes() in content for number in value.ravel())
        # as fixed-point numbers they are masked too: what is sent looks uniform
        words = sent.state["masked"].astype(np.float64) / 2.0 ** (8 * sent.state["masked"].itemsize)
        assert 0.2 < words.mean() < 0.8
        assert words.std() > 0.15


def test_a_keyed_sum_of_two_sites_is_refused_and_purposes_are_apart(key):
    protection = KeyedSum(key)
    with pytest.raises(ValueError, match="at least 3 sites"):
        mean_of(known()[:2], [protection])
    for purpose in ("moments", "changes", "moments"):
        mean = mean_of(known(purpose), [protection])
        np.testing.assert_allclose(mean.state["mean"], naive_mean(known(), "mean"), rtol=1e-9)


def test_numbers_beyond_the_bound_are_sent_again(key):
    updates = [replace(u, state={"sums": 1e7 * u.state["mean"]}) for u in known()]
    mean = mean_of(updates, [KeyedSum(key)])
    np.testing.assert_allclose(mean.state["sums"], naive_mean(updates, "sums"), rtol=1e-9)


def test_protections_that_agree_on_nothing_guard_the_mean_too():
    protection = Double()
    mean = mean_of(known(), [protection])
    np.testing.assert_allclose(mean.state["mean"], naive_mean(known(), "mean"))


def test_sites_that_know_different_things_have_no_mean():
    first, *others = known()
    with pytest.raises(ValueError, match="Expected"):
        mean_of([replace(first, state={"mean": np.zeros(5)}), *others])


def test_two_processes_cannot_write_one_journal_and_any_may_read_it(tmp_path):
    journal = Journal(tmp_path)
    journal.log("start")
    code = (
        "import sys\nfrom scinfl.federation import Journal\njournal = Journal(sys.argv[1])\n"
        "assert [event['event'] for event in journal.events()] == ['start']\n"
        "try:\n    journal.log('intruder')\nexcept RuntimeError as error:\n    sys.exit(str(error))\n"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "Expected no other process to write the journal" in result.stderr
    Journal(tmp_path).log("end")  # the same process may have several
    assert [event["event"] for event in journal.events()] == ["start", "end"]
    del journal
    gc.collect()
    assert (
        subprocess.run(
            [sys.executable, "-c", code.replace("['start']", "['start', 'end']"), str(tmp_path)],
            capture_output=True,
            check=False,
        ).returncode
        == 0
    )


def test_a_folder_that_cannot_be_locked_is_refused(tmp_path, monkeypatch):
    def no_locks(*args):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("scinfl.federation._journal.fcntl.flock", no_locks)
    with pytest.raises(RuntimeError, match=r"can lock the journal .*No locks available.*local disk"):
        Journal(tmp_path).log("start")


def test_files_get_the_permissions_that_the_umask_leaves_without_changing_it(tmp_path, monkeypatch):
    monkeypatch.setattr("os.umask", lambda mask: pytest.fail("the umask belongs to the whole process"))
    write_atomically(tmp_path / "file", b"content")
    (tmp_path / "usual").write_bytes(b"content")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode
