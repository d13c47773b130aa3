"""A site's side: check the data, agree to what leaves, take part, write the model."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from anndata import AnnData

from scinfl import federation
from scinfl._checks import first_of
from scinfl.federation import Strategy
from scinfl.flower._desk import Desk, EndedError, OtherRunError
from scinfl.flower._job import JOB, SITE_SETTINGS, Job, SiteSettings
from scinfl.flower._kit import ADDRESS, CA, IDENTITY, LINK_KEY
from scinfl.flower._letter import Letter
from scinfl.flower._preflight import (
    agree_labels,
    check_site_data,
    hello_content,
    labels_hash,
    registry_of,
    seal_facts,
    site_checks,
)
from scinfl.flower._require import require_flower
from scinfl.flower._site_data import alone, as_text, read_data
from scinfl.flower._take_part import TakePart, loss_of
from scinfl.privacy import Identity, Key, KeyedSum

logger = logging.getLogger(__name__)

MODEL = "model"
RUNS = "runs"
_SECONDS_TO_SAY_GOODBYE = 60.0


def run_site(
    kit: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | AnnData,
    key: str | os.PathLike[str] | Key,
    agree: Callable[[pd.DataFrame], bool] | None = None,
    tell: Callable[[str], None] = logger.info,
    poll: float = 0.5,
) -> Path:
    """Take part in a federation with the data of one site, until the model is there.

    Checks data, key and job, shows what would leave the site, connects, and trains as the server asks. Survives
    restarts of the server; started again after a crash of its own it goes on where it was. Whatever a run
    brings along, only the installed scinfl is run.

    Parameters
    ----------
    kit
        Folder of the site, from :func:`make_kit`.
    data
        The site's own data, as a file or in memory.
    key
        Secret of the sites, as a file that only its owner may read or in memory.
    agree
        Shown the list of what would leave (see :class:`scinfl.federation.Payload`); whether to go on.
    tell
        Called with one line an event, for example ``print``; the log by default.
    poll
        Seconds between two looks for messages.

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
    site = _Site(Path(kit), data, key, tell)
    if agree is not None and not agree(site.payload()):
        msg = "Nothing was sent: what would leave the site was not agreed to."
        raise RuntimeError(msg)
    with alone(Path(kit)):
        return site.take_part(poll)


def list_payload(
    kit: str | os.PathLike[str], *, data: str | os.PathLike[str] | AnnData, key: str | os.PathLike[str] | Key
) -> pd.DataFrame:
    """What would leave a site in the whole run, from one local epoch; nothing is sent, no server is needed.

    The last layer has a row for each label of this site; in the run it has one for each label of all sites.

    Parameters
    ----------
    kit, data, key
        See :func:`run_site`.
    """
    return _Site(Path(kit), data, key, logger.debug).payload()


