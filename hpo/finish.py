"""The end of a study: its front measured again on fresh seeds, reported, and one member of it registered."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd
from optuna.trial import FrozenTrial

from hpo import figures, objective
from hpo.config import SearchConfig
from hpo.runner import StudyRunner
from hpo.study import TrialScheduler
from hpo.study_note import Scores, advice, choose, none_allowed
from hpo.trial import final_evaluation, weights_of
from pipelines.correction.correct import measure_and_register
from pipelines.correction.correction import SearchProvenance
from pipelines.engine.signals import StopSignal
from pipelines.engine.worker import Message
from pipelines.engine.workers import Job, Workers
from pipelines.registry import model_versions
from safemax import metric_keys as keys
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError
from safemax.evaluation.protocol import Evaluation
from safemax.reports.images_and_tables import as_markdown, as_text

_BASE = -1  # in place of a trial's number
_NEAREST = 10  # trials in the note of a study without a front


def finish(runner: StudyRunner, stop: StopSignal, minutes: float) -> str:
    """Measure the front and the defaults again, report, register the preferred member, and return its address.

    Args:
        runner: the study, whose trials have all ended, and its workers.
        stop: raised, it ends the run.
        minutes: that the search has taken so far.

    Raises:
        InputError: no trial has a result within the constraint.
    """
    config, members = runner.config, runner.scheduler.front()
    if not members:
        raise _report_nothing_allowed(runner)
    evaluation = final_evaluation(config.evaluation, config.search.final_samples)
    trials = {each.number: each for each in (*runner.scheduler.completed[:1], *members)}
    fresh = measure_again(config, runner.workers, trials, evaluation)
    winner = choose({each.number: fresh[each.number] for each in members}, config, runner.reference[1])
    preface = _report(runner, members, fresh, winner)
    address = _registered_before(runner, winner)
    if address:
        runner.run.note(f"{preface}Already registered as {address}.")
        print(f"\nalready registered as {address}")
        return address
    address = _register(runner, trials[winner], evaluation, stop, minutes, _provenance(runner, winner, fresh, preface))
    runner.scheduler.study.set_user_attr(f"version of trial {winner}", address)
    return address


def _provenance(runner: StudyRunner, winner: int, fresh: Mapping[int, Scores], preface: str) -> SearchProvenance:
    config, scheduler = runner.config, runner.scheduler
    evidence = {
        "study": config.study,
        "trial": winner,
        "of": len(scheduler.trials),
        "values": scheduler.trials[winner].params,
        "prefer": config.search.prefer,
        "scores": fresh,
        "front": sorted(each.number for each in scheduler.front()),
    }
    return SearchProvenance({"search.study": config.study, "search.trial": str(winner)}, {"search": evidence}, preface)


def _register(
    runner: StudyRunner,
    trial: FrozenTrial,
    evaluation: Evaluation,
    stop: StopSignal,
    minutes: float,
    provenance: SearchProvenance,
) -> str:
    config = runner.config
    diffusion = Diffusion.load(config.base)
    weights = weights_of(config.trial_config(), trial.number, config.by_field(trial.params))
    diffusion.denoiser.load_state_dict(weights)
    metrics = trial.user_attrs["metrics"]
    cost = {key: value for key, value in metrics.items() if key.startswith(keys.COST)}
    return measure_and_register(
        config.correction(trial.params, evaluation), runner.run, diffusion, config.parent, stop,
        cost=cost | {keys.SEARCH_MINUTES: minutes}, provenance=provenance,
    )  # fmt: skip


def measure_again(
    config: SearchConfig, workers: Workers, trials: Mapping[int, FrozenTrial], evaluation: Evaluation
) -> dict[int, dict[str, float]]:
    """Return the scores of trials by another evaluation, by number; the base is measured by the same evaluation."""
    shared: dict[str, Any] = {"evaluation": asdict(evaluation)}
    jobs = deque([Job({"kind": "base", "number": _BASE, **shared})])
    for number, each in trials.items():
        jobs.append(Job({"kind": "measure_again", "number": number, "values": config.by_field(each.params), **shared}))
    metrics: dict[int, dict[str, float]] = {}

    def on_message(job: Job, message: Message) -> bool:
        if message["kind"] == "failed":
            raise RuntimeError(f"trial {job.spec['number']} could not be measured again: {message['reason']}")
        if message["kind"] == "done":
            metrics[job.spec["number"]] = message["metrics"]
        return False

    workers.run(lambda: jobs.popleft() if jobs else None, on_message)
    base = metrics.pop(_BASE)
    minutes = {number: {"minutes": each.user_attrs["scores"]["minutes"]} for number, each in trials.items()}
    return {n: objective.scores(each, base, config.search.quality) | minutes[n] for n, each in sorted(metrics.items())}


def _registered_before(runner: StudyRunner, winner: int) -> str:
    """Return the version that an earlier end of the study registered of a trial; "" where there is none, or none any more."""
    address = str(runner.scheduler.study.user_attrs.get(f"version of trial {winner}", ""))
    try:
        return model_versions.resolve_alias(address)
    except InputError:  # deleted since, or the registry is another one
        return ""


def _report_nothing_allowed(runner: StudyRunner) -> InputError:
    """Log all that a study without a front has found, with advice in the note; return the error that ends it."""
    config, scheduler = runner.config, runner.scheduler
    reason = none_allowed(config, scheduler)
    picture = _log_trials(runner, [], None)
    table = as_markdown(figures.readable(figures.table(scheduler.trials, list(config.space.ranges)))[:_NEAREST])
    runner.run.note(
        f"**Nothing registered**: {reason} {advice(config, scheduler)}",
        f"{picture}\n\nThe trials that lose least:\n\n{table}" if scheduler.completed else "",
    )
    print(f"\n{reason}\n{advice(config, scheduler)}\n{runner.run.url}  (after `make ui`)")
    return InputError(f"nothing to register: {reason.rstrip('.')}")


def _log_trials(
    runner: StudyRunner,
    members: Sequence[FrozenTrial],
    winner: int | None,
    points: Mapping[int, figures.Point] | None = None,
) -> str:
    """Log tables and figures of all trials to the study's run; return the markdown of the picture of the front."""
    run, captions, scheduler = runner.run, runner.captions, runner.scheduler
    completed, names = scheduler.completed, list(runner.config.space.ranges)
    run.table(figures.table(scheduler.trials, names).reset_index(), "trials")
    if not completed:
        return ""
    run.picture(figures.history(completed, runner.reference, captions), "history")
    shares = figures.importances(scheduler.study, names)
    if shares is not None:
        run.picture(figures.bars(shares, captions), "importances")
        run.table(shares.reset_index(), "importances")
    page = runner.config.folder / "front.html"
    page.write_text(figures.page(completed, members, captions, winner), encoding="utf-8")
    run.artifact(page)
    return run.picture(figures.front(completed, members, captions, winner, points), "front")


