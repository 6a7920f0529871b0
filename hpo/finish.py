"""The end of a study: its front measured again on fresh seeds, shown, and one member of it registered."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd
from optuna.trial import FrozenTrial

from hpo import figures, objective
from hpo.config import PREFERENCES, SearchConfig
from hpo.runner import StudyRunner
from hpo.study import TrialScheduler
from pipelines.correction.correction import SearchProvenance, measure_and_register
from pipelines.engine.signals import StopSignal
from pipelines.engine.worker_pool import Job, Message, WorkerPool
from pipelines.registry import model_versions
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError
from safemax.evaluation.measure import Evaluation
from safemax.reports.images_and_tables import as_markdown, as_text

Scores = Mapping[str, float]
_BASE = -1  # in place of a trial's number


def finish(course: StudyRunner, stop: StopSignal, minutes: float) -> str:
    """Measure the front and the defaults again, show the study, register the preferred member, and return its address.

    Args:
        course: the trials, all over, and their workers.
        stop: raised, it ends the run.
        minutes: that the search has taken so far.

    Raises:
        InputError: no trial has a result that keeps to the constraint.
    """
    request, members = course.request, course.books.front()
    if not members:
        raise InputError(_nothing(course))
    evaluation = Evaluation(**objective.settings(request.evaluation, request.search.final_samples))
    trials = {each.number: each for each in (*course.books.completed[:1], *members)}
    again = measured(request, course.crew, trials, evaluation)
    numbers = {each.number for each in members}
    winner = choose({n: each for n, each in again.items() if n in numbers}, request, course.reference[1])
    preface = _show(course, members, again, winner)
    known = _registered(course, winner)
    if known:
        course.run.note(f"{preface}Registered before, as {known}.")
        print(f"\nregistered before, as {known}")
        return known
    values, kept = trials[winner].params, trials[winner].user_attrs["metrics"]
    found = SearchProvenance(
        {"search.study": request.study, "search.trial": str(winner)},
        {"search": {"study": request.study, "trial": winner, "of": len(course.books.trials), "values": values,
                    "prefer": request.search.prefer, "scores": again, "front": sorted(numbers)}},
        preface,
    )  # fmt: skip
    diffusion = Diffusion.load(request.base)
    diffusion.denoiser.load_state_dict(objective.weights_of(request.task(), winner, request.by_field(values)))
    cost = {key: value for key, value in kept.items() if key.startswith("cost/")} | {"cost/search_minutes": minutes}
    correction = request.correction(values, evaluation)
    address = measure_and_register(correction, course.run, diffusion, request.parent, stop, cost=cost, found=found)
    course.books.study.set_user_attr(f"version of trial {winner}", address)
    return address


def measured(
    request: SearchConfig, crew: WorkerPool, trials: Mapping[int, FrozenTrial], evaluation: Evaluation
) -> dict[int, dict[str, float]]:
    """Return the scores of trials by another evaluation, by number; the base is measured by it too."""
    shared: dict[str, Any] = {"evaluation": asdict(evaluation)}
    jobs = deque([Job({"kind": "base", "number": _BASE, **shared})])
    for number, each in trials.items():
        jobs.append(Job({"kind": "again", "number": number, "values": request.by_field(each.params), **shared}))
    metrics: dict[int, dict[str, float]] = {}

    def on_message(job: Job, message: Message) -> bool:
        if message["kind"] == "failed":
            raise RuntimeError(f"trial {job.request['number']} could not be measured again: {message['reason']}")
        if message["kind"] == "done":
            metrics[job.request["number"]] = message["metrics"]
        return False

    crew.run(lambda: jobs.popleft() if jobs else None, on_message)
    base = metrics.pop(_BASE)
    minutes = {number: {"minutes": each.user_attrs["scores"]["minutes"]} for number, each in trials.items()}
    return {n: objective.scores(each, base, request.search.quality) | minutes[n] for n, each in sorted(metrics.items())}


def choose(front: Mapping[int, Scores], request: SearchConfig, unit: float) -> int:
    """Return the number of the trial to register, among those that keep to the constraint on fresh seeds too, if any do.

    The knee is the member nearest to the ideal, forgetting 0 at the base's own quality, where one unit of quality is the
    base's distance from real images (the joint objective's unit). Scaling by the front's own extent instead would let a
    probability of 1e-4 count as much as a doubled FID. A joint objective has no knee: the least wins.
    """
    allowed = {n: each for n, each in front.items() if each["accuracy_drop"] <= request.search.accuracy_drop} or front
    key = PREFERENCES[request.search.prefer] or ("joint" if request.search.objective == "joint" else "")
    if key:
        return min(allowed, key=lambda n: (allowed[n][key], allowed[n]["quality"]))
    return min(allowed, key=lambda n: allowed[n]["forgetting"] ** 2 + (max(0.0, allowed[n]["quality"]) / unit) ** 2)


def _registered(course: StudyRunner, winner: int) -> str:
    """Return the version that a trial became when the study ended before, "" where there is none (any more)."""
    address = str(course.books.study.user_attrs.get(f"version of trial {winner}", ""))
    try:
        return model_versions.pinned(address)
    except InputError:  # deleted since, or the registry is another one
        return ""


def _nothing(course: StudyRunner) -> str:
    trials, drop = course.books.trials, course.request.search.accuracy_drop
    if course.books.completed:
        least = min(each.user_attrs["scores"]["accuracy_drop"] for each in course.books.completed)
        return (
            f"accuracy_drop = {drop:g} is kept by none of {len(trials)} trials; the least that one lost is {least:.3g}"
        )
    reasons = [each.user_attrs["reason"] for each in trials if "reason" in each.user_attrs]
    return f"none of {len(trials)} trials ended with a result; {reasons[0] if reasons else 'all were given up'}"


def _show(course: StudyRunner, members: Sequence[FrozenTrial], again: Mapping[int, Scores], winner: int) -> str:
    """Log tables and figures to the study's run; return the head of its note."""
    run, captions, books = course.run, course.captions, course.books
    done, names = books.completed, list(course.request.space.ranges)
    run.table(figures.table(books.trials, names).reset_index(), "trials")
    run.picture(figures.history(done, course.reference, captions), "history")
    shares = figures.importances(books.study, names)
    if shares is not None:
        run.picture(figures.bars(shares, captions), "importances")
        run.table(shares.reset_index(), "importances")
    page = course.request.folder / "front.html"
    page.write_text(figures.page(done, members, captions, winner), encoding="utf-8")
    run.artifact(page)
    final = _table(books, names, again, winner)
    run.table(final.reset_index(), "front")
    fresh = {number: (scores["forgetting"], scores["quality"]) for number, scores in again.items()}
    picture = run.picture(figures.front(done, members, captions, winner, fresh), "front")
    shown = final.map("{:.3g}".format)
    print(f"\nfront of {course.request.study} and its defaults (trial 0), on fresh seeds\n\n{as_text(shown)}")
    return (
        f"**Search**: trial {winner} of {len(books.trials)}, study `{course.request.study}`, prefer "
        f"{course.request.search.prefer}.\n\n{picture}\n\nThe front and the defaults (trial 0) on fresh seeds:\n\n"
        f"{as_markdown(shown)}\n\n"
    )


def _table(books: TrialScheduler, names: Sequence[str], again: Mapping[int, Scores], winner: int) -> pd.DataFrame:
    trials, joint = books.trials, books.plan.objective == "joint"
    rows = [
        {name: trials[n].params[name] for name in names}
        | {name: value for name, value in scores.items() if joint or not name.startswith("joint")}
        for n, scores in again.items()
    ]
    index = [f"{n} (chosen)" if n == winner else str(n) for n in again]
    return pd.DataFrame(rows, index=pd.Index(index, name="trial"))
