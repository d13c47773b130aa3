"""Secure aggregation that hides a site's update from sites that collude with the server, too."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np

from scinfl._checks import first_of
from scinfl._errors import RepeatRoundError, TamperedSumError
from scinfl.federation import Update
from scinfl.privacy.aggregation._aggregator import MASKED, Aggregator
from scinfl.privacy.aggregation._context import Place, RunContext, digest_of
from scinfl.privacy.aggregation._keyed_sum import KeyedSum
from scinfl.privacy.aggregation._linear_tag import PRIME
from scinfl.privacy.aggregation._masked_sum import MaskedSum
from scinfl.privacy.aggregation._pairwise_participant import LEAST, Advertisement, PairwiseParticipant, masks
from scinfl.privacy.aggregation._secure_sum import total_of
from scinfl.privacy.keys._identity import Identity, PublicIdentity
from scinfl.privacy.keys._key import Key


class PairwiseServer(Aggregator):
    """The server's half of a pairwise sum: it relays advertisements, adds uploads and opens the sum of all of them.

    Parameters
    ----------
    identities
        Public identity of every site. Uploads that their site did not sign are refused.
    """

    def check(self, advertisement: Advertisement) -> None:
        """Refuse an advertisement that its site did not sign, or that nobody can exchange masks with.

        Raises
        ------
        ValueError
            If it is such; the sites would take it for an attack of the server.
        """
        advertisement.verify(self._identities, "of the server")

    def require_all(self, encoded: Sequence[Update], advertisements: Sequence[Advertisement]) -> None:
        """Void the round if a site that advertised sent nothing.

        Raises
        ------
        RepeatRoundError
            If a site is lost. The others exchange masks again, without it.
        """
        there = {update.site for update in encoded}
        if lost := [ad.site for ad in advertisements if ad.site not in there]:
            msg = (
                f"Site {first_of(lost)} is lost, and its masks with it: the other sites exchange fresh masks and send "
                "the round again."
            )
            raise RepeatRoundError(msg)

    def open(self, combined: Update, encoded: Sequence[Update], seeds: Mapping[str, bytes]) -> Update:
        """Take the self masks off a sum."""
        integers, header = combined.state[MASKED].copy(), dict(combined.header)
        tag = int.from_bytes(header.get("tag", b""), "big")
        for update in encoded:
            seed = seeds.get(update.site, b"")
            if hashlib.sha256(seed).digest() != update.header["commitment"]:
                msg = f"Expected the seed that site '{update.site}' committed to, found another. Ask that site again."
                raise TamperedSumError(msg)
            stream, tag_mask = masks(seed, len(integers), integers.dtype)
            integers -= stream
            tag -= tag_mask
        if "tag" in header:
            header["tag"] = (tag % PRIME).to_bytes(8, "big")
        return replace(combined, state={MASKED: integers}, header=header)


class PairwiseSum(MaskedSum):
    r"""Sum of updates that no site and no server reads singly, not even together (Bonawitz et al. 2017).

    For every attempt at a round each site draws a fresh X25519 key pair and signs the public half with its
    :class:`Identity`, bound to run, purpose, round, attempt and its name. The server relays; each site checks the
    others' against their *pinned* identities, because the shared key, which all sites have, cannot prove which site
    sent a message. Each pair then has a secret of its own, from which a ChaCha20 mask follows that the one adds and the
    other subtracts: the masks cancel in the sum of all sites that exchanged, and in
    no other. A coalition reads no more than the sum of the sites outside it, so at least two of those must be honest: 3
    sites are the least, and of ``n`` sites ``n - 2`` may collude with the server. Ephemeral keys are dropped after use;
    an identity stolen later opens no old round.

    Each site also adds a mask of its own, and reveals it once all uploads are there; after that it refuses to repeat
    the round. If a site drops out, the round is void and the others send it again under fresh masks. A server that
    falsely reports a site as lost cannot open both sums and take their difference. Neighbouring rounds with and
    without a site still reveal information on it, as in every secure aggregation.

    What each layer adds:

    * ``PairwiseSum()``: neither the other sites nor the server read a single update; the server reads the *sum*, hence
      every global model, and could return another sum unnoticed.
    * ``PairwiseSum(key)``: the keyed stream of :class:`KeyedSum` on top. The server reads nothing and the sites read
      the sum only, whose tag they check as in a keyed sum. A site that colludes with the server shows it the sum, and
      can make a false tag; it still opens no update. This is the form to choose.

    Weights, numbers, bounds and metrics travel as in :class:`KeyedSum`; :math:`N` is agreed by a pairwise sum too.

    Parameters
    ----------
    key
        Secret of the sites, or ``None`` for pairwise masks alone.
    run
        Name of the run, the same at all sites; a random one by default.
    bits
        64, or 32 for half the bytes at an error of about 4e-9 per site (B = 8).
    bound
        Bound on every number, a power of two: 65536 with 64 bits and 8 with 32 bits by default.
    min_sites
        Least number of sites in a sum, 3 or more.
    identities
        Secret identities of the sites of this process: one, at a real site. By default the sites of an in-process run
        get one each.
    pinned
        Public identities of all sites by name; by default those of ``identities``.

    Examples
    --------
    >>> import numpy as np
    >>> import scinfl as si
    >>> from scinfl.federation import Update, mean_of
    >>> key = si.privacy.Key.generate()
    >>> updates = [Update(site, 1, {"w": np.full(2, w)}, 1) for site, w in [("a", 1.0), ("b", 2.0), ("c", 6.0)]]
    >>> mean_of(updates, [si.privacy.PairwiseSum(key)]).state["w"].round(9)
    array([3., 3.])
    """

    _name: ClassVar[str] = "pairwise sum"
    _cure: ClassVar[str] = ", or use a `KeyedSum`, which hides updates from the server alone"

    def __init__(
        self,
        key: Key | None = None,
        *,
        run: str | None = None,
        bits: Literal[64, 32] = 64,
        bound: float | None = None,
        min_sites: int = LEAST,
        identities: Mapping[str, Identity] | None = None,
        pinned: Mapping[str, PublicIdentity] | None = None,
    ) -> None:
        super().__init__(run=run, bits=bits, bound=bound, min_sites=min_sites, least=LEAST, identities=identities)
        self.shows_sum = key is None
        self._keyed = None if key is None else KeyedSum(key, run=self._run, bits=bits)
        self._fingerprint = "" if key is None else key.fingerprint
        self._of_key = ("", 0) if key is None else (key.federation, key.version)
        if pinned is not None and identities is None:
            msg = "Expected the identities of one's own sites beside `pinned`, found none. Pass `identities` too."
            raise ValueError(msg)
        own = {name: identity.public for name, identity in self._identities.items()}
        self._pinned, self._is_pinned = own if pinned is None else dict(pinned), pinned is not None
        for name, public in [*own.items(), *self._pinned.items()]:
            if name != public.site:
                msg = f"Expected the identity of site '{name}' under its name, found that of '{public.site}'."
                raise ValueError(msg)
        self._sites: dict[str, PairwiseParticipant] = {}
        self._relayed: dict[tuple[str, int], list[Advertisement]] = {}
        self._was_away = False

    # ---- before a sum

    def exchange(self, purpose: str, round: int, sites: Sequence[str]) -> None:
        """Exchange fresh advertisements between all sites, in one process.

        Parameters
        ----------
        purpose, round
            What will be summed.
        sites
            Names of the sites that take part.
        """
        self._check_number(len(sites), ValueError)
        super().exchange(purpose, round, sites)
        step, attempt = self._positions[purpose, round]
        self.receive([self.site(name).advertise(purpose, round, attempt, step) for name in sites])

    def site(self, name: str) -> PairwiseParticipant:
        """One site's half: advertise, receive, mask, reveal.

        Parameters
        ----------
        name
            Name of a site of this process.
        """
        if name not in self._sites:
            self._sites[name] = PairwiseParticipant(
                self._identity(name),
                self._pinned,
                run=self.run_context.digest.hex(),
                min_sites=self.min_sites,
                fingerprint=self._fingerprint,
            )
        return self._sites[name]

    def receive(self, advertisements: Sequence[Advertisement]) -> None:
        """Let the sites of this process check what all sites advertise.

        Parameters
        ----------
        advertisements
            One of every site of the sum, as the server relayed them.
        """
        if not (own := self._own(advertisements)):
            msg = "Expected an advertisement of a site of this process, found none. Do not trust this server."
            raise TamperedSumError(msg)
        for name in own:
            self.site(name).receive(advertisements)
        place = advertisements[0].purpose, advertisements[0].round
        self._relayed[place], self._was_away = list(advertisements), False

    def agree(self, purpose: str, weights: Mapping[str, float]) -> float:
        """Sum the weights of all sites without showing one, so that each can send its share.

        Parameters
        ----------
        purpose
            What the weights are for: ``"training"`` or ``"evaluation"``. Its rounds start again from 1.
        weights
            Weight of every site.
        """
        self.begin(purpose)
        self.exchange(total_of(purpose), 0, list(weights))
        return super().agree(purpose, weights)

    def reuse_total(self, purpose: str, agreed: str) -> None:
        """Take the total weight of a purpose from another one; its rounds start again from 1.

        Parameters
        ----------
        purpose, agreed
            See :meth:`KeyedSum.reuse_total`.
        """
        self.begin(purpose)
        super().reuse_total(purpose, agreed)

    def begin(self, purpose: str) -> None:
        """Restart a purpose: its rounds count from 1 again, and its weights are agreed on again.

        Parameters
        ----------
        purpose
            What is summed.
        """
        purposes = {purpose, total_of(purpose)}
        for site in self._sites.values():
            for name in purposes:
                site.forget(name)
        self._relayed = {place: ads for place, ads in self._relayed.items() if place[0] not in purposes}
        self._positions = {place: own for place, own in self._positions.items() if place[0] not in purposes}

    def open_run(self, context: RunContext) -> None:
        """Begin a run: nothing that was masked or exchanged before is read any more.

        Parameters
        ----------
        context
            What this site believes of the run.
        """
        super().open_run(context)
        self._sites, self._relayed = {}, {}

    def exchange_of(self, place: Place) -> bytes:
        """Digest of what was relayed for a sum, at the first site of this process that is in it.

        Parameters
        ----------
        place
            Purpose and round of the sum.
        """
        own = self._own(self._relayed.get(place, []))
        return self.site(own[0]).exchange_of(*place) if own else b""

    def remember(self, name: str, memory: Sequence[Mapping[str, Any]]) -> None:
        """Take up what a site of this process knew before it started again.

        Parameters
        ----------
        name
            Name of the site.
        memory
            What it knew.
        """
        site = self.site(name)
        site.remember(memory)
        self._relayed |= {place: list(ads) for place, ads in site.peers().items() if ads}

    # ---- the sum

    def _hide(self, upload: Update, context: bytes) -> Update:
        if self._keyed is not None:
            upload = self._keyed._hide(upload, context)
        tag = int.from_bytes(upload.header.get("tag", b""), "big")
        site = self.site(upload.site)
        integers, tag, header = site.mask(upload.purpose, upload.round, upload.state[MASKED], tag, context=context)
        if "tag" in upload.header:
            header["tag"] = tag.to_bytes(8, "big")
        return replace(upload, state={MASKED: integers}, header={**upload.header, **header})

    def _add(self, encoded: Sequence[Update]) -> Update:
        server = PairwiseServer(self._public())
        for update in encoded[:1]:
            server.require_all(encoded, self._relayed.get((update.purpose, update.round), []))
        combined = server.combine(encoded)
        sites = [update.site for update in encoded]
        seeds = {name: self.site(name).reveal(combined.purpose, combined.round, sites) for name in sites}
        return server.open(combined, encoded, seeds)

    def _unmask(self, combined: Update, members: Sequence[Update], context: bytes) -> np.ndarray:
        place = combined.purpose, combined.round
        own = self._own(self._relayed.get(place, []))
        if not own and self._was_away and self._keyed is not None:
            return self._keyed._unmask(combined, members, context)
        if not own:
            msg = f"Expected a sum that was exchanged for, found round {place[1]} of '{place[0]}'. Nothing was used."
            raise TamperedSumError(msg)
        for name in own:
            digest = self.site(name).check_members(*place, [member.site for member in members])
            if any(member.header.get("exchange") != digest for member in members):
                msg = "Expected uploads of one exchange, found one of another. Do not trust this server."
                raise TamperedSumError(msg)
        return combined.state[MASKED] if self._keyed is None else self._keyed._unmask(combined, members, context)

    def _position(self, place: Place) -> tuple[int, int, Sequence[bytes]]:
        relayed = self._relayed.get(place)
        return (relayed[0].step, relayed[0].attempt, (self.exchange_of(place),)) if relayed else (0, 0, ())

    def _default_context(self) -> RunContext:
        texts = [self._pinned[site].to_text() for site in sorted(self._pinned)] if self._is_pinned else []
        return RunContext(*self._of_key, self._run, identities_digest=digest_of(texts).hex())

    def _forget(self) -> None:
        if self._keyed is not None:
            self._keyed._forget()

    def forget(self) -> None:
        """Forget what was sent and is not in a sum.

        The next sum may be one that went on without this site: with the key it is read and its tag checked, but not
        whose masks were in it.
        """
        super().forget()
        self._relayed, self._was_away = {}, True

    def _own(self, advertisements: Sequence[Advertisement]) -> list[str]:
        return [ad.site for ad in advertisements if ad.site in self._identities]

    def _identity(self, site: str) -> Identity:
        identity = super()._identity(site)
        if self._makes_identities:
            self._pinned.setdefault(site, identity.public)
        return identity

    def _public(self) -> dict[str, PublicIdentity]:
        return self._pinned

    def __repr__(self) -> str:
        return f"PairwiseSum(bits={self._numbers.bits}, min_sites={self.min_sites}, keyed={self._keyed is not None})"
