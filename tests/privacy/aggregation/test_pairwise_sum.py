"""Sums that hide a site from fellow sites that help the server."""

from __future__ import annotations

import hashlib
import hmac
import pickle
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from tests.privacy.aggregation.test_keyed_sum import SITES, make_updates, naive_chacha20, without_arrays
from tests.privacy.keys.test_key import SECRET

from scinfl._errors import RepeatRoundError
from scinfl.federation import FedAvg, Protection, mean_of, simulate
from scinfl.privacy import Key, KeyedSum, PairwiseSum, TamperedSumError
from scinfl.privacy.aggregation import FixedPoint, PairwiseServer
from scinfl.privacy.aggregation._linear_tag import PRIME, linear_tag
from scinfl.privacy.aggregation._pairwise_participant import PairwiseParticipant, masks
from scinfl.privacy.keys._identity import Identity

WEIGHTS = {site: float(n) for site, n in SITES.items()}
PLACE = ("training", 1)


def make_sum(key=None, **options):
    protection = PairwiseSum(key, run="run", **options)
    protection.agree("training", WEIGHTS)
    protection.exchange(*PLACE, list(SITES))
    return protection


def send(protection, updates):
    return [protection.encode(update) for update in updates]


def receive(protection, encoded):
    return protection.decode(protection.combine(encoded), without_arrays(encoded))


@pytest.fixture(params=[True, False], ids=["keyed", "alone"])
def maybe_key(request, key):
    return key if request.param else None


def plain_integers(update, bits=64):
    """What a site hides: its share of parameters, of one and of metrics."""
    share = update.weight / sum(WEIGHTS.values())
    parts = [update.state["b"].ravel(), update.state["w"].ravel(), [1.0]]
    contents = np.concatenate([*parts, [update.metrics[name] for name in sorted(update.metrics)]], dtype=np.float64)
    return FixedPoint(bits, 65536.0 if bits == 64 else 8.0).encode(contents, share)


def naive_hkdf(secret: bytes, labels: list[str | bytes]) -> bytes:
    """RFC 5869 with SHA-256 and no salt, one block."""
    parts = [label if isinstance(label, bytes) else label.encode() for label in labels]
    info = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    extracted = hmac.new(bytes(32), secret, hashlib.sha256).digest()
    return hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()


# ---- what comes out


@pytest.mark.parametrize(("bits", "tolerance"), [(64, 1e-12), (32, 5e-8)])
def test_the_sum_is_the_weighted_mean(maybe_key, bits, tolerance):
    updates, protection = make_updates(), make_sum(maybe_key, bits=bits)
    mean, expected = receive(protection, send(protection, updates)), FedAvg().reduce(updates)
    for name, array in expected.state.items():
        assert mean.state[name].dtype == array.dtype
        np.testing.assert_allclose(mean.state[name], array, rtol=1e-7 if name == "w" else 0, atol=tolerance)
    assert mean.metrics == pytest.approx(expected.metrics, abs=1e-7)
    assert mean.weight == pytest.approx(60)


def test_the_sum_is_the_same_to_the_last_bit_whatever_the_masks(key):
    updates, means = make_updates(), []
    for protection in (make_sum(), make_sum(), make_sum(key), make_sum(Key.generate()), KeyedSum(key)):
        if isinstance(protection, KeyedSum):
            protection.agree("training", WEIGHTS)
        means.append(receive(protection, send(protection, updates)))
    for mean in means[1:]:
        for name, array in means[0].state.items():
            assert mean.state[name].tobytes() == array.tobytes()
        assert (mean.metrics, mean.weight) == (means[0].metrics, means[0].weight)


@pytest.mark.parametrize("bits", [64, 32])
def test_a_run_under_pairwise_sums_is_the_plain_run(maybe_key, toy_sites, bits):
    start = {"w": np.zeros(4)}
    plain = simulate(toy_sites, start, FedAvg(), n_rounds=4, progress=False)
    protection = PairwiseSum(maybe_key, bits=bits, bound=4.0)  # the targets exceed it: rounds are repeated
    for _ in range(2):  # and a second run may follow
        hidden = simulate(toy_sites, start, FedAvg(), [protection], n_rounds=4, progress=False)
        np.testing.assert_allclose(hidden.state["w"], plain.state["w"], atol=1e-7)
        assert hidden.history[-1]["validation_loss"] == pytest.approx(plain.history[-1]["validation_loss"], abs=1e-6)


