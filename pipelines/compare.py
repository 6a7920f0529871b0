"""Compare methods like for like: each one forgets each class, from the same base, measured by the same protocol.

    mlflow run . -e compare -P methods=safemax,selective_amnesia,salun -P classes=all -P seeds=3
    python -m pipelines.compare --methods=safemax,safemax@zero --overrides=safemax@zero.target=zero --workers=2

A child run for each method, class and seed, and for each gold model, which never saw the class; children register nothing.
The same command goes on where it was stopped: a child that finished is not run again, whichever comparison it was part of,
unless the code that made or measured it has changed.
Base samples, judges, gold models and priors that all classes share are made first and their minutes told apart.
NAME@VARIANT is one more set of a method's knobs, which --overrides gives.
"""

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines import tracking
from pipelines.cli.options import DataOptions, ModelOptions
from pipelines.cli.parser import main, parse
from pipelines.comparison import child_runs, report, variants
from pipelines.comparison.job import ChildConfig, ChildContext, attempt
from pipelines.comparison.plan import GOLD, Comparison, ComparisonOptions, ablation_of
from pipelines.correction.base_model import find_base
from pipelines.engine.signals import StopSignal, die_with_parent, is_follower_rank, stop_on_sigterm
from pipelines.engine.worker_pool import Job, Message, WorkerPool
from pipelines.registry import model_versions
from safemax.data.batches import parse_classes
from safemax.errors import InputError, Stopped
from safemax.evaluation.measure import Evaluation
from safemax.judges.load import JudgeConfig
from safemax.reports.comparison_tables import UNSEEDED

PARAMETERS: dict[str, type] = {
    "comparison": ComparisonOptions,
    "data": DataOptions,
    "model": ModelOptions,
    "evaluation": Evaluation,
    "judging": JudgeConfig,
}

Jobs = Sequence[dict[str, Any]]


@dataclass
class ComparisonRunner:
    """A comparison under way."""

    comparison: Comparison
    run: tracking.Run
    stop: StopSignal
    failures: list[str] = field(default_factory=list)
    minutes: dict[str, float] = field(default_factory=dict)

    def follow(self) -> pd.DataFrame:
        """Run what is not finished; return a row a run: variant, forget, seed, run, and the metrics."""
        task = self.comparison.task(self.run.id)
        plan = self._with_digests(task)
        found = child_runs.finished()
        # What two variants share runs once, under the first one's name.
        jobs = {job["digest"]: job for job in reversed(plan)}
        todo = [job for job in plan if job is jobs[job["digest"]] and job["digest"] not in found]
        print(f"{len(jobs)} children, {len(jobs) - len(todo)} of them finished before", flush=True)
        child_runs.adopt(self.run.id, [found[job["digest"]] for job in plan if job["digest"] in found])
        if todo:
            self._run(task, todo)
        return child_runs.rows(plan, child_runs.finished(), self.comparison.dataset.class_names)

    def _with_digests(self, task: ChildConfig) -> list[dict[str, Any]]:
        dataset, model = self.comparison.dataset, self.comparison.model_digest
        return [{**job, "digest": task.digest(dataset, job, model)} for job in self.comparison.children()]

    def _run(self, task: ChildConfig, todo: Jobs) -> None:
        """Prepare, then run the children, on this process or on several."""
        stages = {
            "preparation": self.comparison.preparations(todo),
            "gold": [job for job in todo if job["kind"] == GOLD],
            "children": [job for job in todo if job["kind"] != GOLD],
        }
        started = time.perf_counter()
        if self.comparison.asked.workers == 1:
            bench = ChildContext(task, self.stop)
            self._clock("judges", started)
            self._stages(stages, lambda jobs: self._alone(bench, jobs))
            return
        with WorkerPool("pipelines.comparison.job", asdict(task), self.comparison.asked.workers, self._idle) as crew:
            self._clock("judges", started)
            self._stages(stages, lambda jobs: self._together(crew, jobs))

    def _stages(self, stages: Mapping[str, Jobs], work: Callable[[Jobs], None]) -> None:
        for name, jobs in stages.items():
            started = time.perf_counter()
            work(jobs)
            self._clock(name, started)

    def _alone(self, bench: ChildContext, jobs: Jobs) -> None:
        for number, job in enumerate(jobs, start=1):
            self._idle()
            self._on_message(job, attempt(bench, job), f"{number}/{len(jobs)}")

    def _together(self, crew: WorkerPool, jobs: Jobs) -> None:
        waiting, ended = deque(Job(job) for job in jobs), 0

        def on_message(job: Job, message: Message) -> bool:
            nonlocal ended
            ended += message["kind"] in ("done", "failed")
            self._on_message(job.request, message, f"{ended}/{len(jobs)}")
            return False

        if waiting:
            crew.run(lambda: waiting.popleft() if waiting else None, on_message)

    def _on_message(self, job: Mapping[str, Any], message: Message, count: str) -> None:
        if message["kind"] == "died" and "digest" in job:
            child_runs.end_orphan(self.run.id, job["digest"])
        if message["kind"] not in ("done", "failed"):
            return
        what = job["variant"]["label"] if "variant" in job else job["kind"]
        name = f"{what}, forget {self.comparison.dataset.class_names[job['forget']]}"
        name += f", seed {job['seed']}" if job["seed"] != UNSEEDED else ""
        prefix = "prior of " if job["kind"] == "prior" else ""
        if message["kind"] == "failed":
            self.failures.append(f"{prefix}{name}: {message['reason']}")
            print(f"[{count}] {prefix}{name}: failed: {message['reason']}", flush=True)
            return
        said = [f"{message['minutes']:.2f} min"]
        said += [f"UA_reject {message['ua_reject']:.1f} %, FID {message['fid']:.2f}"] if "fid" in message else []
        print(f"[{count}] {prefix}{name}: {', '.join(said)}", flush=True)

    def _idle(self) -> None:
        if self.stop():
            raise Stopped("the comparison goes on where it stands with the same command")

    def _clock(self, name: str, started: float) -> None:
        self.minutes[name] = (time.perf_counter() - started) / 60
        self.run.log({f"comparison/{name}_minutes": self.minutes[name]})