class _Site:
    """One site with its data, key and job."""

    def __init__(
        self,
        kit: Path,
        data: str | os.PathLike[str] | AnnData,
        key: str | os.PathLike[str] | Key,
        tell: Callable[[str], None],
    ) -> None:
        from scinfl import model

        self._kit, self._tell = kit, tell
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
        self._kind = getattr(model, self._job.model)
        self._adata = as_text(read_data(data), self._settings.setup_options(self._job).get("labels_key"))
        self._labels = check_site_data(self._adata, self._settings, self._job)

    # ---- what would leave

    def payload(self) -> pd.DataFrame:
        """List of one local epoch, with the labels of this site."""
        labels = self._labels if len(self._labels) > 1 else [*self._labels, "another label"]
        model = self._make_model(labels, _nobody)
        model.train(
            **self._job.train_options,
            key=self._key,
            strategy=self._strategy(),
            protections=[self._protection(run="dry run")],
            device=self._settings.device,
            progress=False,
            dry_run=True,
        )
        return model.payload

    # ---- taking part

    def take_part(self, poll: float) -> Path:
        """Connect, and train run after run until one is finished."""
        from scinfl.flower._link import Link

        desk = Desk(self._greet)
        link = Link(
            (self._kit / ADDRESS).read_text().strip(),
            self._kit / CA,
            self._kit / LINK_KEY,
            site=self._name,
            poll=poll,
        )
        refused: list[Exception] = []
        thread = threading.Thread(target=self._serve, args=(link, desk, refused), name="link", daemon=True)
        thread.start()
        try:
            return self._train_until_done(desk)
        except EndedError as error:
            raise (refused[0] if refused else error) from None
        except Exception as error:
            desk.fail(f"it met an error of its own ({type(error).__name__}); its own log says more")
            thread.join(_SECONDS_TO_SAY_GOODBYE)
            raise
        finally:
            link.stop()
            thread.join(_SECONDS_TO_SAY_GOODBYE)

    def _serve(self, link: Any, desk: Desk, refused: list[Exception]) -> None:
        try:
            link.serve(_client_app(desk, link))
        except Exception as error:  # noqa: BLE001 (told to the thread that waits)
            refused.append(error)
            desk.handle(Letter("end", {"reason": str(error)}))

    def _train_until_done(self, desk: Desk) -> Path:
        while True:
            self._tell(f"site '{self._name}' waits for the server")
            run, facts = desk.wait_for_facts()
            try:
                return self._train(desk, run, {site: bytes.fromhex(own) for site, own in facts.items()})
            except OtherRunError:
                self._tell("the server began another run")

    def _train(self, desk: Desk, run: str, facts: Mapping[str, bytes]) -> Path:
        labels = agree_labels(facts, self._key, self._job, run)
        unknown = sorted(set(self._labels) - set(labels))
        if unknown:
            msg = (
                f"Expected labels that the run began with, found {len(unknown)} others here: {first_of(unknown)}. "
                "Let the operator start a new run with all sites."
            )
            raise ValueError(msg)
        self._tell(f"{len(facts)} sites agree on {len(labels)} labels and {self._adata.n_vars} features")

        def be_ready(position: int) -> None:
            desk.be_ready(Letter("ready", {"position": position, "labels": labels_hash(labels, self._key, run)}))

        model = self._make_model(labels, TakePart(desk, tell=self._tell_round, ready=be_ready))
        runs = self._kit / RUNS
        runs.mkdir(mode=0o700, exist_ok=True)
        model.train(
            **self._job.train_options,
            key=self._key,
            strategy=self._strategy(),
            protections=[self._protection(run)],
            journal=runs / run,
            device=self._settings.device,
            progress=False,
        )
        path = self._kit / MODEL
        model.save(path, site=self._name if model.is_personal else None, overwrite=True)
        desk.answer(Letter("finished", {}))
        self._tell(f"wrote the model to '{path}'")
        return path

    def _tell_round(self, record: Mapping[str, Any]) -> None:
        shown = [f"loss {loss_of(record):.3f}"]
        shown += [f"{name} {value:.3f}" for name, value in record.items() if name.startswith("validation_")]
        self._tell(
            f"round {record['round']}/{self._job.n_rounds}: {record['n_sites']} sites, {', '.join(shown)}, "
            f"{record['seconds']:.1f} s"
        )

    def _greet(self, letter: Letter) -> Letter:
        theirs = Job.parse(str(letter.fields["job"]))
        if theirs.digest != self._job.digest:
            odd = ", ".join(self._job.differences(theirs))
            self._tell(f"the job of the server differs from the one agreed to here: {odd}")
        run = str(letter.fields["run"])
        hello = {
            "run": run,
            "site": self._name,
            "checks": site_checks(self._adata, self._key, self._job, self._settings, run),
            "key": [self._key.version, self._key.fingerprint],
            "facts": seal_facts(self._labels, self._key, self._name, self._job, run).hex(),
        }
        return Letter("hello", {**hello, "signature": self._identity.sign(hello_content(hello)).hex()})

    # ---- what it trains with

    def _make_model(self, labels: list[str], engine: Callable[..., Any]) -> Any:
        from scinfl.model._base import Seat

        options = self._settings.setup_options(self._job)
        registry = registry_of(self._adata, labels, self._kind, options)
        self._kind.setup_anndata(self._adata, source_registry=registry, **options)
        model = self._kind(self._adata, **self._job.model_options)
        model._seat = Seat(self._name, self._job.sites, engine)
        return model

    def _strategy(self) -> Strategy:
        return getattr(federation, self._job.strategy)(**self._job.strategy_options)

    def _protection(self, run: str) -> KeyedSum:
        return KeyedSum(
            self._key,
            run=run,
            bits=self._job.bits,
            min_sites=self._job.min_sites,
            identities={self._name: self._identity},
        )


def _client_app(desk: Desk, link: Any) -> Any:
    """App that hands every message to the desk; it leaves once the last answer is given."""
    from flwr.app import Message
    from flwr.clientapp import ClientApp

    from scinfl.flower._records import from_message, to_records

    app = ClientApp()

    def answer(message: Message, context: Any) -> Message:
        del context
        try:
            letter = desk.handle(from_message(message))
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("The server sent what cannot be read: %s", error)
            letter = Letter("unread")
        if letter.kind in ("finished", "failed", "bye"):
            link.stop()
        return Message(to_records(letter), reply_to=message)

    app.train()(answer)
    app.query()(answer)
    return app


def _nobody(*args: Any, **kwargs: Any) -> Any:
    del args, kwargs
    msg = "Expected a dry run, found training without a server."
    raise RuntimeError(msg)