def test_only_the_sites_of_a_round_exchange(toy_sites):
    sites = [*toy_sites, type(toy_sites[0])("d", 3.0, 5)]
    start = {"w": np.zeros(2)}
    runs = [
        simulate(sites, start, FedAvg(), protections, n_rounds=3, fraction=0.75, progress=False)
        for protections in ([], [PairwiseSum()])
    ]
    np.testing.assert_allclose(runs[1].state["w"], runs[0].state["w"], atol=1e-9)


def test_a_number_beyond_the_bound_repeats_the_round_under_fresh_masks(maybe_key, monkeypatch):
    protection, sent = PairwiseSum(maybe_key, bits=32), []
    mask = PairwiseParticipant.mask
    monkeypatch.setattr(
        PairwiseParticipant,
        "mask",
        lambda self, *arguments, **named: sent.append(result := mask(self, *arguments, **named)) or result,
    )
    updates = [*make_updates()[:2], make_updates(scale=20.0)[2]]  # the last site alone exceeds it
    mean = mean_of(updates, [protection])
    np.testing.assert_allclose(mean.state["w"], FedAvg().reduce(updates).state["w"], atol=1e-6)
    assert protection._relayed[PLACE][0].attempt > 1
    digests = {header["exchange"] for _, _, header in sent}
    assert len(digests) >= 3  # of the weights and of each attempt


# ---- what is hidden from whom


def open_with_key(sent, protection, key, bits=64):
    """What a site that has the key takes off an upload."""
    keyed = protection if isinstance(protection, KeyedSum) else protection._keyed
    masked, context = sent.state["masked"], sent.header["context"]
    stream, tag_mask = keyed._stream(context, sent, sent.site, sent.header["nonce"], len(masked), masked.dtype)
    coefficients = np.frombuffer(
        key.stream("keyed sum projection", context.hex(), "training", n_bytes=8 * len(masked)), "<u8"
    )
    return masked - stream, (int.from_bytes(sent.header["tag"], "big") - tag_mask) % PRIME, coefficients >> np.uint64(3)


def spied_secrets(monkeypatch):
    """Secrets of all pairs, as the sites of a test derive them."""
    secrets = {}
    derived = PairwiseParticipant._secrets

    def spy(self, exchange, *arguments):
        others = [ad.site for ad in exchange.peers if ad.site != exchange.own.site]
        for other, (added, secret) in zip(others, derived(self, exchange, *arguments), strict=True):
            secrets[exchange.own.site, other] = (added, secret)
            yield added, secret

    monkeypatch.setattr(PairwiseParticipant, "_secrets", spy)
    return secrets


def test_a_site_that_helps_the_server_opens_a_keyed_sum_and_no_pairwise_sum(key, monkeypatch):
    updates = make_updates(2000)
    truth = plain_integers(updates[0])
    keyed = KeyedSum(key, run="run")
    keyed.agree("training", WEIGHTS)
    opened, tag, coefficients = open_with_key(keyed.encode(updates[0]), keyed, key)
    np.testing.assert_array_equal(opened, truth)
    assert tag == linear_tag(truth, coefficients)

    # site b knows the key, all messages, the seeds that were revealed, and its own secrets
    secrets, seeds = spied_secrets(monkeypatch), {}
    reveal = PairwiseParticipant.reveal
    monkeypatch.setattr(
        PairwiseParticipant,
        "reveal",
        lambda self, *arguments: seeds.setdefault(self._identity.site, reveal(self, *arguments)),
    )
    protection = make_sum(key)
    encoded = send(protection, updates)
    seeds.clear()
    receive(protection, encoded)
    opened, tag, coefficients = open_with_key(encoded[0], protection, key)
    added, secret = secrets["b", "a"]
    assert secret == secrets["a", "b"][1]
    assert added is False
    for taken in (masks(seeds["a"], len(opened), opened.dtype), masks(secret, len(opened), opened.dtype)):
        opened, tag = opened - taken[0], (tag - taken[1]) % PRIME
    bits = np.unpackbits((opened - truth).view(np.uint8))
    assert abs(bits.mean() - 0.5) < 0.005
    signed = opened.view(np.int64).astype(float), truth.view(np.int64).astype(float)
    assert abs(np.corrcoef(*signed)[0, 1]) < 0.05
    assert tag != linear_tag(truth, coefficients)

    # the secret of a and c, which neither b nor the server has, is all that is missing
    stream, tag_mask = masks(secrets["c", "a"][1], len(opened), opened.dtype)
    np.testing.assert_array_equal(opened - stream, truth)
    assert (tag - tag_mask) % PRIME == linear_tag(truth, coefficients)