def _report(runner: StudyRunner, members: Sequence[FrozenTrial], fresh: Mapping[int, Scores], winner: int) -> str:
    """Log tables and figures to the study's run; return the start of its note."""
    scheduler, names = runner.scheduler, list(runner.config.space.ranges)
    points = {number: (scores["forgetting"], scores["quality"]) for number, scores in fresh.items()}
    picture = _log_trials(runner, members, winner, points)
    table = _table(scheduler, names, fresh, winner)
    runner.run.table(table.reset_index(), "front")
    shown = figures.readable(table)
    print(f"\nfront of {runner.config.study} and the defaults (trial 0), on fresh seeds\n\n{as_text(shown)}")
    return (
        f"**Search**: trial {winner} of {len(scheduler.trials)} was chosen by prefer={runner.config.search.prefer}; study "
        f"`{runner.config.study}`.\n\n{picture}\n\nThe front and the defaults (trial 0) on fresh seeds:\n\n"
        f"{as_markdown(shown)}\n\n"
    )


def _table(scheduler: TrialScheduler, names: Sequence[str], fresh: Mapping[int, Scores], winner: int) -> pd.DataFrame:
    trials, joint = scheduler.trials, scheduler.plan.objective == "joint"
    rows = [
        {name: trials[n].params[name] for name in names}
        | {name: value for name, value in scores.items() if joint or not name.startswith("joint")}
        for n, scores in fresh.items()
    ]
    index = [f"{n} (chosen)" if n == winner else str(n) for n in fresh]
    return pd.DataFrame(rows, index=pd.Index(index, name="trial"))
