"""Runs the jobs of a comparison that have not finished before, in this process or on a pool of workers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd

from pipelines import tracking
from pipelines.comparison import child_runs
from pipelines.comparison.job import ChildConfig, ChildContext
from pipelines.comparison.plan import GOLD, Comparison
from pipelines.engine.signals import StopSignal
from pipelines.engine.worker import Message, attempt
from pipelines.engine.worker_pool import Job, WorkerPool
from safemax.errors import Stopped
from safemax.reports.comparison_tables import UNSEEDED

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
        config = self.comparison.child_config(self.run.id)
        plan = self._with_digests(config)
        finished = child_runs.finished()
        # What two variants share runs once, under the first one's name.
        jobs = {job["digest"]: job for job in reversed(plan)}
        todo = [job for job in plan if job is jobs[job["digest"]] and job["digest"] not in finished]
        print(f"{len(jobs)} children, {len(jobs) - len(todo)} of them finished before", flush=True)
        child_runs.adopt(self.run.id, [finished[job["digest"]] for job in plan if job["digest"] in finished])
        if todo:
            self._run(config, todo)
        return child_runs.rows(plan, child_runs.finished(), self.comparison.dataset.class_names)

    def _with_digests(self, config: ChildConfig) -> list[dict[str, Any]]:
        dataset, model = self.comparison.dataset, self.comparison.model_digest
        return [{**job, "digest": config.digest(dataset, job, model)} for job in self.comparison.children()]

    def _run(self, config: ChildConfig, todo: Jobs) -> None:
        """Prepare, then run the children, in this process or on several."""
        stages = {
            "preparation": self.comparison.preparations(todo),
            "gold": [job for job in todo if job["kind"] == GOLD],
            "children": [job for job in todo if job["kind"] != GOLD],
        }
        started, workers = time.perf_counter(), self.comparison.options.workers
        if workers == 1:
            context = ChildContext(config, self.stop)
            self._log_minutes("judges", started)
            self._run_stages(stages, lambda jobs: self._run_here(context, jobs))
            return
        with WorkerPool("pipelines.comparison.job", asdict(config), workers, self._raise_if_stopped) as pool:
            self._log_minutes("judges", started)
            self._run_stages(stages, lambda jobs: self._run_on(pool, jobs))

    def _run_stages(self, stages: Mapping[str, Jobs], work: Callable[[Jobs], None]) -> None:
        for name, jobs in stages.items():
            started = time.perf_counter()
            work(jobs)
            self._log_minutes(name, started)

    def _run_here(self, context: ChildContext, jobs: Jobs) -> None:
        for number, job in enumerate(jobs, start=1):
            self._raise_if_stopped()
            self._on_message(job, attempt(context, job, lambda message: False), f"{number}/{len(jobs)}")

    def _run_on(self, pool: WorkerPool, jobs: Jobs) -> None:
        waiting, ended = deque(Job(job) for job in jobs), 0

        def on_message(job: Job, message: Message) -> bool:
            nonlocal ended
            ended += message["kind"] in ("done", "failed")
            self._on_message(job.spec, message, f"{ended}/{len(jobs)}")
            return False

        if waiting:
            pool.run(lambda: waiting.popleft() if waiting else None, on_message)

    def _on_message(self, job: Mapping[str, Any], message: Message, count: str) -> None:
        if message["kind"] == "died" and "digest" in job:
            child_runs.end_orphan(self.run.id, job["digest"])
        if message["kind"] == "failed":
            self.failures.append(f"{self._name(job)}: {message['reason']}")
            print(f"[{count}] {self._name(job)}: failed: {message['reason']}", flush=True)
        if message["kind"] == "done":
            scores = f", UA_reject {message['ua_reject']:.1f} %, FID {message['fid']:.2f}" if "fid" in message else ""
            print(f"[{count}] {self._name(job)}: {message['minutes']:.2f} min{scores}", flush=True)

    def _name(self, job: Mapping[str, Any]) -> str:
        """Return a job in words, such as: safemax, forget cat, seed 0."""
        label = job["variant"]["label"] if "variant" in job else job["kind"]
        prefix = "prior of " if job["kind"] == "prior" else ""
        seed = f", seed {job['seed']}" if job["seed"] != UNSEEDED else ""
        return f"{prefix}{label}, forget {self.comparison.dataset.class_names[job['forget']]}{seed}"

    def _raise_if_stopped(self) -> None:
        if self.stop():
            raise Stopped("the same command resumes the comparison")

    def _log_minutes(self, name: str, started: float) -> None:
        self.minutes[name] = (time.perf_counter() - started) / 60
        self.run.log({f"comparison/{name}_minutes": self.minutes[name]})
