"""Sums under homomorphic encryption."""

from __future__ import annotations

import pickle
import sys
from dataclasses import replace

import numpy as np
import pytest
from tests.privacy.aggregation.test_keyed_sum import SITES, make_updates, without_arrays

from scinfl.federation import FedAvg, mean_of, simulate
from scinfl.privacy import Key, KeyedSum, TamperedSumError
from scinfl.privacy.aggregation import HomomorphicServer, HomomorphicSum

tenseal = pytest.importorskip("tenseal")

WEIGHTS = {site: float(n) for site, n in SITES.items()}
FORMS = [{}, {"modulus_bits": (60, 40, 40, 60), "encryption": "asymmetric"}]


def make_sum(**options):
    protection = HomomorphicSum(**options)
    protection.agree("training", WEIGHTS)
    return protection


@pytest.mark.parametrize("options", FORMS, ids=["smallest", "common"])
def test_the_sum_is_the_weighted_mean(options):
    updates = make_updates(3000)  # three ciphertexts a site
    protection = make_sum(**options)
    encoded = [protection.encode(update) for update in updates]
    assert len(encoded[0].state["sizes"]) == 3
    mean = protection.decode(protection.combine(encoded), without_arrays(encoded))
    expected = FedAvg().reduce(updates)
    for name, array in expected.state.items():
        assert mean.state[name].dtype == array.dtype
        np.testing.assert_allclose(mean.state[name], array, atol=3e-7)
    np.testing.assert_allclose(mean.state["b"], expected.state["b"], atol=1e-7)
    assert mean.metrics == pytest.approx(expected.metrics, abs=1e-7)
    assert mean.weight == pytest.approx(60, abs=1e-4)


def test_a_run_under_homomorphic_sums_is_the_plain_run(toy_sites):
    start = {"w": np.zeros(4)}
    plain = simulate(toy_sites, start, FedAvg(), n_rounds=2, progress=False)
    hidden = simulate(toy_sites, start, FedAvg(), [HomomorphicSum()], n_rounds=2, progress=False)
    np.testing.assert_allclose(hidden.state["w"], plain.state["w"], atol=1e-6)
    assert hidden.history[-1]["bytes_sent"] > 3 * 100_000
    assert hidden.history[-1]["validation_loss"] == pytest.approx(plain.history[-1]["validation_loss"], abs=1e-6)


@pytest.mark.parametrize("options", FORMS, ids=["smallest", "common"])
def test_the_server_holds_no_secret_and_reads_nothing(options):
    protection = make_sum(**options)
    server = HomomorphicServer(protection.server_context())
    assert not server._context.has_secret_key()
    assert server._context.is_public()
    held = tenseal.context_from(server._context.serialize())
    assert not held.has_secret_key()
    encoded = [protection.encode(update) for update in make_updates()]
    combined = server.combine(encoded)
    content = combined.state["ciphertexts"].tobytes()
    with pytest.raises(ValueError, match="secret_key"):
        tenseal.ckks_vector_from(server._context, content).decrypt()
    with_secret = protection._serialised(secret=True)
    assert len(with_secret) > len(protection.server_context()) + 8192
    with pytest.raises(ValueError, match="without secret key at the server"):
        HomomorphicServer(with_secret)


def test_what_is_sent_hides_the_numbers_and_differs_each_time():
    protection, update = make_sum(), make_updates()[0]
    first, second = protection.encode(update), protection.encode(update)
    assert set(first.state) == {"ciphertexts", "sizes"}
    assert (first.n_obs, first.weight, dict(first.metrics), dict(first.header)) == (0, 0.0, {}, {})
    content = first.state["ciphertexts"]
    assert content.tobytes() != second.state["ciphertexts"].tobytes()
    assert update.state["b"].tobytes()[:8] not in content.tobytes()


@pytest.mark.parametrize("options", FORMS, ids=["smallest", "common"])
def test_bytes_are_told_before_anything_is_sent(options):
    protection, update = make_sum(**options), make_updates(3000)[0]
    n_values = 3000 * 4 + 1 + 2
    assert protection.bytes_of(n_values) == pytest.approx(protection.encode(update).n_bytes, rel=0.01)
    assert protection.bytes_of(4097) == pytest.approx(2 * protection.bytes_of(4096), rel=0.01)


