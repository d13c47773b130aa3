"""A site's side: check the data, confirm what leaves, take part, write the model."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from anndata import AnnData
from mudata import MuData

from scinfl import federation, privacy
from scinfl._checks import first_of
from scinfl._errors import TamperedSumError
from scinfl.federation import Protection, Strategy
from scinfl.federation.rounds import write_atomically
from scinfl.flower._require import require_flower
from scinfl.flower.protocol._message import HELLO_FIRST, Message, unread
from scinfl.flower.protocol._preflight import (
    agreement_hash,
    check_facts,
    hello_content,
    open_facts,
    run_context,
    seal_facts,
    site_checks,
)
from scinfl.flower.protocol._round_history import WITH_ROUNDS, RoundHistory
from scinfl.flower.setup._job import JOB, SITE_SETTINGS, Job, SiteSettings
from scinfl.flower.setup._kit import ADDRESS, CA, IDENTITIES, IDENTITY, LINK_KEY, pinned_identities
from scinfl.flower.site._data import alone, copy_folder, fingerprint_of, read_data
from scinfl.flower.site._job_check import differences, other_job, refuse_other_job
from scinfl.flower.site._ledger import LEDGER, AgreedRun, Ledger, own_seal
from scinfl.flower.site._mailbox import EndedError, Mailbox, OtherRunError
from scinfl.flower.site._masking import Masking, Moment, PairwiseMasking
from scinfl.flower.site._one_message import AnsweredError, KeptFacts, LastAnswer, OneMessage
from scinfl.flower.site._remote_sum import RemoteSum, rehearsed_sum
from scinfl.flower.site._site_training import train_remote
from scinfl.flower.site._upload_log import UploadLog
from scinfl.flower.tasks._registry import task_of
from scinfl.flower.tasks._task import Facts
from scinfl.privacy import Identity, Key, KeyedSum, PairwiseSum
from scinfl.privacy.aggregation import Place, digest_of
from scinfl.privacy.dp import accounted_in

logger = logging.getLogger(__name__)

MODEL = "model"
RUNS = "runs"
SUMS = "sums"
START = "start"
FACTS = "facts.json"
ANSWER = "answer.safetensors"
MASKS = "pairwise.sealed"
UPLOADS = "uploads.jsonl"
_SHOWN = ("validation_", "epsilon")
_SECONDS_TO_SAY_GOODBYE = 60.0


def run_site(
    kit: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | AnnData | MuData,
    key: str | os.PathLike[str] | Key,
    confirm: Callable[[pd.DataFrame], bool] | None = None,
    report: Callable[[str], None] = logger.info,
    poll: float = 0.5,
    n_runs: int = 1,
    accept_difference: Sequence[str] = (),
) -> Path:
    """Take part in a federation with the data of one site, until the model is there.

    Checks data, key and job, shows what would leave the site, connects, and trains as the server asks. Survives
    restarts of the server; started again after a crash of its own it goes on where it was. Only the installed scinfl is
    run, whatever a run brings along.

    Parameters
    ----------
    kit
        Folder of the site, from :func:`make_kit`.
    data
        The site's own data, as a file or in memory.
    key
        Secret of the sites, as a file that only its owner may read or in memory.
    confirm
        Called with the list of what would leave (see :class:`scinfl.federation.Payload`); returns whether to go on.
    report
        Called with one line per event, for example ``print``; the log by default.
    poll
        Most seconds between two looks for messages, where the server does not hold a look until there is one.
    n_runs
        New runs that are agreed to; a run that goes on is no new one. Should the server begin more, the site stops.
    accept_difference
        Sites of which can be computed what they contribute: by which the members of a run may differ from those of an
        earlier run over the same data, or this one where fewer than ``min_sites`` measured a modality.

    Returns
    -------
    Folder of the model, sealed with the key.

    Raises
    ------
    ValueError
        If data, key or job cannot be used.
    RuntimeError
        If the server refuses the site, or ends the run.
    """
    require_flower()
    try:
        site = _Site(Path(kit), data, key, report, n_runs=n_runs, accepted=accept_difference)
    except UnusableDataError as error:
        refuse_other_job(Path(kit), report)
        raise error.cause from None
    if confirm is not None and not confirm(site.payload()):
        msg = "Nothing was sent: what would leave the site was not agreed to."
        raise RuntimeError(msg)
    with alone(Path(kit)):
        return site.train_remote(poll)


def list_payload(
    kit: str | os.PathLike[str], *, data: str | os.PathLike[str] | AnnData | MuData, key: str | os.PathLike[str] | Key
) -> pd.DataFrame:
    """What would leave a site in the whole run, from one local epoch; nothing is sent, no server is needed.

    It is that of a run of this site alone: what grows with the labels or perturbations of all sites is larger in the
    run.

    Parameters
    ----------
    kit, data, key
        See :func:`run_site`.
    """
    try:
        return _Site(Path(kit), data, key, logger.debug).payload()
    except UnusableDataError as error:
        raise error.cause from None


class UnusableDataError(ValueError):
    """Data that do not fit the job, for a reason that may be that the job is an old one."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _Site:
    """One site with its data, key and job."""

    def __init__(
        self,
        kit: Path,
        data: str | os.PathLike[str] | AnnData | MuData,
        key: str | os.PathLike[str] | Key,
        report: Callable[[str], None],
        *,
        n_runs: int = 1,
        accepted: Sequence[str] = (),
        is_brief: bool = False,
    ) -> None:
        self._kit, self._report = kit, report
        self._n_new, self._n_runs, self._is_brief, self._accepted = 0, n_runs, is_brief, sorted(accepted)
        self._settings = SiteSettings.read(kit / SITE_SETTINGS)
        self._job = Job.read(kit / JOB)
        self._job.check_options()
        self._name = self._settings.site
        if self._name not in self._job.sites:
            msg = f"Expected the job to name site '{self._name}', found {list(self._job.sites)}. Ask the operator."
            raise ValueError(msg)
        self._key = key if isinstance(key, Key) else Key.load(key)
        self._identity = Identity.load(kit / IDENTITY)
        if self._identity.site != self._name:
            msg = f"Expected the identity of site '{self._name}', found that of '{self._identity.site}'. Use one kit."
            raise ValueError(msg)
        own = read_data(data)
        self._fingerprint = fingerprint_of(own)
        self._odd = ""  # entries of the server's job that differ from those of the job here
        try:
            self._task = task_of(self._job.model)(own, self._job, self._settings)
        except (KeyError, TypeError, ValueError) as error:
            raise UnusableDataError(error) from error

    # ---- what would leave

    def payload(self) -> pd.DataFrame:
        """List of one local epoch, as if this site were alone."""
        if self._job.noise:
            self._report(
                "The other sites also get the list of labels, or perturbations, that this site has, sealed and without "
                "noise: a label that one patient alone has shows that patient."
            )
        summing = rehearsed_sum(self._key, self._identity, self._job.bits)
        self._check_start()
        facts = self._task.rehearsal()
        model = self._make_model(facts, self._kit / MODEL)
        self._train_model(model, facts, _nobody, [*self._noise(), summing], dry_run=True)
        return model.payload

    # ---- taking part

    def train_remote(self, poll: float) -> Path:
        """Connect, and train run after run until one is finished."""
        from scinfl.flower.site._connection import FleetConnection

        room = 16 * len(self._job.sites) * len(json.dumps(self._task.facts()))  # they travel as text of hexadecimals
        mailbox = Mailbox(self._greet, room=room)
        connection = FleetConnection(
            (self._kit / ADDRESS).read_text().strip(),
            self._kit / CA,
            self._kit / LINK_KEY,
            site=self._name,
            poll=poll,
            room=lambda: mailbox.room,
        )
        refused: list[Exception] = []
        thread = threading.Thread(
            target=self._serve, args=(connection, mailbox, refused), name="connection", daemon=True
        )
        thread.start()
        try:
            return self._train_until_done(mailbox)
        except EndedError as error:
            raise (refused[0] if refused else error) from None
        except Exception as error:
            mailbox.fail(f"it met an error of its own ({type(error).__name__}); its own log says more")
            thread.join(_SECONDS_TO_SAY_GOODBYE)
            raise
        finally:
            connection.stop()
            thread.join(_SECONDS_TO_SAY_GOODBYE)

    def _serve(self, connection: Any, mailbox: Mailbox, refused: list[Exception]) -> None:
        try:
            from scinfl.flower.site._client_app import client_app

            connection.serve(client_app(mailbox, stop=connection.stop))
        except Exception as error:  # noqa: BLE001 (raised in the thread that waits)
            refused.append(error)
            mailbox.handle(Message("end", {"reason": str(error)}))

    def _train_until_done(self, mailbox: Mailbox) -> Path:
        while True:
            self._report(f"site '{self._name}' waits for the server")
            try:
                return self._train(mailbox, *mailbox.wait_for_facts())
            except OtherRunError:
                self._report("the server began another run")
            except EndedError:
                if self._odd:
                    raise ValueError(other_job(self._odd)) from None
                raise

    def answer(self, run: str, message: Message) -> Message:
        """Answer one message, from what the folder holds."""
        if message.kind == "hello":
            return self._greet(message)
        kept = KeptFacts(self._kit / RUNS / run / FACTS)
        facts = kept.of(message)
        if facts is None:
            return HELLO_FIRST
        one, answered = OneMessage(message), LastAnswer(self._kit / RUNS / run / ANSWER)
        if (again := answered.to(message)) is not None:
            return again
        with suppress(AnsweredError):
            self._train(one, run, facts)
        kept.keep(facts)
        return answered.keep(message, one.reply) if one.reply else unread("it brings nothing for this site")

    def _train(self, mailbox: Mailbox | OneMessage, run: str, sealed: Mapping[str, bytes]) -> Path:
        facts = open_facts(sealed, self._key, self._job, run, identities=self._identities())
        check_facts(facts, self._task.facts())
        ledger, own = self._agreed(run, sorted(facts))
        self._task.join(facts)
        self._check_shown(facts)
        least = self._job.min_sites if self._name in self._accepted else self._task.least(facts)
        if not (self._kit / RUNS / run / FACTS).exists():
            self._report(f"{len(facts)} sites agree on {self._task.describe(facts)}")

        def be_ready(position: int) -> None:
            mailbox.be_ready(Message("ready", {"position": position, "agreed": agreed, "least": least}))

        journal = self._kit / RUNS / run
        steps = RoundHistory(mailbox, ready=be_ready, folder=journal / SUMS)
        engine = partial(train_remote, steps=steps, report=self._report_round)
        model = self._make_model(facts, self._start(journal))
        agreed = agreement_hash(self._task.digest(facts, model), self._key, run)
        masking = self._masking(run, agreed, journal, ledger, least)
        summing = RemoteSum(masking, steps, self._name, min_sites=self._job.min_sites)
        with accounted_in(ledger.book(own)):
            self._train_model(model, facts, engine, [*self._noise(), summing], journal=journal, run=run)
        path = self._kit / MODEL
        model.save(path, site=self._name if model.is_personal else None, overwrite=True)
        ledger.finish(run)
        steps.finish()
        self._report(f"wrote the model to '{path}'")
        return path

    def _agreed(self, run: str, members: Sequence[str]) -> tuple[Ledger, AgreedRun]:
        """Ledger of this site, and a run in it that was agreed to."""
        _check_ledger_is_kept(self._kit)
        ledger = Ledger(self._kit, self._identity)
        _check_run_is_kept(self._kit, run, is_known=ledger.knows(run))
        if not ledger.knows(run) and (ledger.n_runs if self._is_brief else self._n_new) >= self._n_runs:
            cure = (
                "Raise `scinfl-runs` in the configuration of the node to agree to it."
                if self._is_brief
                else "Start the site again to agree to it; a service that may take part in several passes `--runs`."
            )
            msg = (
                f"Expected at most {self._n_runs} {'' if self._is_brief else 'new '}run{'s' * (self._n_runs > 1)}, as "
                f"was agreed to, found that the server begins another. Nothing was sent. {cure}"
            )
            raise RuntimeError(msg)
        self._n_new += not ledger.knows(run)
        noise = [name for name, _ in self._job.noise]
        own = AgreedRun(run, self._job.digest, members, self._fingerprint, noise, self._accepted)
        uploads = self._kit / RUNS / run / UPLOADS
        if not uploads.exists():
            uploads.parent.parent.mkdir(mode=0o700, exist_ok=True)
            uploads.parent.mkdir(exist_ok=True)
            write_atomically(uploads, b"")  # before the ledger knows the run: from then on it must be there
        ledger.add(own)
        return ledger, own

    def _check_shown(self, facts: Facts) -> None:
        """Refuse, unless it was agreed to, sums of so few sites that they show what this one contributes."""
        for part, sites in self._task.shown(facts).items():
            who = "each of them" if len(sites) > 1 else "every site"
            what = (
                f"'{part}' is measured at {first_of(sites)} alone, fewer than the {self._job.min_sites} sites that "
                f"`min_sites` asks for: {who} can compute what is summed of it at {'the other' * (len(sites) > 1)}"
                f"{'this site' * (len(sites) == 1)}"
            )
            if self._name in sites and self._name not in self._accepted:
                msg = (
                    f"Expected parts of the model that enough sites have, found that {what}. Nothing was sent. Agree "
                    f"to it with `--accept-difference {self._name}`, or let another site measure it."
                )
                raise ValueError(msg)
            self._report(what)

    def _report_round(self, record: Mapping[str, Any]) -> None:
        shown = [f"loss {record['train_loss']:.3f}"] if "train_loss" in record else []
        shown += [f"{name} {value:.3f}" for name, value in record.items() if name.startswith(_SHOWN)]
        self._report(
            f"round {record['round']}/{self._job.n_rounds}: {record['n_sites']} sites, {', '.join(shown)}, "
            f"{record['seconds']:.1f} s"
        )

    def _greet(self, message: Message) -> Message:
        self._compare_job(str(message.fields["job"]))
        run = str(message.fields["run"])
        hello = {
            "run": run,
            "site": self._name,
            "checks": site_checks(self._task, self._key, self._job, run, identities=self._identities()),
            "key": [self._key.version, self._key.fingerprint],
            "facts": seal_facts(
                self._task.facts(), self._key, self._name, self._job, run, identities=self._identities()
            ).hex(),
        }
        return Message("hello", {**hello, "signature": self._identity.sign(hello_content(hello)).hex()})

    def _compare_job(self, text: str) -> None:
        """Report what differs in the job of the server, which refuses this site then."""
        self._odd = differences(self._job, text)
        if self._odd:
            self._report(f"the job of the server differs from the one agreed to here: {self._odd}")

    # ---- what it trains with

    def _start(self, journal: Path) -> Path:
        """Copy of the model that a run goes on from: at its end the run replaces that model."""
        start = journal / START
        if self._job.continues and not start.exists():
            self._check_start()
            copy_folder(self._kit / MODEL, start)
        return start

    def _check_start(self) -> None:
        if self._job.continues and not (self._kit / MODEL).is_dir():
            msg = (
                f"Expected the model to go on from in '{self._kit / MODEL}', as the job asks for with `continues`, "
                "found none. Let another site hand over its folder, which is sealed with the key."
            )
            raise FileNotFoundError(msg)

    def _make_model(self, facts: Facts, start: Path) -> Any:
        return self._task.load_model(start, self._key) if self._job.continues else self._task.make_model(facts)

    def _train_model(
        self, model: Any, facts: Facts, engine: Callable[..., Any], protections: Sequence[Protection], **options: Any
    ) -> None:
        from scinfl.model.base import RemoteContext

        model.train(
            **self._job.train_options,
            key=self._key,
            strategy=self._strategy(),
            protections=protections,
            device=self._settings.device,
            progress=False,
            remote=RemoteContext(self._name, self._job.sites, engine, facts),
            **options,
        )

    def _strategy(self) -> Strategy:
        return getattr(federation, self._job.strategy)(**self._job.strategy_options)

    def _noise(self) -> list[Protection]:
        return [getattr(privacy, name)(**options) for name, options in self._job.noise]

    def _identities(self) -> str:
        """Digest of the pinned identities of all sites of the job."""
        pinned = pinned_identities(self._kit)
        if missing := sorted(set(self._job.sites) - pinned.keys()):
            msg = (
                f"Expected the public identity of every site of the job in '{self._kit / IDENTITIES}', found none of "
                f"{first_of(missing)}. Get 'identities/{missing[0]}.json' from the operator, and compare fingerprints "
                "with that site by telephone."
            )
            raise FileNotFoundError(msg)
        return digest_of([pinned[site].to_text() for site in sorted(self._job.sites)]).hex()

    def _masking(self, run: str, agreed: str, journal: Path, ledger: Ledger, least: int) -> Masking:
        trains = False

        def watch(places: Sequence[Place], members: Sequence[str], moment: Moment) -> None:
            if strangers := sorted(set(members) - set(self._job.sites)):
                msg = (
                    f"Expected sums of sites of the job, found {first_of(strangers)} in one. Do not trust this server."
                )
                raise TamperedSumError(msg)
            nonlocal trains
            trains |= any(purpose in WITH_ROUNDS for purpose, _ in places)
            if any(number <= 1 or purpose not in WITH_ROUNDS for purpose, number in places):
                # later rounds draw numbers
                ledger.check_members(run, members, before_training=not trains)
                if moment != "here":  # a false sum is not held against the sites that it names
                    ledger.note_members(run, members, before_training=not trains, is_read=moment == "read")

        protection, uploads = self._sum(run, least), UploadLog(journal / UPLOADS, self._kit / LEDGER / f"{run}.steps")
        protection.open_run(run_context(self._key, self._job, run, self._identities(), agreed))
        if not isinstance(protection, PairwiseSum):
            return Masking(protection, self._name, uploads, watch=watch)
        seal = own_seal(self._identity, "masks")
        file, keeps = journal / MASKS, self._is_brief
        return PairwiseMasking(protection, self._name, uploads, file=file, seal=seal, keeps_keys=keeps, watch=watch)

    def _sum(self, run: str, least: int) -> KeyedSum | PairwiseSum:
        options: dict[str, Any] = {"run": run, "bits": self._job.bits, "min_sites": least}
        options["identities"] = {self._name: self._identity}
        if self._job.sum == "keyed":
            return KeyedSum(self._key, **options)
        pinned = {site: own for site, own in pinned_identities(self._kit).items() if site in self._job.sites}
        return PairwiseSum(self._key, pinned=pinned, **options)


def _check_ledger_is_kept(kit: Path) -> None:
    """Refuse a folder with runs and no ledger."""
    if any((kit / RUNS).glob("*")) and not any((kit / LEDGER).glob("*")):
        msg = (
            f"Expected the ledger of this site in '{kit / LEDGER}', found none beside '{kit / RUNS}': it was deleted. "
            "It holds which runs were agreed to, and the privacy spent: restore it from a copy."
        )
        raise ValueError(msg)


def _check_run_is_kept(kit: Path, run: str, *, is_known: bool) -> None:
    """Refuse to go on with a run that left nothing here."""
    if is_known and not (kit / RUNS / run / UPLOADS).exists():
        msg = (
            f"Expected what this site sent in run '{run[:12]}' in '{kit / RUNS / run}', found none: it was deleted. A "
            "server could ask for a sum that was read before again, without a site. Restore it from a copy, or let the "
            "operator start a new run."
        )
        raise ValueError(msg)


def _nobody(*args: Any, **kwargs: Any) -> Any:
    del args, kwargs
    msg = "Expected a dry run, found training without a server."
    raise RuntimeError(msg)
