"""Sums that the server adds up and cannot read."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.privacy.keys.test_key import SECRET, naive_hkdf

from scinfl._errors import RepeatRoundError
from scinfl.federation import FedAvg, Journal, Update, simulate
from scinfl.privacy import Key, KeyedSum, TamperedSumError
from scinfl.privacy.aggregation import Aggregator, FixedPoint
from scinfl.privacy.aggregation._linear_tag import PRIME, linear_tag


def naive_chacha20(key: bytes, n_bytes: int) -> bytes:
    """Key stream of RFC 8439 with zero counter and nonce."""

    def rotate(x, n):
        return ((x << n) | (x >> (32 - n))) & 0xFFFFFFFF

    def quarter(s, a, b, c, d):
        for x, y, z, n in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            s[x] = (s[x] + s[y]) & 0xFFFFFFFF
            s[z] = rotate(s[z] ^ s[x], n)

    stream = b""
    for counter in range(-(-n_bytes // 64)):
        start = [*struct.unpack("<4I", b"expand 32-byte k"), *struct.unpack("<8I", key), counter, 0, 0, 0]
        state = list(start)
        for _ in range(10):
            for columns in ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)):
                quarter(state, *columns)
            for diagonals in ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)):
                quarter(state, *diagonals)
        stream += struct.pack("<16I", *((a + b) & 0xFFFFFFFF for a, b in zip(state, start, strict=True)))
    return stream[:n_bytes]


SITES = {"a": 10, "b": 30, "c": 20}


def make_updates(n=50, rng=0, round=1, scale=1.0):
    generator = np.random.default_rng(rng)
    return [
        Update(
            site,
            round,
            {
                "w": (scale * generator.normal(size=(n, 3))).astype(np.float32),
                "b": generator.normal(size=n).astype(np.float64),
            },
            n_obs,
            float(n_obs),
            {"loss": generator.random(), "accuracy": generator.random()},
            key_version=1,
        )
        for site, n_obs in SITES.items()
    ]


def make_sum(key, **options):
    protection = KeyedSum(key, run="run", **options)
    protection.agree("training", {site: float(n) for site, n in SITES.items()})
    return protection


def without_arrays(encoded):
    return [replace(update, state={}) for update in encoded]


def pass_through(protection, updates, tamper=lambda encoded, combined, members: (combined, members)):
    encoded = [protection.encode(update) for update in updates]
    combined = protection.combine(encoded)
    combined, members = tamper(encoded, combined, without_arrays(encoded))
    return protection.decode(combined, members)


@pytest.mark.parametrize(("bits", "tolerance"), [(64, 1e-12), (32, 5e-8)])
def test_the_sum_is_the_weighted_mean(key, bits, tolerance):
    updates = make_updates()
    mean, expected = pass_through(make_sum(key, bits=bits), updates), FedAvg().reduce(updates)
    for name, array in expected.state.items():
        assert mean.state[name].dtype == array.dtype
        np.testing.assert_allclose(mean.state[name], array, rtol=1e-7 if name == "w" else 0, atol=tolerance)
    assert mean.metrics == pytest.approx(expected.metrics, abs=1e-7)
    assert mean.weight == pytest.approx(60)


def test_a_lost_site_costs_nothing(key):
    protection, updates = make_sum(key, min_sites=2), make_updates()
    encoded = [protection.encode(update) for update in updates[:2]]
    mean = protection.decode(protection.combine(encoded), without_arrays(encoded))
    np.testing.assert_allclose(mean.state["b"], FedAvg().reduce(updates[:2]).state["b"], atol=1e-12)


def naive_digest(label, content):
    parts = [label.encode(), json.dumps(content, sort_keys=True, separators=(",", ":")).encode()]
    return hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).digest()


def test_known_answer_of_the_key_stream_and_the_tag():
    protection = KeyedSum(Key(SECRET, federation="lung", version=3), run="r1")
    upload = make_updates(round=7)[0]
    protection.learn(upload)
    nonce = bytes(range(16))
    context = protection._context_of(upload).digest
    stream, mask = protection._stream(context, upload, "a", nonce, 20, np.dtype(np.uint64))
    run = {"federation": "lung", "key_version": 3, "run": "r1", "job_digest": "", "facts_digest": ""}
    run = naive_digest("scinfl run context", {**run, "identities_digest": "", "protocol": 3})
    own = {"purpose": "training", "round": 7, "bound_log2": 16, "bits": 64, "n_values": 203}
    step = {"run": run.hex(), "step": 0, "attempt": 0, "sums": [own], "advertisements": "", "history": ""}
    assert context == naive_digest("scinfl step context", step)
    labels = [context.hex(), "training", "a", nonce.hex()]
    derived = naive_hkdf(SECRET, ["scinfl stream", "lung", "3", "keyed sum", *labels])
    assert stream.tobytes() == naive_chacha20(derived, 160)
    assert mask == int.from_bytes(naive_hkdf(SECRET, ["scinfl", "lung", "3", "keyed sum tag", *labels]), "big") % PRIME


def test_the_naive_cipher_is_that_of_the_standard():
    # RFC 8439, appendix A.1, test vector 1
    assert naive_chacha20(bytes(32), 16).hex() == "76b8e0ada0f13d90405d6ae55386bd28"


@pytest.mark.parametrize("dtype", ["u8", "u4"])
def test_the_tag_is_the_projection_modulo_the_prime_and_linear(dtype):
    generator = np.random.default_rng(0)
    bits = 8 * int(dtype[1])
    coefficients = generator.integers(2**61, size=70_001, dtype="u8")
    vectors = [generator.integers(2**bits, size=70_001, dtype=dtype) // 8 for _ in range(3)]
    vectors[1] = (-vectors[1].view(f"i{dtype[1]}")).view(dtype)  # negative numbers
    tags = [linear_tag(vector, coefficients) for vector in vectors]
    naive = [
        sum(int(v) * int(r) for v, r in zip(vector.view(f"i{dtype[1]}"), coefficients, strict=True)) % PRIME
        for vector in vectors
    ]
    assert tags == naive
    assert linear_tag(sum(vectors), coefficients) == sum(tags) % PRIME


def test_fixed_point_is_close_and_never_clips():
    for bits, bound, step in ((64, 65536.0, 60), (32, 8.0, 31)):
        numbers = FixedPoint(bits, bound)
        values = np.array([-bound, -1.23456789, 0.0, 1e-9, 3.3, bound])
        np.testing.assert_allclose(numbers.decode(numbers.encode(values)), values, rtol=2e-16, atol=bound * 2.0**-step)
        total = numbers.encode(values, 0.25) + numbers.encode(values, 0.75)
        np.testing.assert_allclose(numbers.decode(total), values, rtol=4e-16, atol=bound * 2.0 ** (1 - step))
        for bad in (bound * 1.01, -bound * 1.01, np.nan, np.inf):
            with pytest.raises(RepeatRoundError):
                numbers.encode(np.array([0.0, bad]))


def test_what_is_sent_looks_random_and_differs_each_time(key):
    protection, update = make_sum(key), make_updates(2000)[0]
    first, second = protection.encode(update).state["masked"], protection.encode(update).state["masked"]
    assert first.dtype == np.uint64
    assert not np.any(first == second)
    bits = np.unpackbits(first.view(np.uint8))
    assert abs(bits.mean() - 0.5) < 0.005
    assert abs(np.corrcoef(bits[::2], bits[1::2])[0, 1]) < 0.01
    plain = update.state["w"].tobytes()
    assert plain[:8] not in first.tobytes()


def test_one_flipped_bit_of_the_key_gives_an_unrelated_stream():
    flipped = bytes([SECRET[0] ^ 1]) + SECRET[1:]
    update = make_updates()[0]
    streams = [
        KeyedSum(Key(secret, federation="lung"), run="r")._stream(
            bytes(32), update, "a", bytes(16), 4000, np.dtype(np.uint64)
        )[0]
        for secret in (SECRET, flipped)
    ]
    bits = [np.unpackbits(stream.view(np.uint8)) for stream in streams]
    assert abs((bits[0] == bits[1]).mean() - 0.5) < 0.005


def test_purpose_run_round_site_and_nonce_separate_streams(key):
    update = make_updates()[0]

    def stream(run="r", site="a", nonce=bytes(16), **change):
        protection, changed = KeyedSum(key, run=run), replace(update, **change)
        protection.learn(changed)
        context = protection._context_of(changed).digest
        return protection._stream(context, changed, site, nonce, 8, np.dtype(np.uint64))[0].tobytes()

    variants = [
        stream(),
        stream(run="s"),
        stream(site="b"),
        stream(nonce=b"\x01" + bytes(15)),
        stream(purpose="evaluation"),
        stream(round=2),
    ]
    assert len(set(variants)) == len(variants)


def test_the_server_sees_masked_integers_and_public_headers_only(key):
    protection = make_sum(key)
    for update in make_updates():
        sent = protection.encode(update)
        assert set(sent.state) == {"masked"}
        assert (sent.n_obs, sent.weight, dict(sent.metrics)) == (0, 0.0, {})
        assert set(sent.header) == {"nonce", "tag", "bound", "attempt", "context", "signature"}
    server = Aggregator(protection._public())
    assert not any(isinstance(value, Key | KeyedSum) for value in vars(server).values())


def change_sum(encoded, combined, members):
    masked = combined.state["masked"].copy()
    masked[3] += masked.dtype.type(1)
    return replace(combined, state={"masked": masked}), members


def change_tag(encoded, combined, members):
    return replace(combined, header={**combined.header, "tag": (12345).to_bytes(8, "big")}), members


def drop_term_but_list_it(encoded, combined, members):
    return replace(combined, state={"masked": encoded[0].state["masked"] + encoded[1].state["masked"]}), members


def drop_term(encoded, combined, members):
    masked = encoded[0].state["masked"] + encoded[1].state["masked"]
    return replace(combined, state={"masked": masked}), members[:2]


def repeat_term(encoded, combined, members):
    return replace(combined, state={"masked": combined.state["masked"] + encoded[0].state["masked"]}), members


def repeat_term_and_list_it(encoded, combined, members):
    return repeat_term(encoded, combined, [*members, members[0]])


def invent_term(encoded, combined, members):
    masked = combined.state["masked"]
    noise = np.random.default_rng(0).integers(2**31, size=len(masked)).astype(masked.dtype)
    ghost = replace(members[0], site="ghost", header={**members[0].header, "nonce": bytes(16)})
    return replace(combined, state={"masked": combined.state["masked"] + noise}), [*members, ghost]


def add_plain_number(encoded, combined, members):
    return replace(
        combined, state={"masked": combined.state["masked"] * combined.state["masked"].dtype.type(2)}
    ), members


def swap_names(encoded, combined, members):
    return combined, [replace(members[0], site="b"), replace(members[1], site="a"), members[2]]


def another_round(encoded, combined, members):
    return replace(combined, round=2), members


TAMPER = [
    change_sum,
    change_tag,
    drop_term_but_list_it,
    drop_term,
    repeat_term,
    repeat_term_and_list_it,
    invent_term,
    add_plain_number,
    swap_names,
    another_round,
]


@pytest.mark.parametrize("tamper", TAMPER, ids=lambda tamper: tamper.__name__)
@pytest.mark.parametrize("bits", [64, 32])
def test_a_server_that_changes_a_sum_is_noticed(key, tamper, bits):
    protection = make_sum(key, bits=bits, min_sites=2)
    with pytest.raises(TamperedSumError), np.errstate(over="ignore"):
        pass_through(protection, make_updates(), tamper)


def test_old_uploads_are_not_summed_again(key):
    protection = make_sum(key)
    updates = make_updates()
    encoded = [protection.encode(update) for update in updates]
    combined = protection.combine(encoded)
    protection.decode(combined, without_arrays(encoded))
    with pytest.raises(TamperedSumError, match="old upload of site a"):
        protection.decode(combined, without_arrays(encoded))


def test_a_sum_of_few_sites_is_refused(key):
    protection = make_sum(key)
    encoded = [protection.encode(update) for update in make_updates()[:2]]
    with pytest.raises(TamperedSumError, match="at least 3 sites in a keyed sum, found 2"):
        protection.decode(protection.combine(encoded), without_arrays(encoded))
    with pytest.raises(ValueError, match="at least 3 sites"):
        KeyedSum(key).agree("training", {"a": 1.0, "b": 2.0})


def test_the_server_refuses_uploads_that_their_site_did_not_sign(key):
    protection = make_sum(key)
    encoded = [protection.encode(update) for update in make_updates()]
    server = Aggregator(protection._public())
    changed = encoded[0].state["masked"].copy()
    changed[0] += np.uint64(1)
    for forged in (
        replace(encoded[0], state={"masked": changed}),
        replace(encoded[0], site="b"),
        replace(encoded[0], round=2),
        replace(encoded[0], purpose="evaluation"),
        replace(encoded[0], site="ghost"),
        replace(encoded[0], header={**encoded[0].header, "tag": bytes(8)}),
    ):
        with pytest.raises(TamperedSumError, match="did not"):
            server.combine([forged, *encoded[1:]])
    stranger = KeyedSum(key, run="run", identities={site: Ed25519PrivateKey.generate() for site in SITES})
    stranger._totals = protection._totals
    with pytest.raises(TamperedSumError, match="site 'a'"):
        server.combine([stranger.encode(make_updates()[0]), *encoded[1:]])


def test_updates_that_do_not_fit_together_are_refused(key):
    protection = make_sum(key)
    encoded = [protection.encode(update) for update in make_updates()]
    other = make_sum(key)
    other._identities = protection._identities
    short = other.encode(make_updates(7)[1])
    with pytest.raises(ValueError, match=r"integers .* from site 'b'"):
        protection.combine([encoded[0], short, encoded[2]])
    rotated = make_sum(Key(key._secret, federation=key.federation, version=2))
    rotated._identities = protection._identities
    with pytest.raises(ValueError, match="current key"):
        protection.combine([encoded[0], rotated.encode(make_updates()[1]), encoded[2]])
    with pytest.raises(ValueError, match="at least one"):
        protection.combine([])
    with pytest.raises(RuntimeError, match="agree"):
        KeyedSum(key).encode(make_updates()[0])
    bad = make_updates()[0]
    bad.state["w"][0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity at site 'a'"):
        protection.encode(bad)
    with pytest.raises(KeyError, match="identity key of site 'a'"):
        KeyedSum(key, identities={}).agree("training", dict.fromkeys("abc", 1.0))


@pytest.mark.parametrize("arguments", [{"bits": 16}, {"bound": 3.0}, {"bound": -2.0}, {"min_sites": 1}], ids=str)
def test_bad_settings_are_refused(key, arguments):
    with pytest.raises(ValueError, match="Expected"):
        KeyedSum(key, **arguments)


def test_a_number_beyond_the_bound_widens_it_and_repeats_the_round(key):
    protection = make_sum(key, bits=32)
    updates = make_updates(scale=20.0)
    for _ in range(5):
        try:
            mean = pass_through(protection, updates)
            break
        except RepeatRoundError:
            continue
    assert protection._numbers_of("training").bound in (32.0, 128.0)
    assert protection._numbers_of("evaluation").bound == 8.0  # other purposes keep their precision
    np.testing.assert_allclose(mean.state["w"], FedAvg().reduce(updates).state["w"], atol=1e-6)
    huge = replace(updates[0], state={"w": np.full((50, 3), 1e30), "b": np.zeros(50)})
    for _ in range(30):
        with suppress(RepeatRoundError, ValueError):
            protection.encode(huge)
    with pytest.raises(ValueError, match="training diverged"):
        protection.encode(huge)


def test_it_holds_the_key_and_so_is_neither_shown_nor_copied(key):
    protection = make_sum(key)
    assert repr(protection) == "KeyedSum(bits=64, min_sites=3)"
    with pytest.raises(TypeError, match="holds the key"):
        pickle.dumps(protection)


@pytest.mark.parametrize("bits", [64, 32])
def test_a_run_under_keyed_sums_is_the_plain_run(key, toy_sites, bits, tmp_path):
    start = {"w": np.zeros(4)}
    plain = simulate(toy_sites, start, FedAvg(), n_rounds=4, progress=False)
    journal = Journal(tmp_path)
    hidden = simulate(
        toy_sites, start, FedAvg(), [KeyedSum(key, bits=bits, bound=4.0)], n_rounds=4, progress=False, journal=journal
    )
    np.testing.assert_allclose(hidden.state["w"], plain.state["w"], atol=1e-7)
    assert hidden.history[-1]["validation_loss"] == pytest.approx(plain.history[-1]["validation_loss"], abs=1e-6)
    nonces = [
        sent["header"]["nonce"] for event in journal.events() if event["event"] == "round" for sent in event["sent"]
    ]
    assert len(nonces) == len(set(nonces)) == 12
    with pytest.raises(ValueError, match="at least 3 sites in a round, as the protections ask for, found 2"):
        simulate(toy_sites, start, FedAvg(), [KeyedSum(key)], n_rounds=1, fraction=0.5, progress=False)