def test_other_sites_get_the_keys_sealed(key):
    first = HomomorphicSum(modulus_bits=(60, 40, 60))
    sealed = first.sealed_context(key)
    second = HomomorphicSum.from_sealed(sealed, key)
    server, at = HomomorphicServer(second.server_context()), {"a": first, "b": second, "c": second}
    sent = [at[site].encode_weight("training", site, weight) for site, weight in WEIGHTS.items()]
    combined = server.combine(sent)
    totals = [protection.decode_weights("training", combined, without_arrays(sent)) for protection in (first, second)]
    assert totals[0] == totals[1] == pytest.approx(60, abs=0.1)
    updates = make_updates()
    encoded = [at[update.site].encode(update) for update in updates]
    combined = server.combine(encoded)
    for protection in (first, second):
        mean = protection.decode(combined, without_arrays(encoded))
        np.testing.assert_allclose(mean.state["b"], FedAvg().reduce(updates).state["b"], atol=1e-6)
    assert second.sealed_context(key) != sealed
    with pytest.raises(ValueError, match="key fingerprint"):
        HomomorphicSum.from_sealed(sealed, Key.generate(key.federation))
    with pytest.raises(ValueError, match="changed or damaged"):
        HomomorphicSum.from_sealed(sealed[:-1] + bytes([sealed[-1] ^ 1]), key)


def test_large_numbers_are_refused_and_never_wrap():
    protection, update = make_sum(), make_updates()[0]
    large = replace(update, state={"w": np.array([2.0**18]), "b": np.zeros(3)})
    encoded = [protection.encode(replace(large, site=site, weight=n)) for site, n in WEIGHTS.items()]
    mean = protection.decode(protection.combine(encoded), without_arrays(encoded))
    assert mean.state["w"][0] == pytest.approx(2.0**18, rel=1e-7)
    with pytest.raises(ValueError, match="up to 262144 for a homomorphic sum, found larger ones at site 'a'"):
        protection.encode(replace(large, state={"w": np.array([-(2.0**18) * 1.001])}))
    make_sum(modulus_bits=(60, 40, 60)).encode(replace(large, state={"w": np.array([1e15])}))
    with pytest.raises(ValueError, match="NaN or infinity at site 'a'"):
        protection.encode(replace(large, state={"w": np.array([np.nan])}))


def test_sums_of_few_or_empty_sites_are_refused():
    with pytest.raises(ValueError, match="at least 3 sites in a homomorphic sum, found 2"):
        HomomorphicSum().agree("training", {"a": 1.0, "b": 2.0})
    protection = make_sum()
    encoded = [protection.encode(update) for update in make_updates()]
    combined = protection.combine(encoded)
    for members in (without_arrays(encoded[:2]), without_arrays([*encoded[:2], encoded[0]])):
        with pytest.raises(TamperedSumError, match="found 2"):
            protection.decode(combined, members)
    empty = [protection.encode(replace(update, weight=0.0)) for update in make_updates()]
    with pytest.raises(ValueError, match="every site of the round is empty"):
        protection.decode(protection.combine(empty), without_arrays(empty))


def test_uploads_that_do_not_fit_or_are_damaged_are_refused():
    protection = make_sum()
    encoded = [protection.encode(update) for update in make_updates()]
    longer = protection.encode(make_updates(3000)[1])
    with pytest.raises(ValueError, match=r"1 ciphertexts of round 1 .* found 3 .* from site 'b'"):
        protection.combine([encoded[0], longer, encoded[2]])
    with pytest.raises(ValueError, match="found 1 of round 2"):
        protection.combine([encoded[0], replace(encoded[1], round=2), encoded[2]])
    with pytest.raises(ValueError, match="at least one"):
        protection.combine([])
    damaged = {**encoded[1].state, "ciphertexts": encoded[1].state["ciphertexts"][1000:]}
    with pytest.raises(TamperedSumError, match="ciphertexts from site 'b'"):
        protection.combine([encoded[0], replace(encoded[1], state=damaged), encoded[2]])
    foreign = make_sum(modulus_bits=(60, 40, 60)).encode(make_updates()[1])
    with pytest.raises(TamperedSumError, match="ciphertexts from site 'b'"):
        protection.combine([encoded[0], foreign, encoded[2]])


@pytest.mark.parametrize(
    "options",
    [
        {"modulus_bits": (60,)},
        {"modulus_bits": (40, 60)},
        {"modulus_bits": (60, 61)},
        {"modulus_bits": (60, 60, 60, 60)},
        {"encryption": "none"},
        {"min_sites": 1},
    ],
    ids=str,
)
def test_bad_settings_are_refused(options):
    with pytest.raises(ValueError, match="Expected `"):
        HomomorphicSum(**options)


def test_it_does_not_combine_with_another_sum(key):
    with pytest.raises(ValueError, match="KeyedSum and HomomorphicSum"):
        mean_of(make_updates(), [KeyedSum(key), HomomorphicSum()])


def test_it_is_neither_shown_nor_copied():
    protection = HomomorphicSum()
    assert repr(protection) == "HomomorphicSum(min_sites=3, modulus_bits=(60, 60))"
    with pytest.raises(TypeError, match="secret key"):
        pickle.dumps(protection)


def test_the_error_without_tenseal_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tenseal", None)
    with pytest.raises(ImportError, match=r"pip install 'tenseal>="):
        HomomorphicSum()
