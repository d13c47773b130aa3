"""One site's half of a pairwise sum: advertise, receive, mask, reveal."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from scinfl._checks import first_of
from scinfl._errors import TamperedSumError
from scinfl.privacy.aggregation._advertisement import Advertisement
from scinfl.privacy.aggregation._linear_tag import PRIME
from scinfl.privacy.keys._derivation import derive, joined, key_stream
from scinfl.privacy.keys._identity import Identity, PublicIdentity

LEAST = 3
"""Least number of sites that pairwise masks hide from one another."""


@dataclass(repr=False)
class _Exchange:
    """What a site remembers of one attempt at a round; the secrets are dropped as soon as they were used."""

    own: Advertisement
    ephemeral: X25519PrivateKey | None
    seed: bytes | None
    peers: tuple[Advertisement, ...] = ()
    masked: bool = False
    opened: bool = False

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(joined(*(ad.content() for ad in self.peers))).digest()


class PairwiseParticipant:
    """What one site does in a pairwise sum, step by step; the server only relays.

    Parameters
    ----------
    identity
        Secret identity of the site.
    pinned
        Public identities of all sites by name, looked up at each exchange.
    run
        Digest of what the site believes of the run (:class:`RunContext`), as text.
    min_sites
        Least number of sites in a sum, 3 or more.
    fingerprint
        Fingerprint of the shared key, where there is one.
    """

    def __init__(
        self,
        identity: Identity,
        pinned: Mapping[str, PublicIdentity],
        *,
        run: str,
        min_sites: int = LEAST,
        fingerprint: str = "",
    ) -> None:
        self._identity, self._pinned = identity, pinned
        self._run, self._min_sites, self._fingerprint = run, max(min_sites, LEAST), fingerprint
        self._exchanges: dict[tuple[str, int], _Exchange] = {}

    def advertise(self, purpose: str, round: int, attempt: int = 1, step: int = 0) -> Advertisement:
        """Draw a fresh key pair and sign its public half.

        Parameters
        ----------
        purpose, round
            What will be summed.
        attempt, step
            Number of the attempt, and of the step in the run.

        Raises
        ------
        TamperedSumError
            If the sum of this round was opened already, or the attempt is an old one: two sums of one round, with and
            without a site, would show that site.
        """
        before = self._exchanges.get((purpose, round))
        if before is not None and (before.opened or attempt <= before.own.attempt):
            was = "opened already" if before.opened else f"at attempt {before.own.attempt}"
            msg = (
                f"Expected a later attempt at a sum that is not opened, found attempt {attempt} at round {round} of "
                f"'{purpose}', which is {was}. A second sum of a round can show single sites: do not trust this server."
            )
            raise TamperedSumError(msg)
        ephemeral = X25519PrivateKey.generate()
        public = ephemeral.public_key().public_bytes_raw()
        bare = Advertisement(self._identity.site, purpose, self._run, step, round, attempt, self._fingerprint, public)
        own = replace(bare, signature=self._identity.sign(bare.content()))
        self._exchanges[purpose, round] = _Exchange(own, ephemeral, os.urandom(32))
        return own

    def receive(self, advertisements: Sequence[Advertisement]) -> None:
        """Check what all sites advertise, this one included.

        Parameters
        ----------
        advertisements
            One of every site of the sum, as the server relayed them.

        Raises
        ------
        TamperedSumError
            If one is not signed by the pinned identity of its site, is of another round, or this site's own is missing.
        ValueError
            If there are too few sites, or one holds another shared key.
        """
        peers = tuple(sorted(advertisements, key=lambda ad: ad.site))
        sites = [ad.site for ad in peers]
        if len(set(sites)) < len(sites):
            msg = "Expected one advertisement of each site, found two of one. Do not trust this server."
            raise TamperedSumError(msg)
        for ad in peers:
            ad.verify(self._pinned, self._identity.site)
        mine = [ad for ad in peers if ad.site == self._identity.site]
        exchange = self._exchanges.get((mine[0].purpose, mine[0].round)) if mine else None
        if exchange is None or exchange.own != mine[0]:
            msg = (
                f"Expected the advertisements with that of site '{self._identity.site}' as it was sent, found them "
                "without. It was dropped or replaced on its way: advertise again, and do not trust this server."
            )
            raise TamperedSumError(msg)
        for ad in peers:
            ad.compare(exchange.own)
        if exchange.peers:
            msg = "Expected one exchange for each attempt, found a second one. Do not trust this server."
            raise TamperedSumError(msg)
        if len(peers) < self._min_sites:
            msg = (
                f"Expected at least {self._min_sites} sites in a pairwise sum, found {len(peers)}: with fewer, the sum "
                "and one's own update show the others'. Let more sites take part."
            )
            raise ValueError(msg)
        exchange.peers = peers

    def mask(
        self, purpose: str, round: int, integers: np.ndarray, tag: int = 0, *, context: bytes
    ) -> tuple[np.ndarray, int, dict[str, bytes]]:
        r"""Mask integers and their tag, once.

        .. math::
            q_k + s_k + \sum_{j > k} m_{kj} - \sum_{j < k} m_{jk} \bmod 2^b

        with the self mask :math:`s_k` and a mask :math:`m_{kj}` for each pair of sites in the order of their names.
        Both derive from the context too: the masks of sites that believe different things do not cancel.

        Parameters
        ----------
        purpose, round
            What is summed.
        integers, tag
            What is masked.
        context
            Digest of what the site believes of the step (:class:`StepContext`).

        Returns
        -------
        Masked integers, the masked tag, and what goes into the header: the digest of the exchange and a commitment to
        the self mask.

        Raises
        ------
        RuntimeError
            If there are no fresh masks: none were exchanged, or they hid something already.
        """
        exchange = self._exchange(purpose, round)
        if exchange.masked or exchange.ephemeral is None or exchange.seed is None or not exchange.peers:
            found = "ones that were used" if exchange.masked else "none that all sites exchanged"
            msg = (
                f"Expected fresh pairwise masks for round {round} of '{purpose}', found {found}. A mask that hides two "
                "updates hides none: exchange advertisements before each sum (`exchange`)."
            )
            raise RuntimeError(msg)
        masked = integers.copy()
        for added, secret in self._secrets(exchange, exchange.ephemeral, context):
            stream, tag_mask = masks(secret, len(integers), integers.dtype)
            if added:
                masked += stream
            else:
                masked -= stream
            tag += tag_mask if added else -tag_mask
        exchange.seed = derive(exchange.seed, "scinfl self mask", context, purpose)
        stream, tag_mask = masks(exchange.seed, len(integers), integers.dtype)
        masked += stream
        exchange.masked, exchange.ephemeral = True, None
        header = {"exchange": exchange.digest, "commitment": hashlib.sha256(exchange.seed).digest()}
        return masked, (tag + tag_mask) % PRIME, header

    def _secrets(
        self, exchange: _Exchange, ephemeral: X25519PrivateKey, context: bytes
    ) -> Iterator[tuple[bool, bytes]]:
        """Whether this site adds or subtracts, and the secret of each pair."""
        own = exchange.own
        for ad in exchange.peers:
            if ad.site == own.site:
                continue
            shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(ad.public))
            pair = sorted((own.site, ad.site))
            yield own.site < ad.site, derive(shared, "scinfl pairwise mask", context, own.purpose, *pair)

    def reveal(self, purpose: str, round: int, sites: Iterable[str]) -> bytes:
        """Give the seed of the self mask to the server, once all uploads are there.

        From then on this site refuses to repeat the round. So a server that holds back an upload and reports that site
        as lost cannot open both sums, with and without it.
        """
        exchange = self._exchange(purpose, round)
        if not exchange.masked or exchange.seed is None:
            found = "opened before" if exchange.opened else "without an upload of this site"
            msg = f"Expected a sum to open once, found round {round} of '{purpose}' {found}. Do not trust this server."
            raise TamperedSumError(msg)
        self.check_members(purpose, round, sites)
        seed, exchange.seed, exchange.opened = exchange.seed, None, True
        return seed

    def check_members(self, purpose: str, round: int, sites: Iterable[str]) -> bytes:
        """Refuse any sum but that of the sites of the exchange; returns the digest of the exchange."""
        exchange, sites = self._exchange(purpose, round), sorted(sites)
        expected = [ad.site for ad in exchange.peers]
        if sites != expected:
            odd = sorted(set(sites) ^ set(expected)) or sites
            msg = (
                f"Expected the sum of the {len(expected)} sites that exchanged masks, found {len(sites)}; "
                f"not in both: {first_of(odd)}. Masks cancel in that sum alone: exchange again without the lost sites."
            )
            raise TamperedSumError(msg)
        return exchange.digest

    def exchange_of(self, purpose: str, round: int) -> bytes:
        """Digest of what all sites advertised for a sum."""
        return self._exchange(purpose, round).digest

    def peers(self) -> dict[tuple[str, int], tuple[Advertisement, ...]]:
        """What was relayed, by purpose and round."""
        return {place: exchange.peers for place, exchange in self._exchanges.items()}

    def has_keys(self, purpose: str, round: int) -> bool:
        """Whether this site can still mask a term for what it advertised, which it does once."""
        exchange = self._exchange(purpose, round)
        return exchange.ephemeral is not None and not exchange.masked

    def memory(self, *, with_keys: bool = False) -> list[dict[str, Any]]:
        """What the site must know when it starts again, as json can hold it; secret, so seal it before it is kept.

        Parameters
        ----------
        with_keys
            Also the keys to masks that were advertised and not used: for a site that starts again in between.
        """
        return [
            {
                "own": exchange.own.to_json(),
                "heard": [ad.to_json() for ad in exchange.peers],  # the name in files
                "seed": None if exchange.seed is None else exchange.seed.hex(),
                "masked": exchange.masked,
                "opened": exchange.opened,
                "key": exchange.ephemeral.private_bytes_raw().hex() if with_keys and exchange.ephemeral else None,
            }
            for exchange in self._exchanges.values()
        ]

    def remember(self, memory: Sequence[Mapping[str, Any]]) -> None:
        """Restore what :meth:`memory` gave. Without the keys to masks, a sum that was not sent needs a new exchange."""
        for kept in memory:
            own = Advertisement.from_json(kept["own"])
            self._exchanges[own.purpose, own.round] = _Exchange(
                own,
                X25519PrivateKey.from_private_bytes(bytes.fromhex(kept["key"])) if kept.get("key") else None,
                None if kept["seed"] is None else bytes.fromhex(kept["seed"]),
                tuple(Advertisement.from_json(ad) for ad in kept["heard"]),
                bool(kept["masked"]),
                bool(kept["opened"]),
            )

    def forget(self, purpose: str) -> None:
        """Restart a purpose: its rounds count from 1 again."""
        self._exchanges = {place: kept for place, kept in self._exchanges.items() if place[0] != purpose}

    def _exchange(self, purpose: str, round: int) -> _Exchange:
        if (purpose, round) not in self._exchanges:
            msg = (
                f"Expected an exchange of site '{self._identity.site}' for round {round} of '{purpose}', found none. "
                "Exchange advertisements before each sum (`exchange`)."
            )
            raise RuntimeError(msg)
        return self._exchanges[purpose, round]


def masks(secret: bytes, n: int, dtype: np.dtype) -> tuple[np.ndarray, int]:
    """Mask of ``n`` integers, and of their tag."""
    tag_mask = int.from_bytes(derive(secret, "scinfl mask of the tag"), "big") % PRIME
    return key_stream(derive(secret, "scinfl mask"), n, dtype), tag_mask