def test_weights_are_hidden_from_a_site_that_helps_the_server(key, monkeypatch):
    sent = []
    combine = PairwiseServer.combine
    monkeypatch.setattr(PairwiseServer, "combine", lambda self, encoded: sent.extend(encoded) or combine(self, encoded))
    protection = PairwiseSum(key, run="run")
    assert protection.agree("training", WEIGHTS) == pytest.approx(60)
    keyed = KeyedSum(key, run="run")
    for upload, weight in zip(sent, WEIGHTS.values(), strict=True):
        stream, _ = keyed._stream(
            upload.header["context"], upload, upload.site, upload.header["nonce"], 1, np.dtype(np.uint64)
        )
        found = FixedPoint(64, 2.0**40).decode(upload.state["masked"] - stream)[0]
        assert found != pytest.approx(weight, abs=1)


def test_the_server_reads_the_sum_of_pairwise_masks_alone_and_nothing_with_the_key(key):
    updates = make_updates(2000)
    truth = sum(plain_integers(update) for update in updates)
    for secret in (None, key):
        protection = make_sum(secret)
        encoded = send(protection, updates)
        combined = protection.combine(encoded).state["masked"]
        assert np.array_equal(combined, truth) is (secret is None)
        for shown in [combined] * (secret is not None) + [update.state["masked"] for update in encoded]:
            bits = np.unpackbits((shown - truth).view(np.uint8))
            assert abs(bits.mean() - 0.5) < 0.005
            assert abs(np.corrcoef(shown.view(np.int64), truth.view(np.int64))[0, 1]) < 0.05


def test_uploads_show_public_headers_only_and_differ_each_time(maybe_key):
    first, update = make_sum(maybe_key), make_updates(2000)[0]
    sent = first.encode(update)
    assert set(sent.state) == {"masked"}
    assert (sent.n_obs, sent.weight, dict(sent.metrics)) == (0, 0.0, {})
    expected = {"bound", "attempt", "context", "exchange", "commitment", "signature"} | (
        {"nonce", "tag"} if maybe_key else set()
    )
    assert set(sent.header) == expected
    first.exchange(*PLACE, list(SITES))
    assert not np.any(first.encode(update).state["masked"] == sent.state["masked"])


@pytest.mark.parametrize("bits", [64, 32])
def test_bytes_are_told_before_anything_is_sent(maybe_key, bits):
    protection, update = make_sum(maybe_key, bits=bits), make_updates()[0]
    assert protection.bytes_of(50 * 4 + 1 + 2) == protection.encode(update).n_bytes
    protection.exchange("total of x", 0, list(SITES))
    assert protection.bytes_of(1) == protection.encode_weight("x", "a", 1.0).state["masked"].nbytes