def compare(argv: Sequence[str]) -> None:
    """Compare by the command line's parameters."""
    chosen = parse("python -m pipelines.compare", __doc__ or "", PARAMETERS, argv)
    asked: ComparisonOptions = chosen["comparison"]
    taking_part = variants.read(asked.methods, asked.overrides, asked.common)
    ablation = ablation_of(asked)
    stop = stop_on_sigterm()
    die_with_parent()
    if is_follower_rank():
        raise InputError("a comparison runs each child in one process; workers = 2 runs two at a time")
    dataset = chosen["data"].load()
    product, source = chosen["model"].name_for(dataset), chosen["model"].model
    tracking.setup(product)
    source = find_base(product, chosen["data"].data) if source == "base" else model_versions.pinned(source)
    every = range(dataset.num_classes)
    classes = tuple(every) if asked.classes == "all" else parse_classes(asked.classes, dataset.class_names)
    comparison = Comparison(
        asked, chosen["data"], dataset, classes, source, product, taking_part, ablation, chosen["evaluation"],
        chosen["judging"],
    )  # fmt: skip
    _refuse_output(asked.output)
    run(comparison, stop)


def _refuse_output(output: str) -> None:
    """Raise InputError where the tables could not be written in the end."""
    try:
        if output != "none":
            Path(output).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=output).close()
    except OSError as error:
        raise InputError(f"output = {output} cannot be written to: {error.strerror}") from error


def run(comparison: Comparison, stop: StopSignal) -> pd.DataFrame:
    """Compare in a run of its own; return a row a child.

    Raises:
        InputError: the model does not fit, or a child failed; the tables hold what the others brought.
        Stopped: `stop` said so; the same comparison goes on.
    """
    comparison.check()
    tags = {"kind": "comparison", "comparison.methods": ",".join(each.label for each in comparison.variants)}
    with tracking.run(comparison.title, experiment=comparison.name, params=comparison.params(), tags=tags) as opened:
        opened.dataset(comparison.dataset, "training")
        course = ComparisonRunner(comparison, opened, stop)
        rows = course.follow()
        if len(rows):
            report.show(comparison, opened, rows, course.minutes, course.failures)
        if course.failures:
            raise InputError(
                f"failed jobs: {len(course.failures)}, the first: {course.failures[0]}; the same command tries them again"
            )
        print(f"{opened.url}  (after `make ui`)")
    return rows


if __name__ == "__main__":
    main(compare)
