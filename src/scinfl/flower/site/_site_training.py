"""One training at one site: it reads the sums that the server cannot, and makes the next state of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scinfl.federation import Journal, Payload, Protection, Run, Site, State, Strategy, Update
from scinfl.federation._protection import SpendsPrivacy, encode
from scinfl.federation._simulate import _best_round, _smoothed, _spending, _stalled
from scinfl.flower.protocol._message import Message
from scinfl.flower.protocol._round_history import RoundHistory, as_update
from scinfl.flower.site._remote_sum import RemoteSum
from scinfl.privacy.aggregation._secure_sum import purpose_of, total_of

logger = logging.getLogger(__name__)

_JUDGES = "sites that validate"
_TOTALS = ("training", "evaluation", _JUDGES)


class SiteTraining:
    r"""Trains at one site, in the steps that the server asks for.

    The first step sums the weights of all sites. Step :math:`r` after it sums the updates of round :math:`r`, and the
    validation metrics of round :math:`r - 1`, so that a round takes one message each way. A last step sums the metrics
    of the last round. Every site applies every sum in order, and so all come to the same model.

    Parameters
    ----------
    site, strategy, protections, state, n_rounds, smoothing, monitor, patience, derive, payload, journal, settings
        See :func:`scinfl.federation.simulate`; the last protection is a :class:`RemoteSum`.
    steps
        RoundHistory of the run.
    tell
        Called with the record of every finished round.
    """

    def __init__(
        self,
        site: Site,
        strategy: Strategy,
        protections: Sequence[Protection],
        state: State,
        *,
        steps: RoundHistory,
        n_rounds: int,
        smoothing: float,
        monitor: str,
        patience: int | None,
        derive: Callable[[Mapping[str, float], float], Mapping[str, float]] | None,
        payload: Payload | None,
        journal: Journal | None,
        settings: Mapping[str, Any],
        tell: Callable[[Mapping[str, Any]], None],
    ) -> None:
        *opened, summing = protections
        if not isinstance(summing, RemoteSum):
            msg = f"Expected a sum that travels as the last protection, found {summing!r}."
            raise TypeError(msg)
        self._site, self._strategy, self._opened = site, strategy, opened
        self._masking, self._protection = summing.masking, summing.protection
        self._steps, self._tell = steps, tell
        self._n_rounds, self._smoothing, self._monitor, self._patience = n_rounds, smoothing, monitor, patience
        self._derive, self._payload = derive, payload or Payload()
        self._journal, self._settings = journal, dict(settings)
        self._run = Run(state=state, smooth=state, best_state=state)
        self._spending: SpendsPrivacy | None = _spending(protections)
        self._start = 0  # step of the whole run at which this training begins
        self._is_done = False
        self._record: dict[str, Any] | None = None  # of the round whose metrics are still to come
        self._local: State = {}  # what stayed here in that round
        self._metrics: dict[str, list[str]] = {}  # names, by purpose
        self._totals: dict[str, float] = {}
        self._made: tuple[int, list[Update]] | None = None
        self._started = time.perf_counter()
        self._worked = 0.0

    def __call__(self) -> Run:
        """Take part in the whole training."""
        self._open()
        if self._spending is not None:
            self._spending.open_account(n_sites=1, n_rounds=self._n_rounds, journal=self._journal)
        while not self._is_done:
            for combined, members in self._steps.sums(self._answer):
                self._take_sum(combined, members)
                if self._is_done:
                    break
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

    def _take_sum(self, combined: Update, members: Sequence[Update]) -> None:
        counted = self._site.name in {member.site for member in members}
        if not counted:
            self._was_left_out(combined)
        purpose = combined.purpose
        if (of := purpose_of(purpose)) is not None:
            self._totals[of] = self._protection.decode_weights(of, combined, members)
            if len(self._totals) == len(_TOTALS):
                self._check_judges()
            return
        mean = self._protection.decode(combined, members)
        if purpose == "training":
            self._take_round(mean, len(members), combined.n_bytes * len(members), counted=counted)
        else:
            self._take_metrics(mean)

    def _check_judges(self) -> None:
        n, least = round(self._totals[_JUDGES]), self._protection.min_sites
        if 0 < n < least:
            msg = (
                f"Expected validation rows at {least} sites at least, as `min_sites` asks for, found them at {n}: the "
                "mean of few would show their metrics to the others. Raise `validation_size` in the job, or make it 0."
            )
            raise ValueError(msg)

    def _take_round(self, mean: Update, n_sites: int, n_bytes: int, *, counted: bool) -> None:
        run, number = self._run, mean.round
        run.state, run.memory = self._strategy.apply(run.state, mean, run.memory)
        run.smooth = _smoothed(run.smooth, run.state, min(self._smoothing, (number - 1) / (number + 9)))
        now = time.perf_counter()
        self._record = {
            "round": number,
            **{f"train_{name}": value for name, value in mean.metrics.items()},
            "n_sites": n_sites,
            "bytes_sent": n_bytes,
            "seconds": now - self._started,
        }
        spent = {} if self._spending is None else {"epsilon": self._spending.epsilon(self._site.name)}
        self._record |= spent
        self._started, self._local = now, self._site.local_state()
        if counted and self._made is not None:
            own = next(update for update in self._made[1] if update.purpose == "training")
            run.site_history.append({"round": number, "site": own.site, "n_obs": own.n_obs, **own.metrics, **spent})
        if not self._validates:
            self._finish_round({})

    def _take_metrics(self, mean: Update) -> None:
        values = dict(mean.metrics)
        if self._derive is not None:
            values = dict(self._derive(mean.metrics, mean.weight))
        self._finish_round({f"validation_{name}": value for name, value in values.items()})

    def _finish_round(self, validation: Mapping[str, float]) -> None:
        run, record = self._run, self._record
        if record is None:
            msg = "Expected metrics of a finished round, found them before. Do not trust this server."
            raise ValueError(msg)
        last = ("n_sites", "bytes_sent", "seconds", "epsilon")
        tail = {name: record.pop(name) for name in last if name in record}
        run.history.append({**record, **validation, **tail})
        self._record = None
        if _best_round(run.history, self._monitor) == record["round"]:
            run.best_round, run.best_state = record["round"], run.smooth
            run.best_local = {self._site.name: self._local}
        self._is_done = run.n_rounds >= self._n_rounds or _stalled(run, self._patience)
        self._tell(run.history[-1])

    def _was_left_out(self, combined: Update) -> None:
        """Read a sum without a term of this site, which was away or late."""
        self._protection.forget()
        logger.warning("%s of round %d went on without this site.", combined.purpose.capitalize(), combined.round)
        if self._journal is not None:
            self._journal.log("left out", purpose=combined.purpose, round=combined.round)
        if purpose_of(combined.purpose) is None:
            self._expect(combined.purpose)
            self._protection.follow(combined)

    def _expect(self, purpose: str) -> None:
        """Tell the protection what a sum holds that this process has sent nothing for."""
        state = self._run.state if purpose == "training" else {}
        metrics = dict.fromkeys(self._names_of(purpose), 0.0)
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

    def _answer(self, asked: Mapping[str, Any]) -> Message:
        """What this site sends for the next step."""
        if self._step == 0:
            places = [(total_of(purpose), 0) for purpose in _TOTALS]
            return self._masking.answer(asked, self._steps.position, places, self._weights)
        if self._made is None or self._made[0] != self._step:
            self._made = (self._step, self._work())
        places = [(update.purpose, update.round) for update in self._made[1]]
        return self._masking.answer(asked, self._steps.position, places, self._encode)

    def _encode(self) -> list[Update]:
        updates = self._made[1]  # type: ignore[index]
        self._payload.check(updates)
        opened = [encode(self._opened, update) for update in updates]
        encoded = [self._protection.encode(update) for update in opened]
        self._payload.add(opened, encoded)
        return encoded

    def _weights(self) -> list[Update]:
        n_validation = float(self._site.n_validation)
        values = (self._strategy.weight(self._site.n_obs), n_validation, float(n_validation > 0))
        weights = dict(zip(_TOTALS, values, strict=True))
        for purpose, weight in weights.items():
            self._payload.add_totals([self._protection], purpose, {self._site.name: weight})
        name = self._site.name
        return [as_update(self._protection.encode_weight(purpose, name, w)) for purpose, w in weights.items()]

    def _work(self) -> list[Update]:
        """Metrics of the last round and parameters of the next."""
        updates, started = [], time.perf_counter()
        if self._record is not None:
            updates.append(self._evaluate(self._record["round"]))
        if self._step <= self._n_rounds:
            updates.append(self._site.fit(self._step, self._run.state))
        for update in updates:
            self._metrics[update.purpose] = sorted(encode(self._opened, update).metrics)
        self._worked = time.perf_counter() - started
        return updates

    def _evaluate(self, number: int) -> Update:
        """Metrics of this site; without rows to validate on, a term of weight 0, so that all sites send alike."""
        found = self._site.evaluate(number, self._run.smooth)
        if found is not None:
            return found
        metrics = dict.fromkeys(self._names_of("evaluation"), 0.0)
        return Update(self._site.name, number, {}, 0, 0.0, metrics=metrics, purpose="evaluation")

    # ---- what is kept

    def _open(self) -> None:
        """Take up the training where a journal left it."""
        self._start = self._steps.position
        journal, settings = self._journal, self._settings
        kept = None if journal is None else journal.load()
        if journal is None or kept is None:
            if journal is not None:
                journal.log("start", settings=settings)
            return
        groups, record = kept
        if record["settings"] != settings:
            odd = sorted(name for name in settings if record["settings"].get(name) != settings[name])
            msg = (
                f"Expected the journal in '{journal.path}' to hold this run, found one with other {odd}. The data, the "
                "job or the key changed since: take them as they were, or let the operator start a new run."
            )
            raise ValueError(msg)
        run = self._run
        run.state, run.smooth, run.best_state, run.memory = (groups[n] for n in ("state", "smooth", "best", "memory"))
        run.best_round, run.history, run.site_history = record["best_round"], record["history"], record["site_history"]
        run.best_local = {self._site.name: groups["best local"]}
        self._steps.go_to(record["position"])
        self._start, self._record, self._metrics = record["start"], record["record"], record["metrics"]
        self._totals, self._local, self._is_done = record["totals"], groups["local"], record["done"]
        self._site.load_local_state(groups["local"])
        for purpose in ("training", "evaluation") if not self._is_done else ():
            if self._totals.get(purpose):
                self._expect(purpose)
        for purpose, bound in record["bounds"].items():
            self._protection.widen(purpose, bound)
        journal.log("resume", step=self._step)

    def _keep(self) -> None:
        if self._journal is None:
            return
        run = self._run
        self._journal.log("step", step=self._step, rounds=run.n_rounds, local_seconds=round(self._worked, 3))
        self._journal.save(
            {
                "state": run.state,
                "smooth": run.smooth,
                "best": run.best_state,
                "memory": run.memory,
                "local": self._local or self._site.local_state(),
                "best local": run.best_local.get(self._site.name, {}),
            },
            {
                "settings": self._settings,
                "best_round": run.best_round,
                "history": run.history,
                "site_history": run.site_history,
                "start": self._start,
                "position": self._steps.position,
                "record": self._record,
                "metrics": self._metrics,
                "totals": self._totals,
                "bounds": {purpose: self._protection.bound_of(purpose) for purpose in ("training", "evaluation")},
                "done": self._is_done,
            },
        )


def train_remote(
    sites: Sequence[Site],
    state: State,
    strategy: Strategy,
    protections: Sequence[Protection],
    *,
    steps: RoundHistory,
    tell: Callable[[Mapping[str, Any]], None],
    n_rounds: int,
    smoothing: float = 0.0,
    monitor: str = "validation_loss",
    patience: int | None = None,
    journal: Journal | None = None,
    settings: Mapping[str, Any] | None = None,
    derive: Callable[[Mapping[str, float], float], Mapping[str, float]] | None = None,
    payload: Payload | None = None,
    **others: Any,
) -> Run:
    """Take part in a training with one site; in place of :func:`scinfl.federation.simulate`."""
    del others
    (site,) = sites
    part = SiteTraining(
        site,
        strategy,
        protections,
        state,
        steps=steps,
        n_rounds=n_rounds,
        smoothing=smoothing,
        monitor=monitor,
        patience=patience,
        derive=derive,
        payload=payload,
        journal=journal,
        settings=settings or {},
        tell=tell,
    )
    return part()
