"""Search a method's knobs for the best trade between forgetting and quality, show the front, and register the winner.

    mlflow run . -e hpo -P method=safemax -P forget=airplane -P trials=40
    python -m hpo.search --forget=3 --steps=150 --retain_weight=3.072 --space=lr=1e-5:1e-3:log,lambda=0:5 --workers=2

Every knob of the method and of its training that has a search range is searched, except those that you give a value
(--steps=150). The space changes that: NAME=LOW:HIGH searches a range, NAME=LOW:HIGH:log on a logarithmic scale, NAME=VALUE
holds a value. Trial 0 takes the defaults.

The same command resumes a study that was stopped; with more trials it extends the study. --cluster=auto --workers=8 runs trials on
a Ray cluster. Or run the same command on several machines with --storage=postgresql://USER@HOST/DATABASE and one
MLFLOW_TRACKING_URI; the first one evaluates and registers. `optuna-dashboard` opens the same storage: that address, or
.safemax/studies/STUDY.journal.
"""

from __future__ import annotations

if __name__ == "__main__":  # first: help and refusals need none of the imports below
    from pipelines.cli import console

    console.run("hpo")

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain

import torch
from optuna.trial import FrozenTrial, TrialState

from hpo import space, storage
from hpo.config import PARAMETERS, SHOWN, SearchConfig
from hpo.finish import finish
from hpo.proposal import warn_of_population
from hpo.runner import StudyRunner
from hpo.study import TrialScheduler
from hpo.study_note import begun
from hpo.trial import load
from hpo.trial_runs import STATE, Ending, TrialRuns, inherit
from pipelines import tracking
from pipelines.cli.method_options import parse_for_method
from pipelines.cli.parameters import UsageError
from pipelines.cli.parser import text_of
from pipelines.correction import concepts
from pipelines.correction.base_model import find_base
from pipelines.correction.judge_jobs import train_judges
from pipelines.correction.recorded_data import parse_with_recorded
from pipelines.correction.source import ready
from pipelines.engine.batch import raise_if_stopped
from pipelines.engine.signals import StopSignal, die_with_parent, stop_on_signals
from pipelines.engine.workers import open_workers
from pipelines.planning.plan import Plan, Stage, show
from pipelines.planning.stages import Planner
from safemax import metric_keys as keys
from safemax.data.class_names import parse_classes
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError
from safemax.evaluation.enough_images import check_enough_images
from safemax.methods import validate_steps

FRONT = 5  # trials that a plan takes the front to have


def run(config: SearchConfig, stop: StopSignal) -> str:
    """Run a study to its end in an MLflow run of its own and return the address of what it registered.

    On a shared storage, return "" where another machine came first: that one measures the front and registers.

    Raises:
        InputError: the model, the storage or the study's name does not fit, or no trial is within the constraint.
        Stopped: `stop` was raised; the same configuration resumes the study.
    """
    started = time.perf_counter()
    torch.set_num_threads(1)
    warn_of_population(config.plan())
    tags = {"search.study": config.study, **config.tags}
    with storage.opened(config.search.storage, config.study, config.journal) as store:
        scheduler = TrialScheduler(config.plan(), store)
        _validate_key(scheduler, config)
        with _opened(config, tags) as opened:
            _lead(scheduler, opened) if store.leads else _wait_for_leader(scheduler, stop)
            train_judges(config.search, config.data, config.dataset, config.judging, config.training.device, stop)
            workers = open_workers(
                config.search, load, config.trial_config(), stop, raise_if_stopped(stop, "the study"),
                device=config.training.device,
            )  # fmt: skip
            trial_runs = TrialRuns(
                lambda: str(scheduler.study.user_attrs["run"]), config.name, config.shared_params(), tags
            )
            with scheduler.heartbeats(), workers, trial_runs:
                runner = StudyRunner(config, scheduler, workers, trial_runs, opened)
                runner.run_trials()
                if store.leads:
                    return finish(runner, stop, (time.perf_counter() - started) / 60)
    print("all trials have ended; the machine that started the study measures the front and registers its best member")
    return ""


@contextmanager
def _opened(config: SearchConfig, tags: Mapping[str, str]) -> Iterator[tracking.Run]:
    name, tags = f"search-{config.title}", {"kind": "search", **tags}
    with tracking.run(
        name, experiment=config.name, params=config.params(), tags=tags, shown=SHOWN, description=begun(config)
    ) as opened:
        opened.dataset(config.dataset, "training")
        opened.parameters(config.parameters)
        yield opened


def _lead(scheduler: TrialScheduler, opened: tracking.Run) -> None:
    """Make this run the study's, and the trials of its earlier runs children of this one."""
    earlier = scheduler.study.user_attrs.get("run")
    if earlier:
        inherit(opened, earlier, dict(chain.from_iterable(_endings(scheduler, each) for each in scheduler.trials)))
    scheduler.study.set_user_attr("run", opened.id)


def _endings(scheduler: TrialScheduler, trial: FrozenTrial) -> Iterator[tuple[str, Ending | None]]:
    """Yield the runs of a trial, each with the ending that it should have; all but the last were killed."""
    *killed, last = trial.user_attrs.get("runs", [""])
    yield from ((each, Ending("KILLED")) for each in killed)
    if last and trial.state == TrialState.RUNNING:
        yield last, Ending("KILLED") if scheduler.is_orphan(trial) else None
    elif last:
        yield last, _ending(trial)


