"""Runs the jobs of a comparison that have not finished before, and writes their runs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from pipelines import tracking
from pipelines.comparison import child_runs
from pipelines.comparison.child_runs import ChildRuns
from pipelines.comparison.job import ChildConfig, load
from pipelines.comparison.note import ComparisonNote
from pipelines.comparison.plan import GOLD, Comparison
from pipelines.correction.judge_jobs import train_judges
from pipelines.engine.batch import raise_if_stopped
from pipelines.engine.progress import Progress
from pipelines.engine.signals import StopSignal
from pipelines.engine.worker import FINAL, Message
from pipelines.engine.workers import Job, Workers, open_workers
from pipelines.tracking import remote_run
from safemax import metric_keys as keys
from safemax.reports.comparison_tables import UNSEEDED
from safemax.reports.numbers import duration, percent, quantity

Jobs = Sequence[dict[str, Any]]


@dataclass
class ComparisonRunner:
    """Runs the children of a comparison.

    Args:
        comparison: what is compared.
        run: the comparison's own run.
        stop: raised, it ends the comparison.

    Attributes:
        failures: one line per failed job.
        minutes: spent on judges, preparation, gold models and children.
    """

    comparison: Comparison
    run: tracking.Run
    stop: StopSignal
    failures: list[str] = field(default_factory=list)
    minutes: dict[str, float] = field(default_factory=dict)

    def run_children(self) -> pd.DataFrame:
        """Run the children that have not finished before; return one row per child (child_runs.rows)."""
        config = self.comparison.child_config()
        plan = self._with_digests(config)
        child_runs.end_orphans(self.comparison.name)
        finished = child_runs.finished()
        # What two variants share runs once, under the first one's name.
        jobs = {job["digest"]: job for job in reversed(plan)}
        todo = [job for job in plan if job is jobs[job["digest"]] and job["digest"] not in finished]
        print(f"{len(jobs)} children, {len(jobs) - len(todo)} of them finished before", flush=True)
        child_runs.adopt(self.run.id, [finished[job["digest"]] for job in plan if job["digest"] in finished])
        self._comparison_note = ComparisonNote(self.comparison, len(jobs))
        for digest in jobs.keys() & finished.keys():
            self._comparison_note.add_finished(_label(jobs[digest]), finished[digest].data.metrics)
        self._note()
        if todo:
            self._run(config, todo)
        return child_runs.rows(plan, child_runs.finished(), self.comparison.dataset.class_names)

    def _with_digests(self, config: ChildConfig) -> list[dict[str, Any]]:
        dataset, model = self.comparison.dataset, self.comparison.model_digest
        return [{**job, "digest": config.digest(dataset, job, model)} for job in self.comparison.children()]

    def _run(self, config: ChildConfig, todo: Jobs) -> None:
        """Prepare, then run the children."""
        stages = {
            "preparation": self.comparison.preparations(todo),
            "gold": [job for job in todo if job["kind"] == GOLD],
            "children": [job for job in todo if job["kind"] != GOLD],
        }
        started, options, comparison = time.perf_counter(), self.comparison.options, self.comparison
        train_judges(options, comparison.data, comparison.dataset, comparison.judging, options.device, self.stop)
        tick = raise_if_stopped(self.stop, "the comparison")
        workers = open_workers(options, load, config, self.stop, tick, device=options.device)
        with ChildRuns(self.comparison, config, self.run.id) as self._open, workers:
            self._log_minutes("judges", started)
            for name, jobs in stages.items():
                started = time.perf_counter()
                self._do(workers, name, jobs)
                self._log_minutes(name, started)

    def _do(self, workers: Workers, name: str, jobs: Jobs) -> None:
        waiting, ended = deque(jobs), 0

        def source() -> Job | None:
            if not waiting:
                return None
            job = waiting.popleft()
            return Job({**job, "run": self._open.start(job)} if "digest" in job and job["kind"] != "prior" else job)

        def on_message(job: Job, message: Message) -> bool:
            nonlocal ended
            ended += message["kind"] in FINAL
            if "run" in job.spec:
                self._record(job, message)
                self._count(job, message)
            self._show(job, message, f"{ended}/{len(jobs)}")
            return False

        if waiting:
            with Progress.of(len(jobs), 0, self.comparison.options, name) as self._progress:
                workers.run(source, on_message)

    def _show(self, job: Job, message: Message, count: str) -> None:
        kind, name, progress, place = message["kind"], self._name(job.spec), self._progress, id(job)
        if kind == "started":
            steps = job.spec["variant"]["training"]["steps"] if job.spec["kind"] == "child" else 0
            progress.started(place, name, steps)
        elif kind == remote_run.CALL and message["method"] == "log":
            progress.at(place, message["given"]["step"])
        elif kind == "died":
            progress.say(f"{name}: {message['reason']}; another worker runs it")
        elif kind in FINAL:
            progress.ended(place)
            progress.say(f"[{count}] {name}: {self._outcome(name, message)}")

    def _count(self, job: Job, message: Message) -> None:
        """Count a child that has ended, and write the note of the comparison's run anew."""
        if message["kind"] in FINAL:
            scores = {keys.UA_REJECT: message["ua_reject"], keys.FID_JUDGE: message["fid"]} if "fid" in message else {}
            self._comparison_note.add(_label(job.spec), scores)
            self._note()

    def _note(self) -> None:
        if self._comparison_note.is_due():
            with self.run.tolerate_outage():
                self.run.note(self._comparison_note.text())

    def _outcome(self, name: str, message: Message) -> str:
        """Return how a job ended, in words, and note its failure."""
        if message["kind"] == "failed":
            self.failures.append(f"{name}: {message['reason']}")
            return f"failed: {message['reason']}"
        if "fid" not in message:
            return duration(message["minutes"])
        scores = f"UA_reject {percent(message['ua_reject'])}, FID {quantity(message['fid'])}"
        return f"{duration(message['minutes'])}, {scores}"

    def _record(self, job: Job, message: Message) -> None:
        """Write a message of a job to its run."""
        kind, digest = message["kind"], job.spec["digest"]
        if kind == remote_run.CALL:
            remote_run.write(self._open[digest], message)
        elif kind == "started":
            self._open[digest].tag("worker", message.get("worker", "this process"))
        elif kind == "died":
            self._open[digest].tag("comparison.deaths", "; ".join(job.deaths))
        elif kind in FINAL:
            if message.get("log"):
                self._open[digest].text(message["log"], "worker.log")
            self._open.fail(digest, message["reason"]) if kind == "failed" else self._open.end(digest)

    def _name(self, job: Mapping[str, Any]) -> str:
        """Return a job in words, such as: safemax, forget cat, seed 0."""
        label = _label(job)
        prefix = "prior of " if job["kind"] == "prior" else ""
        seed = f", seed {job['seed']}" if job["seed"] != UNSEEDED else ""
        return f"{prefix}{label}, forget {self.comparison.dataset.class_names[job['forget']]}{seed}"

    def _log_minutes(self, name: str, started: float) -> None:
        self.minutes[name] = (time.perf_counter() - started) / 60
        self.run.log({f"comparison/{name}_minutes": self.minutes[name]})


def _label(job: Mapping[str, Any]) -> str:
    return str(job["variant"]["label"]) if "variant" in job else str(job["kind"])
