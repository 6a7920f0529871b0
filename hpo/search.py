"""Search a method's knobs for the best trade between forgetting and quality, show the front, and register the winner.

    mlflow run . -e hpo -P method=safemax -P forget=airplane -P trials=40
    python -m hpo.search --forget=3 --steps=150 --retain_weight=3.072 --space=lr=1e-5:1e-3:log,lambda=0:5 --workers=2

Every knob of the method and of its training that has a search range is searched, except those that you give a value
(--steps=150). The space changes that: NAME=LOW:HIGH searches a range, NAME=LOW:HIGH:log on a logarithmic scale, NAME=VALUE
holds a value. Trial 0 takes the defaults.

The same command goes on with a study that was stopped, and with more trials it extends one. For many machines, give the
same command on each with --storage=postgresql://USER@HOST/DATABASE and one MLFLOW_TRACKING_URI; the first one
evaluates and registers. `optuna-dashboard` opens the same storage: that address, or .safemax/studies/STUDY.journal.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain

import torch
from optuna.trial import FrozenTrial, TrialState

from hpo import space, storage
from hpo.config import PARAMETERS, SearchConfig
from hpo.finish import finish
from hpo.runner import StudyRunner
from hpo.study import TrialScheduler, warn_of_population
from hpo.trial_runs import Ending, TrialRuns, inherit
from pipelines import tracking
from pipelines.cli.parameters import UsageError, for_method
from pipelines.cli.parser import choose, main, parse
from pipelines.cli.presets import with_preset
from pipelines.correction.base_model import find_base
from pipelines.engine.signals import StopSignal, die_with_parent, stop_on_sigterm
from pipelines.engine.worker_pool import WorkerPool
from safemax.data.batches import parse_classes
from safemax.errors import InputError, Stopped
from safemax.methods import available


def run(request: SearchConfig, stop: StopSignal) -> str:
    """Run a study to its end in an MLflow run of its own and return the address of what it registered.

    On a shared storage, "" where another machine came first: that one does the end.

    Raises:
        InputError: the model, the storage or the study's name does not fit, or no trial is worth registering.
        Stopped: `stop` said so; the same request goes on.
    """
    started = time.perf_counter()
    torch.set_num_threads(1)
    warn_of_population(request.plan())
    tags = {"search.study": request.study, **request.tags}
    with storage.opened(request.search.storage, request.study, request.journal) as store:
        books = TrialScheduler(request.plan(), store)
        _refuse_other_request(books, request)
        with _opened(request, tags) as opened:
            _lead(books, opened) if store.leads else _wait_for_leader(books, stop)
            crew = WorkerPool("hpo.worker", asdict(request.task()), request.search.workers, lambda: _beat(books, stop))
            records = TrialRuns(lambda: str(books.study.user_attrs["run"]), request.name, request.shared(), tags)
            with crew, records:
                course = StudyRunner(request, books, crew, records, opened)
                course.follow()
                if store.leads:
                    return finish(course, stop, (time.perf_counter() - started) / 60)
    print("all trials are over; the machine that came first evaluates the front and registers")
    return ""


@contextmanager
def _opened(request: SearchConfig, tags: Mapping[str, str]) -> Iterator[tracking.Run]:
    name, tags = f"search-{request.title}", {"kind": "search", **tags}
    with tracking.run(name, experiment=request.name, params=request.params(), tags=tags) as opened:
        opened.dataset(request.dataset, "training")
        yield opened


def _beat(books: TrialScheduler, stop: StopSignal) -> None:
    if stop():
        raise Stopped("the study goes on where it stands with the same command")
    books.tick()


def _lead(books: TrialScheduler, opened: tracking.Run) -> None:
    """Make this run the study's, and take the trials of those before it along."""
    earlier = books.study.user_attrs.get("run")
    if earlier:
        inherit(opened, earlier, dict(chain.from_iterable(_endings(books, each) for each in books.trials)))
    books.study.set_user_attr("run", opened.id)


def _endings(books: TrialScheduler, trial: FrozenTrial) -> Iterator[tuple[str, Ending | None]]:
    """Yield the runs of a trial, and how each should have been closed; all but the last were killed."""
    *killed, last = trial.user_attrs.get("runs", [""])
    yield from ((each, Ending("KILLED", {})) for each in killed)
    if last and trial.state == TrialState.RUNNING:
        yield last, Ending("KILLED", {}) if books.is_orphan(trial) else None
    elif last:
        status = "FAILED" if trial.state == TrialState.FAIL else "FINISHED"
        yield last, Ending(status, trial.user_attrs.get("metrics", {}))


def _wait_for_leader(books: TrialScheduler, stop: StopSignal) -> None:
    while "run" not in books.study.user_attrs:
        time.sleep(1)
        _beat(books, stop)


def _refuse_other_request(books: TrialScheduler, request: SearchConfig) -> None:
    """A study has one space, one objective and one model, or its trials could not be compared."""
    if books.study.user_attrs.get("key", request.key) != request.key:
        raise InputError(
            f"study = {request.study} was begun with other parameters; give it another name, or study=auto"
        )
    books.study.set_user_attr("key", request.key)


def requested(argv: Sequence[str]) -> SearchConfig:
    """Return what the command line asks for; --method chooses the method, and with it the knobs."""
    name, method_type = choose(argv, "method", {each: (each, cls) for each, cls in available().items()}, "safemax")
    chosen = parse("python -m hpo.search", __doc__ or "", for_method(PARAMETERS, name, method_type), argv)
    dataset = chosen["data"].load()
    product, source = chosen["model"].name_for(dataset), chosen["model"].model
    method = with_preset(name, chosen[name], chosen["method"].preset)
    given = {word[2:].partition("=")[0].replace("-", "_") for word in argv if word.startswith("--")}
    try:
        ranges = space.read(chosen["search"].space, method, chosen["training"], given)
        method, training = space.holding(ranges.held, method), space.holding(ranges.held, chosen["training"])
    except InputError as error:
        raise UsageError(str(error)) from error
    tracking.setup(product)
    source = find_base(product, chosen["data"].data) if source == "base" else source
    return SearchConfig(
        chosen["search"], chosen["data"], dataset, parse_classes(chosen["forget"].forget, dataset.class_names), source,
        product, name, method, training, chosen["evaluation"], chosen["judging"], ranges,
    )  # fmt: skip


def search(argv: Sequence[str]) -> None:
    """Search by the command line's parameters."""
    stop = stop_on_sigterm()
    die_with_parent()
    run(requested(argv), stop)


if __name__ == "__main__":
    main(search)