def test_known_answer_of_the_masks(monkeypatch):
    drawn = iter([X25519PrivateKey.from_private_bytes(bytes([i]) * 32) for i in (1, 2, 3)])
    monkeypatch.setattr(X25519PrivateKey, "generate", lambda: next(drawn))
    monkeypatch.setattr("scinfl.privacy.aggregation._pairwise_participant.os.urandom", lambda n: SECRET)
    identities = {
        site: Identity(
            site, *(kind.from_private_bytes(bytes([i]) * 32) for kind in (Ed25519PrivateKey, X25519PrivateKey))
        )
        for i, site in enumerate("abc", 10)
    }
    pinned = {site: identity.public for site, identity in identities.items()}
    sites = [PairwiseParticipant(identity, pinned, run="r") for identity in identities.values()]
    ads = [site.advertise("training", 7) for site in sites]
    for site in sites:
        site.receive(ads)
    integers = np.arange(5, dtype=np.uint64)
    context = bytes(range(32))
    masked, tag, header = sites[1].mask("training", 7, integers, 100, context=context)

    def mask(secret):
        stream = naive_chacha20(naive_hkdf(secret, ["scinfl mask"]), 40)
        tag_mask = int.from_bytes(naive_hkdf(secret, ["scinfl mask of the tag"]), "big") % PRIME
        return np.frombuffer(stream, "<u8"), tag_mask

    content = [b"".join(len(p).to_bytes(4, "big") + p for p in (ad.content(),)) for ad in ads]
    assert header["exchange"] == hashlib.sha256(b"".join(content)).digest()
    own = X25519PrivateKey.from_private_bytes(bytes([2]) * 32)
    shared = [own.exchange(X25519PublicKey.from_public_bytes(ads[i].public)) for i in (0, 2)]
    with_a = mask(naive_hkdf(shared[0], ["scinfl pairwise mask", context, "training", "a", "b"]))
    with_c = mask(naive_hkdf(shared[1], ["scinfl pairwise mask", context, "training", "b", "c"]))
    self_mask = mask(naive_hkdf(SECRET, ["scinfl self mask", context, "training"]))
    np.testing.assert_array_equal(masked, integers - with_a[0] + with_c[0] + self_mask[0])
    assert tag == (100 - with_a[1] + with_c[1] + self_mask[1]) % PRIME


# ---- lost sites


def test_a_lost_site_voids_the_round_and_the_others_send_it_again(maybe_key):
    updates = [*make_updates(), replace(make_updates(rng=5)[0], site="d")]
    protection = PairwiseSum(maybe_key)
    protection.agree("training", {update.site: update.weight for update in updates})
    protection.exchange(*PLACE, list("abcd"))
    encoded = send(protection, updates)
    with pytest.raises(RepeatRoundError, match="Site b is lost"):
        protection.combine([encoded[0], *encoded[2:]])
    survivors = [updates[0], *updates[2:]]
    protection.exchange(*PLACE, list("acd"))
    mean = receive(protection, send(protection, survivors))
    np.testing.assert_allclose(mean.state["b"], FedAvg().reduce(survivors).state["b"], atol=1e-12)


def test_two_survivors_are_too_few(maybe_key):
    protection = make_sum(maybe_key)
    send(protection, make_updates())
    with pytest.raises(ValueError, match="at least 3 sites in a pairwise sum, found 2"):
        protection.exchange(*PLACE, ["a", "b"])


def test_a_server_that_calls_a_site_lost_opens_one_of_the_two_sums_at_most():
    updates = [*make_updates(), replace(make_updates(rng=5)[0], site="d")]
    # it opens the full sum: then no site sends the round again
    protection = PairwiseSum()
    protection.agree("training", {update.site: update.weight for update in updates})
    protection.exchange(*PLACE, list("abcd"))
    protection.combine(send(protection, updates))
    for site in "abcd":
        with pytest.raises(TamperedSumError, match="opened already"):
            protection.site(site).advertise(*PLACE, 2)
    # it asks for the repetition first: then the seeds of the full sum are gone
    protection.exchange("training", 2, list("abcd"))
    send(protection, [replace(update, round=2) for update in updates])
    protection.exchange("training", 2, list("abc"))
    for site in "abc":
        with pytest.raises(TamperedSumError, match="without an upload of this site"):
            protection.site(site).reveal("training", 2, list("abcd"))


def test_seeds_are_revealed_once_and_for_the_sites_of_the_exchange_alone():
    protection = make_sum()
    site = protection.site("a")
    with pytest.raises(TamperedSumError, match="without an upload"):
        site.reveal(*PLACE, list(SITES))
    send(protection, make_updates())
    for sites in (["a", "b"], ["a", "b", "c", "c"], ["a", "b", "d"]):
        with pytest.raises(TamperedSumError, match="sum of the 3 sites that exchanged masks"):
            site.reveal(*PLACE, sites)
    assert len(site.reveal(*PLACE, list(SITES))) == 32
    with pytest.raises(TamperedSumError, match="opened before"):
        site.reveal(*PLACE, list(SITES))


# ---- a process a site, and those who stand between