def _ending(trial: FrozenTrial) -> Ending:
    """Return how the run of a trial that has ended should have ended."""
    facts, tags = trial.user_attrs, {STATE: trial.state.name.lower()}
    if trial.state == TrialState.FAIL:
        return Ending("FAILED", tags={**tags, "failure": str(facts.get("reason", ""))})
    scores = {f"search/{name}": value for name, value in facts.get("scores", {}).items()}
    return Ending("FINISHED", {**keys.charted(facts.get("metrics", {})), **scores}, tags)


def _wait_for_leader(scheduler: TrialScheduler, stop: StopSignal) -> None:
    tick = raise_if_stopped(stop, "the study")
    while "run" not in scheduler.study.user_attrs:
        time.sleep(1)
        tick()


def _validate_key(scheduler: TrialScheduler, config: SearchConfig) -> None:
    """Raise InputError where the study was made with another space, objective or model: its trials could not be compared."""
    if scheduler.study.user_attrs.get("key", config.key) != config.key:
        raise InputError(f"study = {config.study} was started with other parameters; give another name, or study=auto")
    scheduler.study.set_user_attr("key", config.key)


def read_config(argv: Sequence[str]) -> SearchConfig:
    """Return the search that a command line describes; --method chooses the method, and with it the knobs."""
    name = text_of(argv, "method") or "safemax"
    chosen = parse_with_recorded(
        lambda settings: parse_for_method("python -m hpo.search", __doc__ or "", PARAMETERS, argv, settings)[1]
    )
    _refuse_logged_password(chosen["search"].storage)
    data = concepts.data_of(chosen)
    dataset = data.load()
    product, source = chosen["model"].name_for(dataset), chosen["model"].model
    method = chosen[name]
    try:
        ranges = space.read(chosen["search"].space, method, chosen["training"], chosen.given)
        method, training = space.holding(ranges.held, method), space.holding(ranges.held, chosen["training"])
        fewest = ranges.ranges["steps"].low if "steps" in ranges.ranges else training.steps
        validate_steps(method, int(fewest))
    except InputError as error:
        raise UsageError(str(error)) from error
    forget = parse_classes(concepts.forget_of(chosen), dataset.class_names)
    check_enough_images(dataset, forget)
    source = find_base(product, chosen["data"].data) if source == "base" else source
    prompts = concepts.prompts_of(chosen["model"], dataset.class_names)
    source, evaluation = ready(
        source,
        chosen["model"].schedule,
        dataset,
        chosen["evaluation"],
        prompts,
        forget=[forget],
        trainings=[(method, training)],
    )
    parameters = chosen.record(data=data.data)
    parameters["storage"]["value"] = tracking.without_password(chosen["search"].storage)
    return SearchConfig(
        chosen["search"], data, dataset, forget, source,
        product, name, method, training, evaluation, chosen["judging"], ranges, parameters, chosen["plan"].plan,
    )  # fmt: skip


def _refuse_logged_password(address: str) -> None:
    """Raise InputError where `mlflow run` has logged a password: nothing can take a parameter of a run back."""
    masked, run_id = tracking.without_password(address), os.environ.get("MLFLOW_RUN_ID")
    if run_id and masked != address:
        raise UsageError(
            f"storage = {masked} is not allowed under `mlflow run`, which has just written the password into the parameters of "
            f"run {run_id}: change the password, delete the run (mlflow runs delete --run-id {run_id}, then mlflow gc), and put "
            "the new password into PGPASSWORD or ~/.pgpass"
        )


def plan_of(config: SearchConfig) -> Plan:
    """Return what a search would do; a trial takes the middle of the range where the steps are searched."""
    model, search = Diffusion.load(config.base), config.search
    config.method.validate(model)
    planner = Planner.measured(model, config.dataset, config.forget, config.training)
    steps = (
        round(config.space.ranges["steps"].levels(1)[0]) if "steps" in config.space.ranges else config.training.steps
    )
    parts = planner.unlearn(config.method_name, config.method, replace(config.training, steps=steps))
    parts.append(planner.draw("corrected", config.evaluation))
    minutes = search.trials * sum(each.minutes for each in parts)
    does = f"{search.trials} trials: {parts[-2].does}; {parts[-1].does}"
    again = FRONT * search.final_samples * parts[-1].minutes
    trials = Stage("trials", does, minutes, parallel=search.workers)
    front = Stage("front", f"draw {FRONT} of them again, {search.final_samples} times as many images", again)
    stages = [*planner.judges(config.judging), planner.draw("base", config.evaluation, model), trials, front]
    logs = f"a run in the experiment {config.name} with the front, and a run for each trial; the winner as the next version."
    basis = f"{planner.basis} Trials of this study that exist already are not run again, and bad ones end early."
    return Plan(f"search {config.title}", [*stages, planner.register("candidate")], logs, basis)


def search(argv: Sequence[str]) -> None:
    """Search by the command line's parameters."""
    stop = stop_on_signals()
    die_with_parent()
    config = read_config(argv)
    if config.plans:
        show(plan_of(config))
        return
    run(config, stop)
