"""A study's trials on their way: taken from the books, given to workers, recorded as runs."""

from __future__ import annotations

import math
import time
from pathlib import Path

from optuna.trial import TrialState

from hpo import figures, objective
from hpo.config import SearchConfig
from hpo.objective import QUALITIES
from hpo.study import TrialLost, TrialScheduler
from hpo.trial_runs import TrialRuns
from pipelines import tracking
from pipelines.engine.worker_pool import Job, Message, WorkerPool
from safemax.storage import checkpoint

REFRESH = 10  # trials between two drawings of the front


class StudyRunner:
    """Runs what is left of a study's trials.

    Args:
        request: what is searched.
        books: the study.
        crew: its workers.
        records: the runs of its trials.
        run: the study's own run.
    """

    def __init__(
        self, request: SearchConfig, books: TrialScheduler, crew: WorkerPool, records: TrialRuns, run: tracking.Run
    ) -> None:
        self.request, self.books, self.crew, self.records, self.run = request, books, crew, records, run
        self.captions = figures.captions(request)
        self._task = request.task()

    @property
    def base(self) -> dict[str, float]:
        """Metrics of the model to correct, as the first worker measured them."""
        return self.crew.greeting["base"]

    @property
    def reference(self) -> figures.Point:
        """Where the hypervolume begins: the class is as present as can be, and one unit of quality is lost (objective.unit)."""
        return 1.0, objective.unit(self.base, self.request.search.quality)

    def follow(self) -> None:
        """Return when every trial is over; on a shared storage, other machines' too."""
        self.run.log({"search/base_quality": self.base[QUALITIES[self.request.search.quality]]})
        for n, volume in enumerate(figures.volumes(self.books.completed, self.reference), start=1):
            self.run.log({"search/hypervolume": volume}, n)  # of the runs that this one continues
        print(f"study {self.books.plan.name}: {self.books.over} of {self.books.plan.size} trials done", flush=True)
        while self.books.over < self.books.plan.size:
            self.crew.run(self._next, self._on_message)
            if self.books.over < self.books.plan.size:
                time.sleep(1)
                self.crew.idle()

    def _next(self) -> Job | None:
        trial = self.books.take()
        if trial is None:
            return None
        request = {"kind": "trial", "number": trial.number, "values": self.request.by_field(trial.params)}
        return Job(request, list(trial.user_attrs.get("deaths", [])))

    def _on_message(self, job: Job, message: Message) -> bool:
        number = job.request["number"]
        if not self.books.holds(number):
            return True
        try:
            return self._handle(number, job, message)
        except TrialLost:
            reason = "this machine gave no sign for too long: another one runs the trial again"
            self.records.fail(number, reason)
            print(f"trial {number}: {reason}", flush=True)
            return True

    def _handle(self, number: int, job: Job, message: Message) -> bool:
        kind = message["kind"]
        if kind == "report":
            probe = {"knowledge": message["knowledge"], "damage": message["damage"]}
            self.records.log(number, {f"probe/{key}": value for key, value in probe.items()}, message["percent"])
            return self.books.report(number, message["percent"], **probe)
        if kind == "log":
            self.records.log(number, message["metrics"], message["step"])
        elif kind == "started":
            self._begin(number)
        elif kind == "died":
            self.books.note(number, deaths=job.deaths)
            self.records.tag(number, "trial.deaths", "; ".join(job.deaths))
        else:
            self._end(number, message)
        return False

    def _begin(self, number: int) -> None:
        if self.records.has(number):
            return  # another worker takes up a trial whose run is open
        trial = self.books.trials[number]
        earlier = trial.user_attrs.get("runs", [])
        tags = {"resumed_from": earlier[-1]} if earlier else {}
        self.books.note(number, runs=[*earlier, self.records.begin(number, self.request.dotted(trial.params), tags)])

    def _end(self, number: int, message: Message) -> None:
        if message["kind"] == "done":
            said = self._complete(number, message["metrics"])
        elif message["kind"] == "pruned":
            self.books.end(number, TrialState.PRUNED, {})
            said = "given up"
            self.records.end(number, "pruned", said)
        else:
            said = self._fail(number, message["reason"])
        knobs = ", ".join(f"{name} {value:.3g}" for name, value in self.books.trials[number].params.items())
        print(f"[{self.books.over}/{self.books.plan.size}] trial {number} ({knobs}): {said}", flush=True)
        self._tidy(number)

    def _complete(self, number: int, metrics: dict[str, float]) -> str:
        scores = objective.scores(metrics, self.base, self.request.search.quality)
        if not all(map(math.isfinite, scores.values())):
            return self._fail(number, f"scores that are not finite: {scores}")
        self.books.complete(number, scores, {"metrics": metrics})
        self.records.log(number, metrics | {f"search/{name}": value for name, value in scores.items()})
        said = f"forgetting {scores['forgetting']:.2g}, quality {scores['quality']:+.3g}"
        self.records.end(number, "complete", said, self._place(number) / "samples.png")
        done = self.books.completed
        points = [figures.place(each) for each in done if figures.is_allowed(each)]
        self.run.log({"search/hypervolume": figures.hypervolume(points, self.reference)}, len(done))
        if len(done) % REFRESH == 0:
            self.run.picture(figures.front(done, self.books.front(), self.captions), "front")
        return said

    def _fail(self, number: int, reason: str) -> str:
        self.books.end(number, TrialState.FAIL, {"reason": reason})
        self.records.fail(number, reason)
        return f"failed: {reason}"

    def _tidy(self, number: int) -> None:
        """Keep the weights of the front and of the defaults alone: a study of large models would fill the disk."""
        checkpoint.clear(self._place(number) / "steps")
        kept = {0, *(each.number for each in self.books.front())}
        for each in self.books.trials:
            if each.number not in kept and each.state.is_finished():
                checkpoint.clear(self._place(each.number) / "weights")

    def _place(self, number: int) -> Path:
        return self._task.place(number, self.request.by_field(self.books.trials[number].params))
