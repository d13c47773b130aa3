"""Where the run of one site stands: it reads the sums that the server cannot, and makes the next state of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from scinfl._errors import RepeatRoundError
from scinfl.federation import Journal, Payload, Run, Site, State, Strategy, Update
from scinfl.federation._simulate import _best_round, _smoothed, _stalled
from scinfl.flower._letter import Letter, members_of
from scinfl.privacy import KeyedSum

logger = logging.getLogger(__name__)

_TOTAL = "total of "


class Part:
    """The run of one site.

    Parameters
    ----------
    site, strategy, protection, state, n_rounds, smoothing, monitor, patience, derive, payload
        See :func:`scinfl.federation.simulate`.
    """

    def __init__(
        self,
        site: Site,
        strategy: Strategy,
        protection: KeyedSum,
        state: State,
        n_rounds: int,
        smoothing: float,
        monitor: str,
        patience: int | None,
        derive: Callable[[Mapping[str, float], float], Mapping[str, float]] | None,
        payload: Payload | None,
    ) -> None:
        self.run = Run(state=state, smooth=state, best_state=state)
        self.is_done = False
        self._site, self._strategy, self._protection = site, strategy, protection
        self._n_rounds, self._smoothing, self._monitor, self._patience = n_rounds, smoothing, monitor, patience
        self._derive, self._payload = derive, payload or Payload()
        self._journal: Journal | None = None
        self._settings: dict[str, Any] = {}
        self._step = 0
        self._validates = site.n_validation > 0
        self._record: dict[str, Any] | None = None  # of the round whose metrics are still to come
        self._local: State = {}  # what stayed here in that round
        self._metrics: dict[str, list[str]] = {}  # names, by purpose
        self._totals: dict[str, float] = {}
        self._made: tuple[int, list[Update]] | None = None
        self._started = time.perf_counter()
        self._worked = 0.0

    # ---- sums that come back

    def take(self, asked: Letter) -> None:
        """Apply the sums that a question brings, in order."""
        start = 0
        for sums in asked.fields["sums"]:
            updates = asked.updates[start : start + len(sums["members"])]
            start += len(updates)
            if sums["step"] != self._step or self.is_done:
                continue
            for combined, members in sorted(
                zip(updates, sums["members"], strict=True), key=lambda pair: pair[0].purpose
            ):  # metrics of the last round come before the parameters of this one
                self._take_sum(combined, members)
                if self.is_done:
                    break
            self._step += 1
            self._made = None
            if not self.is_done:
                self._keep()
        if self.is_done:
            self._keep()

    def _take_sum(self, combined: Update, names: Sequence[Sequence[str]]) -> None:
        members = members_of(names, combined)
        counted = self._site.name in {member.site for member in members}
        if not counted:
            self._was_left_out(combined)
        if combined.purpose.startswith(_TOTAL):
            purpose = combined.purpose.removeprefix(_TOTAL)
            self._totals[purpose] = self._protection.decode_weights(purpose, combined, members)
            return
        mean = self._protection.decode(combined, members)
        if mean.purpose == "training":
            self._take_round(mean, len(members), combined.n_bytes * len(members), counted=counted)
        else:
            self._take_metrics(mean)

    def _take_round(self, mean: Update, n_sites: int, n_bytes: int, *, counted: bool) -> None:
        run, number = self.run, mean.round
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
        self._started, self._local = now, self._site.local_state()
        if counted and self._made is not None:
            own = next(update for update in self._made[1] if update.purpose == "training")
            run.site_history.append({"round": number, "site": own.site, "n_obs": own.n_obs, **own.metrics})
        if not self._validates:
            self._finish_round({})

    def _take_metrics(self, mean: Update) -> None:
        values = dict(mean.metrics) if self._derive is None else dict(self._derive(mean.metrics, mean.weight))
        self._finish_round({f"validation_{name}": value for name, value in values.items()})

    def _finish_round(self, validation: Mapping[str, float]) -> None:
        run, record = self.run, self._record
        if record is None:
            msg = "Expected metrics of a finished round, found them before. Do not trust this server."
            raise ValueError(msg)
        tail = {name: record.pop(name) for name in ("n_sites", "bytes_sent", "seconds")}
        run.history.append({**record, **validation, **tail})
        self._record = None
        if _best_round(run.history, self._monitor) == record["round"]:
            run.best_round, run.best_state = record["round"], run.smooth
            run.best_local = {self._site.name: self._local}
        self.is_done = run.n_rounds >= self._n_rounds or _stalled(run, self._patience)

    def _was_left_out(self, combined: Update) -> None:
        """Read a sum without a term of this site, which was away or late."""
        self._protection.forget()
        logger.warning("%s of round %d went on without this site.", combined.purpose.capitalize(), combined.round)
        if self._journal is not None:
            self._journal.log("left out", purpose=combined.purpose, round=combined.round)
        if not combined.purpose.startswith(_TOTAL):
            self._expect(combined.purpose)
            self._protection.widen(
                combined.purpose, 2.0 ** int.from_bytes(combined.header["bound"], "big", signed=True)
            )

    def _expect(self, purpose: str) -> None:
        """Tell the protection what a sum holds that this process has sent nothing for."""
        if purpose not in self._metrics:
            local = self._site.local_state()
            sample = (
                self._site.fit(1, self.run.state) if purpose == "training" else self._site.evaluate(1, self.run.state)
            )
            self._site.load_local_state(local)
            self._metrics[purpose] = sorted(sample.metrics)  # type: ignore[union-attr]
        state = self.run.state if purpose == "training" else {}
        metrics = dict.fromkeys(self._metrics[purpose], 0.0)
        self._protection.expect(
            self._totals[purpose], Update(self._site.name, 0, state, 0, metrics=metrics, purpose=purpose)
        )

    # ---- terms that leave

    def answer(self, asked: Letter) -> Letter:
        """Terms of this site for the step that was asked for."""
        position = {"position": self._step}
        if asked.fields["step"] != self._step:
            return Letter("behind", position)
        for purpose, bound in asked.fields.get("bounds", {}).items():
            self._protection.widen(purpose, float(bound))
        try:
            return Letter("step", {**position, "step": self._step}, tuple(self._terms()))
        except RepeatRoundError as error:
            logger.info("%s", error)
            bounds = {p: self._protection.bound_of(p) for p in ("training", "evaluation")}
            return Letter("repeat", {**position, "step": self._step, "bounds": bounds})

    def _terms(self) -> list[Update]:
        if self._step == 0:
            weights = {"training": self._strategy.weight(self._site.n_obs)}
            if self._validates:
                weights["evaluation"] = float(self._site.n_validation)
            self._payload.add_totals([self._protection], "training", {self._site.name: weights["training"]})
            return [_as_update(self._protection.encode_weight(p, self._site.name, w)) for p, w in weights.items()]
        if self._made is None or self._made[0] != self._step:
            self._made = (self._step, self._work())
        updates = self._made[1]
        self._payload.check(updates)
        encoded = [self._protection.encode(update) for update in updates]
        self._payload.add(updates, encoded)
        return encoded

    def _work(self) -> list[Update]:
        """Metrics of the last round and parameters of the next."""
        updates, started = [], time.perf_counter()
        if self._record is not None:
            validation = self._site.evaluate(self._record["round"], self.run.smooth)
            updates += [] if validation is None else [validation]
        if self._step <= self._n_rounds:
            updates.append(self._site.fit(self._step, self.run.state))
        for update in updates:
            self._metrics[update.purpose] = sorted(update.metrics)
        self._worked = time.perf_counter() - started
        return updates

    # ---- what is kept

    def open(self, journal: Journal | None, settings: dict[str, Any]) -> None:
        """Take up the run where a journal left it."""
        self._journal, self._settings = journal, settings
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
        run = self.run
        run.state, run.smooth, run.best_state, run.memory = (groups[n] for n in ("state", "smooth", "best", "memory"))
        run.best_round, run.history, run.site_history = record["best_round"], record["history"], record["site_history"]
        run.best_local = {self._site.name: groups["best local"]}
        self._step, self._record, self._metrics = record["step"], record["record"], record["metrics"]
        self._totals, self._local, self.is_done = record["totals"], groups["local"], record["done"]
        self._site.load_local_state(groups["local"])
        for purpose in self._totals:
            self._expect(purpose)
        for purpose, bound in record["bounds"].items():
            self._protection.widen(purpose, bound)
        journal.log("resume", step=self._step)

    @property
    def position(self) -> int:
        """Steps whose sums were applied."""
        return self._step

    def _keep(self) -> None:
        if self._journal is None:
            return
        run = self.run
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
                "step": self._step,
                "record": self._record,
                "metrics": self._metrics,
                "totals": self._totals,
                "bounds": {p: self._protection.bound_of(p) for p in self._totals},
                "done": self.is_done,
            },
        )


def _as_update(upload: Any) -> Update:
    """A hidden weight, which has a form of its own, as an update."""
    return replace(
        Update(upload.site, upload.round, dict(upload.state), 0, 0.0, purpose=upload.purpose),
        key_version=upload.key_version,
        header=upload.header,
    )