class Network:
    """Three sites with a process each, and a server that relays."""

    def __init__(self, key=None, keys=None, **options):
        self.identities = {site: Identity.generate(site) for site in SITES}
        self.pinned = {site: identity.public for site, identity in self.identities.items()}
        self.sites = {
            site: PairwiseSum(
                (keys or {}).get(site, key), run="run", identities={site: identity}, pinned=self.pinned, **options
            )
            for site, identity in self.identities.items()
        }
        self.server = PairwiseServer(self.pinned)

    def advertise(self, purpose, round, attempt=1):
        return [protection.site(site).advertise(purpose, round, attempt) for site, protection in self.sites.items()]

    def sum(self, purpose, round, encode):
        ads = self.advertise(purpose, round)
        for protection in self.sites.values():
            protection.receive(ads)
        encoded = [encode(site, protection) for site, protection in self.sites.items()]
        self.server.require_all(encoded, ads)
        combined = self.server.combine(encoded)
        names = [update.site for update in encoded]
        seeds = {name: protection.site(name).reveal(purpose, round, names) for name, protection in self.sites.items()}
        return self.server.open(combined, encoded, seeds), without_arrays(encoded)


def test_sites_in_processes_of_their_own_come_to_the_mean(maybe_key):
    network = Network(maybe_key)
    combined, members = network.sum(
        "total of training", 0, lambda site, protection: protection.encode_weight("training", site, WEIGHTS[site])
    )
    for protection in network.sites.values():
        assert protection.decode_weights("training", combined, members) == pytest.approx(60)
    updates = {update.site: update for update in make_updates()}
    combined, members = network.sum(*PLACE, lambda site, protection: protection.encode(updates[site]))
    expected = FedAvg().reduce(list(updates.values()))
    for protection in network.sites.values():
        mean = protection.decode(combined, members)
        np.testing.assert_allclose(mean.state["b"], expected.state["b"], atol=1e-12)


def test_a_man_in_the_middle_who_holds_the_shared_key_is_refused(key):
    network = Network(key)
    ads = network.advertise(*PLACE)
    # the attacker knows the key and all that is public, and advertises under an identity in the name of site b
    mallory = PairwiseSum(key, run="run", identities={"b": Identity.generate("b")}, pinned=network.pinned)
    forged = mallory.site("b").advertise(*PLACE)
    with pytest.raises(TamperedSumError, match=r"site 'b' signed.*shared key is not enough.*by telephone"):
        network.sites["a"].receive([ads[0], forged, ads[2]])
    for change in ({"public": bytes(32)}, {"site": "c"}, {"round": 2}, {"signature": bytes(64)}):
        with pytest.raises(TamperedSumError, match=r"signed|two of one"):
            network.sites["a"].receive([ads[0], replace(ads[1], **change), ads[2]])
    network.sites["a"].receive(ads)


def test_old_advertisements_are_refused(key):
    network = Network(key)
    ads = network.advertise(*PLACE)
    old = {
        "round": network.sites["b"].site("b").advertise("training", 2),
        "purpose": network.sites["b"].site("b").advertise("evaluation", 1),
        "attempt": ads[1],
    }
    other = PairwiseSum(key, run="other", identities={"b": network.identities["b"]}, pinned=network.pinned)
    old["run"] = other.site("b").advertise(*PLACE, 2)
    ads = network.advertise(*PLACE, 2)
    for name, advertisement in old.items():
        with pytest.raises(TamperedSumError, match=f"one of {name} .* instead of"):
            network.sites["a"].receive([ads[0], advertisement, ads[2]])
    for attempt in (1, 2):
        with pytest.raises(TamperedSumError, match="which is at attempt 2"):
            network.sites["a"].site("a").advertise(*PLACE, attempt)


