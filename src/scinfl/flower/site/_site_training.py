"""One training at one site: it reads the sums that the server cannot, and makes the next state of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from scinfl.federation import Journal, Payload, Protection, Run, Site, State, Strategy, Update, rounds
from scinfl.federation.rounds import encode
from scinfl.flower.protocol._message import Message
from scinfl.flower.protocol._round_history import RoundHistory, Sum
from scinfl.flower.site._remote_sum import RemoteSum
from scinfl.privacy.aggregation import Place, purpose_of, total_of

logger = logging.getLogger(__name__)

_VALIDATING = "sites that validate"
_WORK = "work"  # file of the journal
_HEAD = ("site", "round", "n_obs", "weight", "metrics", "key_version", "purpose")
_TOTALS = ("training", "evaluation", _VALIDATING)


class SiteTraining:
    r"""Trains at one site, in the steps that the server asks for.

    The first step sums the weights of all sites. Step :math:`r` after it sums the updates of round :math:`r`, and the
    validation metrics of round :math:`r - 1`, so that a round takes one message each way. A last step sums the metrics
    of the last round. Every site applies every sum in order, and so all come to the same model.
    """

    def __init__(
        self,
        site: Site,
        rules: rounds.Rules,
        protections: Sequence[Protection],
        state: State,
        *,
        steps: RoundHistory,
        payload: Payload | None,
        journal: Journal | None,
        settings: Mapping[str, Any],
        report: Callable[[Mapping[str, Any]], None],
    ) -> None:
        *opened, summing = protections
        if not isinstance(summing, RemoteSum):
            msg = f"Expected a sum that travels as the last protection, found {summing!r}."
            raise TypeError(msg)
        self._site, self._rules, self._opened = site, rules, opened
        self._masking, self._protection, self._min_sites = summing.masking, summing.protection, summing.min_sites
        self._steps, self._report, self._payload = steps, report, payload or Payload()
        self._journal, self._settings = journal, dict(settings)
        self._run = Run(state=state, smooth=state, best_state=state)
        self._spending: rounds.SpendsPrivacy | None = rounds.budget_of(protections)
        self._n_values = sum(array.size for array in state.values())
        self._start = 0  # step of the whole run at which this training begins
        self._is_done = False
        self._record: dict[str, Any] | None = None  # of the round whose metrics are still to come
        self._local: State = {}  # what stayed here in that round
        self._metrics: dict[str, list[str]] = {}  # names, by purpose
        self._totals: dict[str, float] = {}
        self._made: list[Update] | None = None  # for the next step
        self._opened_made: list[Update] = []  # the same behind noise
        self._started = time.time()
        self._worked = 0.0

    def __call__(self) -> Run:
        """Take part in the whole training."""
        self._open()
        if self._spending is not None:
            self._spending.open_account(n_sites=1, n_rounds=self._rules.n_rounds, journal=self._journal)
        while not self._is_done:
            position, places = self._steps.position, self._places()
            sums = self._steps.sums(self._answer, n_bytes=self._protection.bytes_of(self._n_values))
            counted = self._open_sums(position, places, sums)
            for combined, members in sums:
                self._take_sum(combined, members, counted=counted)
                if self._is_done:
                    break
            self._masking.close_sums()
            self._made = None
            self._keep()
        return self._run

    @property
    def _step(self) -> int:
        """Number of the step within this training."""
        return self._steps.position - self._start

    @property
    def _validates(self) -> bool:
        """Whether any site sets rows aside."""
        return self._totals["evaluation"] > 0

    # ---- sums that come back

    def _open_sums(self, position: int, places: Sequence[Place], sums: Sequence[Sum]) -> bool:
        """Make ready to read sums; returns whether this site has a term in them."""
        if self._made is None:  # it was away, or started again
            for purpose, _ in places:
                if purpose_of(purpose) is None:
                    self._expect(purpose, self._names_of(purpose))
        counted = self._masking.open_sums(position, places, sums)
        for purpose, number in () if counted else places:
            logger.warning("%s of round %d went on without this site.", purpose.capitalize(), number)
            if self._journal is not None:
                self._journal.log("left out", purpose=purpose, round=number)
        return counted

    def _take_sum(self, combined: Update, members: Sequence[Update], *, counted: bool) -> None:
        purpose = combined.purpose
        if (of := purpose_of(purpose)) is not None:
            self._totals[of] = self._protection.decode_weights(of, combined, members)
            if len(self._totals) == len(_TOTALS):
                self._check_validating_sites()
            return
        mean = self._protection.decode(combined, members)
        if purpose == "training":
            self._take_round(mean, len(members), combined.n_bytes * len(members), counted=counted)
        else:
            self._finish_round(mean)

    def _check_validating_sites(self) -> None:
        n, least = round(self._totals[_VALIDATING]), self._min_sites
        if 0 < n < least:
            msg = (
                f"Expected validation rows at {least} sites at least, as `min_sites` asks for, found them at {n}: the "
                "mean of few would show their metrics to the others. Raise `validation_size` in the job, or make it 0."
            )
            raise ValueError(msg)

    def _take_round(self, mean: Update, n_sites: int, n_bytes: int, *, counted: bool) -> None:
        run, number = self._run, mean.round
        self._rules.apply(run, number, mean)
        now = time.time()
        self._record = rounds.record_of(
            number,
            mean,
            n_sites=n_sites,
            n_bytes=n_bytes,
            seconds=now - self._started,
            spending=self._spending,
            site=self._site.name,
        )
        self._started, self._local = now, self._site.local_state()
        if counted and self._made is not None:
            own = next(update for update in self._made if update.purpose == "training")
            run.site_history.append(rounds.site_record(number, own, self._spending))
        if not self._validates:
            self._finish_round(None)

    def _finish_round(self, validation: Update | None) -> None:
        run, record = self._run, self._record
        if record is None:
            msg = "Expected metrics of a finished round, found them before. Do not trust this server."
            raise ValueError(msg)
        self._record = None
        self._rules.finish(run, record, validation, lambda: {self._site.name: self._local})
        self._is_done = self._rules.is_finished(run)
        self._report(run.history[-1])

    def _expect(self, purpose: str, names: Sequence[str]) -> None:
        """Let the protection know what a sum holds that this process has sent nothing for."""
        state = self._run.state if purpose == "training" else {}
        metrics = dict.fromkeys(names, 0.0)
        self._protection.expect(
            self._totals[purpose], Update(self._site.name, 0, state, 0, metrics=metrics, purpose=purpose)
        )

    def _names_of(self, purpose: str) -> list[str]:
        """Names of the metrics that all sites send for a purpose."""
        if purpose not in self._metrics:
            self._metrics[purpose] = self._find_names(purpose)
        return self._metrics[purpose]

    def _find_names(self, purpose: str) -> list[str]:
        if purpose == "evaluation":
            return sorted(self._site.metric_names)
        if self._spending is not None:
            return []  # of single rows; nor may another round be spent to find that out
        local = self._site.local_state()
        sample = self._site.fit(1, self._run.state)
        self._site.load_local_state(local)
        return sorted(sample.metrics)

    # ---- terms that leave

    def _places(self) -> list[Place]:
        """What is summed in the next step: metrics of the last round and parameters of the next."""
        if self._step == 0:
            return [(total_of(purpose), 0) for purpose in _TOTALS]
        places = [] if self._record is None else [("evaluation", int(self._record["round"]))]
        return [*places, *([("training", self._step)] if self._step <= self._rules.n_rounds else [])]

    def _answer(self, asked: Mapping[str, Any]) -> Message:
        """What this site sends for the next step."""
        position, places = self._steps.position, self._places()
        if self._step == 0:
            return self._masking.answer(asked, position, places, self._weights)
        if self._made is None:
            self._made = self._work()
            self._keep_work()
        return self._masking.answer(asked, position, places, self._encode)

    def _encode(self) -> list[Update]:
        self._payload.check(self._made or [])
        encoded = [self._protection.encode(update) for update in self._opened_made]
        self._payload.add(self._opened_made, encoded)
        return encoded

    def _weights(self) -> list[Update]:
        n_validation = float(self._site.n_validation)
        values = (self._rules.strategy.weight(self._site.n_obs), n_validation, float(n_validation > 0))
        weights = dict(zip(_TOTALS, values, strict=True))
        for purpose, weight in weights.items():
            self._payload.add_totals([self._protection], purpose, {self._site.name: weight})
        name = self._site.name
        return [self._protection.encode_weight(purpose, name, weight) for purpose, weight in weights.items()]

    def _work(self) -> list[Update]:
        """Metrics of the last round and parameters of the next."""
        updates, started = [], time.perf_counter()
        if self._record is not None:
            updates.append(self._evaluate(self._record["round"]))
        if self._step <= self._rules.n_rounds:
            updates.append(self._site.fit(self._step, self._run.state))
        self._take_up([encode(self._opened, update) for update in updates])
        self._worked = time.perf_counter() - started
        return updates

    def _take_up(self, opened: list[Update]) -> None:
        """Make ready to send updates."""
        self._opened_made = opened
        for update in opened:
            self._metrics[update.purpose] = sorted(update.metrics)
            self._protection.learn(update)

    def _evaluate(self, number: int) -> Update:
        """Metrics of this site; without rows to validate on, a term of weight 0, so that all sites send the same."""
        found = self._site.evaluate(number, self._run.smooth)
        if found is not None:
            return found
        metrics = dict.fromkeys(self._names_of("evaluation"), 0.0)
        return Update(self._site.name, number, {}, 0, 0.0, metrics=metrics, purpose="evaluation")

    # ---- what is kept

    def _open(self) -> None:
        """Continue the training of a journal."""
        self._start = self._steps.position
        run, journal = self._run, self._journal
        cure = (
            "The data, the job or the key changed since: take them as they were, or let the operator start a new run."
        )
        if journal is None or (kept := rounds.resume(run, journal, self._settings, cure)) is None:
            return
        groups, record = kept
        run.best_local = {self._site.name: groups["best local"]}
        self._steps.go_to(record["position"])
        self._start, self._record, self._metrics = record["start"], record["record"], record["metrics"]
        self._totals, self._local, self._is_done = record["totals"], groups["local"], record["done"]
        self._started = record["started"]
        self._site.load_local_state(groups["local"])
        for purpose in ("training", "evaluation") if not self._is_done else ():
            if self._totals.get(purpose):
                self._expect(purpose, self._metrics.get(purpose, ()))
        for purpose, bound in record["bounds"].items():
            self._protection.widen(purpose, bound)
        self._find_work(journal)
        journal.log("resume", step=self._step)

    def _keep_work(self) -> None:
        """Keep what was made for this step: a site that starts again neither trains nor pays for noise twice."""
        if self._journal is None:
            return
        record = {
            "position": self._steps.position,
            "updates": [{name: getattr(update, name) for name in _HEAD} for update in self._opened_made],
            "own": [dict(update.metrics) for update in self._made or ()],  # which noise leaves out
            "seconds": self._worked,
        }
        groups = {update.purpose: update.state for update in self._opened_made}
        self._journal.save({**groups, "local": self._site.local_state()}, record, _WORK)

    def _find_work(self, journal: Journal) -> None:
        kept = journal.load(_WORK)
        if kept is None or kept[1]["position"] != self._steps.position:
            return
        groups, record = kept
        self._take_up([Update(state=groups[head["purpose"]], **head) for head in record["updates"]])
        pairs = zip(self._opened_made, record["own"], strict=True)
        self._made = [replace(update, metrics=own) for update, own in pairs]
        self._worked = record["seconds"]
        self._site.load_local_state(groups["local"])

    def _keep(self) -> None:
        if self._journal is None:
            return
        run = self._run
        self._journal.log("step", step=self._step, rounds=run.n_rounds, local_seconds=round(self._worked, 3))
        own = {"local": self._local or self._site.local_state(), "best local": run.best_local.get(self._site.name, {})}
        rounds.keep(
            run,
            self._journal,
            self._settings,
            own,
            start=self._start,
            position=self._steps.position,
            record=self._record,
            metrics=self._metrics,
            totals=self._totals,
            bounds={purpose: self._protection.bound_of(purpose) for purpose in ("training", "evaluation")},
            done=self._is_done,
            started=self._started,
        )


def train_remote(
    sites: Sequence[Site],
    state: State,
    strategy: Strategy,
    protections: Sequence[Protection],
    *,
    steps: RoundHistory,
    report: Callable[[Mapping[str, Any]], None],
    n_rounds: int,
    smoothing: float = 0.0,
    monitor: str = "validation_loss",
    patience: int | None = None,
    journal: Journal | None = None,
    settings: Mapping[str, Any] | None = None,
    derive: rounds.Derive | None = None,
    payload: Payload | None = None,
    **others: Any,
) -> Run:
    """Take part in a training with one site; in place of :func:`scinfl.federation.simulate`."""
    del others
    (site,) = sites
    training = SiteTraining(
        site,
        rounds.Rules(strategy, n_rounds, smoothing, monitor, patience, derive),
        protections,
        state,
        steps=steps,
        payload=payload,
        journal=journal,
        settings=settings or {},
        report=report,
    )
    return training()
