"""Runs the trials of a study: takes them from the scheduler, gives them to workers, records what comes back."""

from __future__ import annotations

import math
import time
from pathlib import Path

from optuna.trial import TrialState

from hpo import figures, objective
from hpo.config import SearchConfig
from hpo.objective import QUALITIES
from hpo.study import TrialLost, TrialScheduler
from hpo.study_note import StudyNote, in_words
from hpo.trial_runs import TrialRuns
from pipelines import tracking
from pipelines.engine.progress import Progress
from pipelines.engine.worker import Message
from pipelines.engine.workers import Job, Workers
from safemax import metric_keys as keys
from safemax.reports.numbers import quantity
from safemax.storage import checkpoint


class StudyRunner:
    """Runs what is left of a study's trials.

    Args:
        config: what is searched.
        scheduler: the study.
        workers: what runs them.
        trial_runs: the MLflow runs of its trials.
        run: the study's own run.
    """

    def __init__(
        self,
        config: SearchConfig,
        scheduler: TrialScheduler,
        workers: Workers,
        trial_runs: TrialRuns,
        run: tracking.Run,
    ) -> None:
        self.config, self.scheduler, self.workers, self.trial_runs, self.run = (
            config,
            scheduler,
            workers,
            trial_runs,
            run,
        )
        self.captions = figures.captions(config)
        self._front_picture = ""
        self._trial_config = config.trial_config()

    @property
    def base(self) -> dict[str, float]:
        """Metrics of the model to correct, as the first worker measured them."""
        return self.workers.greeting["base"]

    @property
    def reference(self) -> figures.Point:
        """The hypervolume's reference point: the class is certain to be there, and one unit of quality is lost (objective.unit)."""
        return 1.0, objective.unit(self.base, self.config.search.quality)

    def run_trials(self) -> None:
        """Run trials until all have ended; on a shared storage, other machines' too."""
        self.run.log({"search/base_quality": self.base[QUALITIES[self.config.search.quality]]})
        for n, volume in enumerate(figures.volumes(self.scheduler.completed, self.reference), start=1):
            self.run.log({"search/hypervolume": volume}, n)  # trials of the runs that this one continues
        ended, size = self.scheduler.num_ended, self.scheduler.plan.size
        print(f"study {self.scheduler.plan.name}: {ended} of {size} trials done", flush=True)
        self._study_note = StudyNote(self.config, self.scheduler, self.reference[1])
        with Progress.of(size, ended, self.config.search, "trial") as self._progress:
            self._note()
            while self.scheduler.num_ended < size:
                self.workers.run(self._next, self._on_message)
                if self.scheduler.num_ended < size:
                    time.sleep(1)
                    self.workers.tick()

    def _note(self, *, now: bool = False) -> None:
        """Write how far the study is on its run, with the front so far; a machine that joined another's study leaves it alone."""
        if self.run.id != self.scheduler.study.user_attrs.get("run") or not (self._study_note.is_due() or now):
            return
        done, members = self.scheduler.completed, self.scheduler.front()
        with self.run.tolerate_outage():
            if members:
                self._front_picture = self.run.picture(figures.front(done, members, self.captions), "front")
            self.run.note(self._study_note.text(self._front_picture, self._progress.time_left))

    def _next(self) -> Job | None:
        trial = self.scheduler.start_next()
        if trial is None:
            return None
        spec = {"kind": "trial", "number": trial.number, "values": self.config.by_field(trial.params)}
        return Job(spec, list(trial.user_attrs.get("deaths", [])))

    def _on_message(self, job: Job, message: Message) -> bool:
        number = job.spec["number"]
        if not self.scheduler.is_running_here(number):
            return True
        try:
            return self._handle(number, job, message)
        except TrialLost:
            reason = "no heartbeat from this machine for too long; another one runs the trial again"
            self.trial_runs.fail(number, reason)
            self._progress.say(f"trial {number}: {reason}")
            return True

    def _handle(self, number: int, job: Job, message: Message) -> bool:
        kind = message["kind"]
        if kind == "report":
            probe = {"knowledge": message["knowledge"], "damage": message["damage"]}
            self.trial_runs.log(number, {f"probe/{key}": value for key, value in probe.items()}, message["percent"])
            return self.scheduler.report(number, message["percent"], **probe)
        if kind == "log":
            self.trial_runs.log(number, message["metrics"], message["step"])
            self._progress.at(number, message["step"])
        elif kind == "started":
            self._begin(number)
            self.trial_runs.tag(number, "worker", message.get("worker", "this process"))
            self._progress.started(
                number, f"trial {number}", job.spec["values"].get("steps", self.config.training.steps)
            )
        elif kind == "died":
            self.scheduler.set_attrs(number, deaths=job.deaths)
            self.trial_runs.tag(number, "trial.deaths", "; ".join(job.deaths))
            self._progress.say(f"trial {number}: {message['reason']}; another worker runs it")
        else:
            if message.get("log"):
                self.trial_runs[number].text(message["log"], "worker.log")
            self._end(number, message)
        return False

    def _begin(self, number: int) -> None:
        if number in self.trial_runs:
            return  # another worker resumes a trial whose run is open
        trial = self.scheduler.trials[number]
        earlier = trial.user_attrs.get("runs", [])
        tags = {tracking.RESUMED_FROM: earlier[-1]} if earlier else {}
        self.scheduler.set_attrs(
            number, runs=[*earlier, self.trial_runs.start(number, self.config.dotted(trial.params), tags)]
        )

    def _end(self, number: int, message: Message) -> None:
        if message["kind"] == "done":
            summary = self._complete(number, message["metrics"])
        elif message["kind"] == "pruned":
            self.scheduler.end(number, TrialState.PRUNED, {})
            summary = "pruned"
            self.trial_runs.finish(number, "pruned", summary)
        else:
            summary = self._fail(number, message["reason"])
        knobs = ", ".join(f"{name} {quantity(value)}" for name, value in self.scheduler.trials[number].params.items())
        self._progress.ended(number)
        ended = f"{self.scheduler.num_ended}/{self.scheduler.plan.size}"
        self._note(now=self.scheduler.num_ended == 1)
        self._progress.say(f"[{ended}] trial {number} ({knobs}): {summary}")
        self._delete_leftovers(number)

    def _complete(self, number: int, metrics: dict[str, float]) -> str:
        scores = objective.scores(metrics, self.base, self.config.search.quality)
        if not all(map(math.isfinite, scores.values())):
            return self._fail(number, f"scores are not finite: {scores}")
        self.scheduler.complete(number, scores, {"metrics": metrics})
        self.trial_runs.log(number, keys.charted(metrics) | {f"search/{name}": value for name, value in scores.items()})
        summary = in_words(scores)
        self.trial_runs.finish(number, "complete", summary, self._folder(number) / "samples.png")
        done = self.scheduler.completed
        points = [figures.point_of(each) for each in done if figures.is_allowed(each)]
        self.run.log({"search/hypervolume": figures.hypervolume(points, self.reference)}, len(done))
        return summary

    def _fail(self, number: int, reason: str) -> str:
        self.scheduler.end(number, TrialState.FAIL, {"reason": reason})
        self.trial_runs.fail(number, reason)
        return f"failed: {reason}"

    def _delete_leftovers(self, number: int) -> None:
        """Delete all weights but those of the front and the defaults: a study of large models would fill the disk."""
        checkpoint.clear(self._folder(number) / "steps")
        needed = {0, *(each.number for each in self.scheduler.front())}
        for each in self.scheduler.trials:
            if each.number not in needed and each.state.is_finished():
                checkpoint.clear(self._folder(each.number) / "weights")

    def _folder(self, number: int) -> Path:
        return self._trial_config.trial_folder(number, self.config.by_field(self.scheduler.trials[number].params))