def test_a_list_that_was_changed_on_its_way_is_refused(key):
    network = Network(key)
    ads = network.advertise(*PLACE)
    site = network.sites["a"].site("a")
    with pytest.raises(TamperedSumError, match="with that of site 'a' as it was sent"):
        site.receive(ads[1:])
    with pytest.raises(TamperedSumError, match="found two of one"):
        site.receive([*ads, ads[1]])
    with pytest.raises(ValueError, match="at least 3 sites in a pairwise sum, found 2"):
        site.receive(ads[:2])
    with pytest.raises(TamperedSumError, match="of a site of this process"):
        network.sites["a"].receive(ads[1:])
    ghost = PairwiseSum(key, run="run", identities={"ghost": Identity.generate("ghost")})
    with pytest.raises(ValueError, match="pinned identity of site 'ghost', found none at site 'a'"):
        site.receive([*ads, ghost.site("ghost").advertise(*PLACE)])
    site.receive(ads)
    with pytest.raises(TamperedSumError, match="found a second one"):
        site.receive(ads)


def test_sites_with_another_key_are_refused_before_anything_is_masked(key):
    rotated = Key(key._secret, federation=key.federation, version=2)
    for other in (rotated, Key.generate(), None):
        network = Network(keys={"a": key, "b": other, "c": key})
        with pytest.raises(ValueError, match=r"site 'b' to mask with the shared key .* same version of the key"):
            network.sites["a"].receive(network.advertise(*PLACE))


def test_a_site_with_a_weak_public_key_is_refused():
    network = Network()
    ads = network.advertise(*PLACE)
    bare = replace(ads[1], public=bytes(32))
    weak = replace(bare, signature=network.identities["b"].sign(bare.content()))
    with pytest.raises(TamperedSumError, match="site 'b', found a weak one"):
        network.sites["a"].receive([ads[0], weak, ads[2]])


# ---- what the server and the sites refuse in a sum


def test_masks_are_used_once_and_never_without_an_exchange(maybe_key):
    protection, updates = make_sum(maybe_key), make_updates()
    protection.encode(updates[0])
    with pytest.raises(RuntimeError, match="found ones that were used"):
        protection.encode(updates[0])
    with pytest.raises(RuntimeError, match="for round 2 of 'training', found none"):
        protection.encode(replace(updates[0], round=2))
    protection.site("a").advertise("training", 3)
    with pytest.raises(RuntimeError, match="none that all sites exchanged"):
        protection.encode(replace(updates[0], round=3))


def test_the_server_refuses_uploads_that_their_site_did_not_sign_and_wrong_seeds(maybe_key):
    protection = make_sum(maybe_key)
    encoded = send(protection, make_updates())
    server = PairwiseServer(protection._public())
    changed = encoded[0].state["masked"].copy()
    changed[0] += np.uint64(1)
    for forged in (
        replace(encoded[0], state={"masked": changed}),
        replace(encoded[0], site="b"),
        replace(encoded[0], header={**encoded[0].header, "commitment": bytes(32)}),
        replace(encoded[0], header={**encoded[0].header, "exchange": bytes(32)}),
    ):
        with pytest.raises(TamperedSumError, match="did not"):
            server.combine([forged, *encoded[1:]])
    combined = server.combine(encoded)
    seeds = {site: protection.site(site).reveal(*PLACE, list(SITES)) for site in SITES}
    for wrong in ({**seeds, "b": bytes(32)}, {site: seeds[site] for site in "ac"}):
        with pytest.raises(TamperedSumError, match="seed that site 'b' committed to"):
            server.open(combined, encoded, wrong)


def test_uploads_that_were_not_masked_for_one_another_are_refused(key):
    protection, updates = make_sum(key), make_updates()
    old = protection.encode(updates[0])
    protection.exchange(*PLACE, list(SITES))
    encoded = send(protection, updates)
    with pytest.raises(ValueError, match="masked for one another, found one of site 'b'"):
        protection.combine([old, *encoded[1:]])
    keyed = KeyedSum(key, identities=protection._identities)
    keyed.agree("training", WEIGHTS)
    with pytest.raises(ValueError, match="masked for one another, found one of site 'a'"):
        protection.combine([*encoded[1:], keyed.encode(updates[0])])
    with pytest.raises(ValueError, match="at least one"):
        protection.combine([])


