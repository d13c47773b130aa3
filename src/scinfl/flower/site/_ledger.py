"""What a site agreed to so far: runs, their members and data, and the privacy spent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scinfl._checks import first_of
from scinfl._errors import TamperedSumError
from scinfl.federation import Journal
from scinfl.flower.protocol._difference import describe_difference, find_difference
from scinfl.privacy import Identity, Key, Seal

LEDGER = "ledger"
_STOPPED = "This site stopped before it read the sum."


@dataclass(frozen=True)
class AgreedRun:
    """A run that a site takes part in.

    Parameters
    ----------
    run
        Name of the run.
    job
        Digest of the job.
    members
        Sites whose facts the run began with.
    data
        Fingerprint of the data of this site.
    purposes
        What the run adds beside training: the protections by noise, or none.
    accepted
        Sites by which its members are allowed to differ from an earlier run.
    """

    run: str
    job: str
    members: Sequence[str]
    data: str
    purposes: Sequence[str] = ()
    accepted: Sequence[str] = ()


class Ledger:
    """A sealed journal in the folder of a site, which no run begins without.

    Its entries are sealed with a secret of the site, so that neither another site nor a change of the key opens or
    loses it; their chain and their number are verified when it is read. One process at a time writes it.

    Parameters
    ----------
    kit
        Folder of the site.
    identity
        Of the site.

    Raises
    ------
    ValueError
        If entries were changed, dropped or exchanged.
    """

    def __init__(self, kit: Path, identity: Identity) -> None:
        self._seal, self._site = own_seal(identity, LEDGER), identity.site
        (kit / LEDGER).mkdir(mode=0o700, exist_ok=True)
        self._journal = Journal(kit / LEDGER, self._seal)
        self._runs: dict[str, AgreedRun] = {}
        self._sums: dict[str, set[frozenset[str]]] = {}  # members of the sums of a run
        self._before: dict[str, frozenset[str]] = {}  # members of its sums before training
        self._charges: dict[str, dict[str, Any]] = {}  # by number, with the run
        self._finished: list[str] = []  # runs whose models were written, in this order
        self._n = 0
        self._read()

    # ---- agreement

    def knows(self, run: str) -> bool:
        """Whether a run was agreed to before."""
        return run in self._runs

    @property
    def n_runs(self) -> int:
        """Runs that were agreed to."""
        return len(self._runs)

    def add(self, own: AgreedRun) -> None:
        """Note a run that was agreed to, unless its members differ from those of an earlier one.

        Raises
        ------
        TamperedSumError
            If they do.
        ValueError
            If the run was agreed to with other data, another job or other members: a server keeps the facts of a run
            before it shows them to anyone. If it was finished before another one, or shares its folder with one.
        """
        if own.run in self._finished[:-1]:
            msg = (
                f"Expected a run that goes on, found '{own.run[:12]}', finished here before another one: its model "
                "would replace a later one. Let the operator start a new run."
            )
            raise ValueError(msg)
        if twins := [run for run in self._runs if run != own.run and run.casefold() == own.run.casefold()]:
            msg = f"Expected a name that no run had, found '{own.run}' beside {first_of(twins)}. Start a new run."
            raise ValueError(msg)
        known = self._runs.get(own.run)
        if known is not None:
            then, now = ({"job": one.job, "data": one.data, "sites": {*one.members}} for one in (known, own))
            if odd := [what for what in then if then[what] != now[what]]:
                msg = (
                    f"Expected run '{own.run[:12]}' to go on with the job, data and sites that it began with, found "
                    f"other {' and '.join(odd)}. Take them as they were, or let the operator start a new run."
                )
                raise ValueError(msg)
            if set(own.accepted) <= set(known.accepted):
                return
        self._check(own, own.members, "Nothing was sent.")
        self._write("run", asdict(own))

    def check_members(self, run: str, members: Collection[str], *, before_training: bool) -> None:
        """Refuse a sum over the data themselves whose members differ from those of an earlier one.

        Parameters
        ----------
        run
            The run.
        members
            Sites in the sum.
        before_training
            Whether the sum is one of those before training, which have the same members in all of a run.

        Raises
        ------
        TamperedSumError
            If they do.
        """
        own, found = self._runs[run], frozenset(members)
        if before_training:
            self._compare(own, members, {run: [self._before.get(run, found)]}, _STOPPED)
        if found not in self._sums.get(run, ()):
            self._check(own, members, _STOPPED)

    def note_members(self, run: str, members: Collection[str], *, before_training: bool, is_read: bool) -> None:
        """Note the members of a sum that passed :meth:`check_members`.

        Parameters
        ----------
        run
            The run.
        members
            Sites in the sum.
        before_training
            Whether the sum is one of those before training.
        is_read
            Whether it is known to be the sum of what these sites sent; otherwise they are about to mask for one
            another, perhaps not for the last time.
        """
        is_first = before_training and is_read and run not in self._before
        if is_first or frozenset(members) not in self._sums.get(run, ()):
            self._write("sum", {"run": run, "members": sorted(members), "before": is_first})

    def _check(self, own: AgreedRun, members: Collection[str], done: str) -> None:
        earlier = {
            run: [other.members, *self._sums.get(run, ())]
            for run, other in self._runs.items()
            if run != own.run and other.data == own.data
        }
        self._compare(own, members, earlier, done)

    def _compare(
        self,
        own: AgreedRun,
        members: Collection[str],
        earlier: Mapping[str, Collection[Collection[str]]],
        done: str,
    ) -> None:
        """Refuse members that differ from earlier ones, unless all sites by which they do were accepted."""
        accepted = set(own.accepted)
        kept = {run: [one for one in sets if not set(one) ^ set(members) <= accepted] for run, sets in earlier.items()}
        if (found := find_difference(members, kept)) is None:
            return
        run, differ = found
        options = " ".join(f"--accept-difference {site}" for site in differ)
        msg = (
            f"Expected the members of an earlier sum over the same data, found that "
            f"{describe_difference(run, differ, members)}. {done} If these sites agree to that, start again with "
            f"`{options}`."
        )
        raise TamperedSumError(msg)

    def finish(self, run: str) -> None:
        """Note that the model of a run was written.

        Parameters
        ----------
        run
            The run.
        """
        if self._finished[-1:] != [run]:
            self._write("model", {"run": run})

    # ---- privacy

    def book(self, own: AgreedRun) -> LedgerBook:
        """Account book of a run: what was spent on the same data in any run, and where it is noted before it is spent.

        Parameters
        ----------
        own
            The run.
        """
        return LedgerBook(self, own)

    def charges_on(self, data: str) -> dict[str, dict[str, Any]]:
        """What was spent on data of this fingerprint, by number."""
        same = {run for run, other in self._runs.items() if other.data == data}
        return {number: entry["charge"] for number, entry in self._charges.items() if entry["run"] in same}

    def note_charge(self, run: str, number: str, charge: Mapping[str, Any]) -> None:
        """Note what is about to be spent in a run."""
        if number not in self._charges:
            self._write("charge", {"run": run, "number": number, "charge": dict(charge)})

    # ---- the file

    def _write(self, kind: str, content: Mapping[str, Any]) -> None:
        entry = json.dumps({"kind": kind, **content}).encode()
        self._journal.log("entry", sealed=self._seal.seal(entry, what=LEDGER, site=self._site, number=self._n).hex())
        self._take({"kind": kind, **content})
        self._journal.save({}, {"n": self._n})

    def _take(self, entry: dict[str, Any]) -> None:
        kind = entry.pop("kind")
        self._n += 1
        if kind == "run":
            self._runs[entry["run"]] = AgreedRun(**entry)
        elif kind == "sum":
            self._sums.setdefault(entry["run"], set()).add(frozenset(entry["members"]))
            if entry.get("before"):
                self._before.setdefault(entry["run"], frozenset(entry["members"]))
        elif kind == "model":
            self._finished.append(entry["run"])
        else:
            self._charges[entry["number"]] = entry

    def _read(self) -> None:
        try:
            kept, events = self._journal.load(), self._journal.events()
            if kept is None and not events:
                self._journal.save({}, {"n": 0})  # so that a log without it is known to have lost it
            for number, event in enumerate(events):
                sealed = bytes.fromhex(event["sealed"])
                self._take(json.loads(self._seal.unseal(sealed, what=LEDGER, site=self._site, number=number)))
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(str(error)) from error
        if not self._journal.verify() or (events and kept is None) or (kept is not None and self._n < kept[1]["n"]):
            why = "entries are missing"
            raise self._damaged(why)

    def _damaged(self, why: str) -> ValueError:
        msg = (
            f"Expected the ledger of site '{self._site}' in '{self._journal.path}' as this site wrote it, found a "
            f"changed one ({why}). It holds which runs were agreed to, and the privacy spent: restore it from a copy."
        )
        return ValueError(msg)


@dataclass(frozen=True)
class LedgerBook:
    """Charges of one run, in the ledger; see :func:`scinfl.privacy.dp.accounted_in`."""

    ledger: Ledger
    run: AgreedRun

    def charges(self) -> dict[str, dict[str, Any]]:
        """All charges on the data of the run, by number."""
        return self.ledger.charges_on(self.run.data)

    def note(self, number: str, charge: Mapping[str, Any]) -> None:
        """Note a charge before it is spent."""
        self.ledger.note_charge(self.run.run, number, charge)


def own_seal(identity: Identity, what: str) -> Seal:
    """Seal that no other site opens, and that outlives a change of the key."""
    secret = hashlib.sha256(identity.sign(f"scinfl {what} of a site".encode())).digest()
    return Seal(Key(secret, federation=what))
