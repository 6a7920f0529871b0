"""The jobs of a contest, a base or a method on a base: a worker does them, and returns what the driver writes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any

from hpo.contest.config import SEARCH_BASE, TUNED, Contest
from hpo.contest.files import ResultFiles, code_of
from hpo.contest.tune import search
from hpo.contest.work import Workshop
from pipelines.engine.signals import StopSignal
from pipelines.engine.worker import Message, Send
from safemax.judges.load import Judges
from safemax.reports.contest_tables import DEFAULT

PRETRAIN, ENTRY = "base", "entry"


@dataclass
class ContestContext:
    """What a process loads once to do jobs with; whatever is trained, measured or searched is kept in the cache."""

    workshop: Workshop
    stop: StopSignal

    @property
    def greeting(self) -> Message:
        """Nothing: the driver needs only know that the context is loaded."""
        return {}

    def do(self, job: Message, send: Send) -> Message:
        """Do a job: train a base, or return what the file of a method on a base holds, as `content`."""
        with self.stop.interruptible():
            if job["kind"] == PRETRAIN:
                self.workshop.base(job["base"])
                return {}
            return {"content": _result(self.workshop, job["method"], job["base"], job["search"])}


def load(config: Message, stop: StopSignal) -> ContestContext:
    """Return the context of a worker."""
    workshop = Workshop(Contest.read(config), stop)
    _ = workshop.reference  # the first worker trains the judges, on which the others wait
    return ContestContext(workshop, stop)


def stages(contest: Contest) -> Iterator[list[Message]]:
    """Yield the jobs that may run at the same time: the bases, the search's among them, then the entries without a file."""
    files = ResultFiles(contest)
    waiting = files.waiting()
    yield [{"kind": PRETRAIN, "base": number} for number in files.bases(waiting)]
    yield [{"kind": ENTRY, "method": name, "base": base, "search": files.search(name)} for name, base in waiting]


def name_of(job: Message) -> str:
    """Return a job in words, such as: safemax on base 0."""
    if job["kind"] == ENTRY:
        return f"{job['method']} on base {job['base']}"
    return "the search's base" if job["base"] == SEARCH_BASE else f"base {job['base']}"


def _names(judges: Judges) -> list[str]:
    """Return what judge=auto stood for: files of different machines are joined, and a GPU takes another judge."""
    return [judges.plain.arch, judges.reject.arch, *(["inception"] if judges.inception else [])]


def _result(workshop: Workshop, name: str, base: int, found: dict[str, Any] | None) -> dict[str, Any]:
    if found is None and workshop.contest.is_tuned(name):
        found = search(workshop, name).describe()
    variants: dict[str, dict[str, Any]] = {DEFAULT: {}}
    if found:
        variants[TUNED] = found["values"]
    content: dict[str, Any] = {
        "contest": workshop.contest.describe() | {"judges": _names(workshop.judges)}, "method": name, "base": base,
        "made": str(date.today()), "code": code_of(name),
        "values": variants, "search": found, "corrections": [],
    }  # fmt: skip
    for variant, values in variants.items():
        for correction in workshop.contest.corrections(name, base, values):
            done = workshop.correct(correction)
            place = {
                "variant": variant,
                "class": workshop.contest.class_names[correction.forget],
                "seed": correction.seed,
            }
            content["corrections"].append({**place, **done})
    return content