@pytest.mark.parametrize("change", ["sum", "tag", "members", "nonce", "exchange"])
def test_a_server_that_changes_a_sum_is_noticed_by_who_has_the_key(key, change):
    protection = make_sum(key)
    encoded = send(protection, make_updates())
    combined, members = protection.combine(encoded), without_arrays(encoded)
    if change == "sum":
        combined.state["masked"][3] += np.uint64(1)
    elif change == "tag":
        combined = replace(combined, header={**combined.header, "tag": bytes(8)})
    elif change == "members":
        members = [*members[:2], replace(members[2], site="d")]
    else:
        length = len(members[0].header[change])
        members[0] = replace(members[0], header={**members[0].header, change: bytes(length)})
    with pytest.raises(TamperedSumError):
        protection.decode(combined, members)


def test_sites_refuse_a_sum_of_other_sites_also_without_a_key():
    protection = make_sum()
    encoded = send(protection, make_updates())
    combined, members = protection.combine(encoded), without_arrays(encoded)
    with pytest.raises(TamperedSumError, match="at least 3 sites in a pairwise sum, found 2"):
        protection.decode(combined, members[:2])
    with pytest.raises(TamperedSumError, match="not in both: c, d"):
        protection.decode(combined, [*members[:2], replace(members[2], site="d")])
    odd = replace(members[0], header={**members[0].header, "exchange": bytes(32)})
    with pytest.raises(TamperedSumError, match="one exchange"):
        protection.decode(combined, [odd, *members[1:]])
    with pytest.raises(TamperedSumError, match=r"sites that believe the same.*differ in .*round"):
        protection.decode(replace(combined, round=2), members)
    with pytest.raises(TamperedSumError, match="sum of uint64, found uint32"):
        protection.decode(replace(combined, state={"masked": combined.state["masked"].astype("u4")}), members)


# ---- misuse


def test_two_sites_are_refused_with_the_reason(toy_sites):
    with pytest.raises(ValueError, match="whole number from 3, found 2"):
        PairwiseSum(min_sites=2)
    with pytest.raises(ValueError, match=r"at least 3 sites in a pairwise sum, found 2.*`KeyedSum`"):
        PairwiseSum().agree("training", {"a": 1.0, "b": 2.0})
    with pytest.raises(ValueError, match=r"at least 3 sites in a round.*found 2 of 2. Let more sites take part"):
        simulate(toy_sites[:2], {"w": np.zeros(2)}, FedAvg(), [PairwiseSum()], n_rounds=1, progress=False)


class Nothing(Protection):
    """A protection that sums nothing."""


def test_protections_that_do_not_combine_are_refused(key, toy_sites):
    start = {"w": np.zeros(2)}
    for protections in ([PairwiseSum(), KeyedSum(key)], [KeyedSum(key), PairwiseSum()], [KeyedSum(key)] * 2):
        with pytest.raises(ValueError, match=r"at most one protection that sums, found .*`PairwiseSum\(key\)`"):
            simulate(toy_sites, start, FedAvg(), protections, n_rounds=1, progress=False)
        with pytest.raises(ValueError, match="at most one protection that sums"):
            mean_of(make_updates(), protections)
    with pytest.raises(ValueError, match="PairwiseSum to be the last protection, found Nothing after it"):
        simulate(toy_sites, start, FedAvg(), [PairwiseSum(), Nothing()], n_rounds=1, progress=False)
    mean_of(make_updates(), [Nothing(), PairwiseSum()])


def test_identities_stand_under_their_own_names_and_are_there(key):
    a, b = Identity.generate("a"), Identity.generate("b")
    for options in ({"identities": {"a": b}}, {"identities": {"a": a}, "pinned": {"a": b.public}}):
        with pytest.raises(ValueError, match="identity of site 'a' under its name, found that of 'b'"):
            PairwiseSum(key, **options)
    with pytest.raises(ValueError, match="Pass `identities` too"):
        PairwiseSum(key, pinned={"a": a.public})
    with pytest.raises(KeyError, match="identity key of site 'b'"):
        PairwiseSum(key, identities={"a": a}).agree("training", WEIGHTS)


def test_it_holds_secrets_and_so_is_neither_shown_nor_copied(key):
    protection = make_sum(key)
    assert repr(protection) == "PairwiseSum(bits=64, min_sites=3, keyed=True)"
    exchange = protection.site("a")._exchanges[PLACE]
    assert exchange.seed.hex() not in repr(exchange)
    assert str(exchange.seed) not in repr(exchange)
    with pytest.raises(TypeError, match="holds the keys"):
        pickle.dumps(protection)
