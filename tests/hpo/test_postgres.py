"""Several machines share a PostgreSQL database, a real one; a machine that dies loses no trial."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from hpo import storage, study
from hpo.proposal import StudyPlan
from hpo.study import TrialLost, TrialScheduler
from tests.hpo.test_study import PLAN, open_scheduler, rows, run_trials, scored

pgserver = pytest.importorskip("pgserver", reason="needs a PostgreSQL server: pip install pgserver")
pytest.importorskip("psycopg", reason="needs a PostgreSQL driver: pip install 'psycopg[binary]'")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = pgserver.get_server(tmp_path_factory.mktemp("postgres"))
    yield server.get_uri()
    server.cleanup()


def test_machines_can_open_a_new_database_at_the_same_time(tmp_path: Path) -> None:
    server = pgserver.get_server(tmp_path)

    def come(number: int) -> bool:
        with storage.opened(server.get_uri(), "shared", Path("unused")) as store:
            return isinstance(store.storage, RDBStorage)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(come, range(4)))
    server.cleanup()


@pytest.fixture
def plan(request: pytest.FixtureRequest) -> StudyPlan:
    """A study of the test's own."""
    return replace(PLAN, name=request.node.name, trials=8)


@contextmanager
def machine(address: str, plan: StudyPlan) -> Iterator[tuple[TrialScheduler, storage.Store]]:
    with storage.opened(address, plan.name, Path("unused")) as store:
        yield TrialScheduler(plan, store), store


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Consider a machine dead after a second without a heartbeat."""
    monkeypatch.setattr(storage, "HEARTBEAT_SECONDS", 1)
    monkeypatch.setattr(storage, "GRACE_SECONDS", 1)


def abandoned(address: str, plan: StudyPlan, monkeypatch: pytest.MonkeyPatch) -> int:
    """Start a trial on a machine that then dies; return the trial's number."""
    with monkeypatch.context() as patch, machine(address, plan) as (scheduler, _):
        patch.setattr(study.tracking, "this_process", lambda: "another-machine/1")
        trial = scheduler.start_next()
        assert trial is not None
    return trial.number


def test_a_database_holds_the_same_study_as_a_journal(address: str, plan: StudyPlan, tmp_path: Path) -> None:
    with machine(address, plan) as (scheduler, _):
        run_trials(scheduler, 100)
        shared = rows(scheduler.trials)
    with open_scheduler(tmp_path, plan) as scheduler:
        run_trials(scheduler, 100)
        assert rows(scheduler.trials) == shared


def test_the_machine_that_comes_first_leads_and_the_next_one_leads_after_its_death(
    address: str, plan: StudyPlan
) -> None:
    with machine(address, plan) as (_, first), machine(address, plan) as (_, second):
        assert (first.leads, second.leads) == (True, False)
    with machine(address, plan) as (_, third):
        assert third.leads


def test_two_machines_share_the_trials_and_run_none_twice(address: str, plan: StudyPlan) -> None:
    with machine(address, plan) as (one, _), machine(address, plan) as (other, _):
        taken = []
        for scheduler in (one, other, other, one, one, other, one, other):
            trial = scheduler.start_next()
            assert trial is not None
            taken.append((scheduler, trial))
        assert one.start_next() is None
        assert other.start_next() is None
        for scheduler, trial in taken:
            scheduler.complete(trial.number, scored(trial), {})
        assert sorted(trial.number for _, trial in taken) == list(range(8))
        assert one.num_ended == other.num_ended == 8


def test_a_trial_of_this_machine_is_resumed_under_its_number(address: str, plan: StudyPlan, tmp_path: Path) -> None:
    with machine(address, plan) as (scheduler, _):
        run_trials(scheduler, 2)
        scheduler.start_next()
    for number in range(2, 8):
        with machine(address, plan) as (scheduler, _):
            # The process that took the trial is this one, which lives: only after its death is the trial an orphan.
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("pipelines.tracking.alive", lambda params: False)
                trial = scheduler.start_next()
            assert trial is not None
            assert trial.number == number
            scheduler.complete(number, scored(trial), {})
            scheduler.start_next()
    with machine(address, plan) as (scheduler, _), open_scheduler(tmp_path, plan) as undisturbed:
        run_trials(undisturbed, 100)
        assert rows(scheduler.trials) == rows(undisturbed.trials)


def test_the_trial_of_a_dead_machine_is_run_again_and_counted_once(
    address: str, plan: StudyPlan, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    number = abandoned(address, plan, monkeypatch)
    with machine(address, plan) as (scheduler, _):
        time.sleep(1.5)
        run_trials(scheduler, 100)
        trials = scheduler.trials
        assert scheduler.num_ended == 8
    assert trials[number].state == TrialState.FAIL
    (again,) = (each for each in trials if each.system_attrs.get("retry_history") == [number])
    assert again.params == trials[number].params
    assert sum(each.state == TrialState.COMPLETE for each in trials) == 8
    assert len(trials) == 9


def test_a_trial_on_which_every_machine_dies_fails_after_three_more_tries(
    address: str, plan: StudyPlan, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    for _ in range(4):
        abandoned(address, plan, monkeypatch)
        time.sleep(1.5)
    with machine(address, plan) as (scheduler, _):
        run_trials(scheduler, 100)
        trials = scheduler.trials
        assert scheduler.num_ended == 8
    assert [each.system_attrs.get("retry_history", []) for each in trials[:5]] == [[], [0], [0, 1], [0, 1, 2], []]
    assert [each.state for each in trials[:4]] == [TrialState.FAIL] * 4
    assert sum(each.state == TrialState.COMPLETE for each in trials) == 7


def test_a_machine_that_was_considered_dead_learns_that_another_one_runs_its_trial(
    address: str, plan: StudyPlan, impatient: None
) -> None:
    for tell in (
        lambda mine, number: mine.report(number, 50, 0.5, 0.0),
        lambda mine, number: mine.set_attrs(number, deaths=["SIGKILL"]),
        lambda mine, number: mine.end(number, TrialState.PRUNED, {}),
        lambda mine, number: mine.complete(number, scored(mine.trials[number]), {}),
    ):
        with machine(address, plan) as (silent, _), machine(address, plan) as (other, _):
            trial = silent.start_next()
            assert trial is not None
            time.sleep(2.5)
            run_trials(other, 1)  # the copy
            assert silent.is_running_here(trial.number)
            with pytest.raises(TrialLost):
                tell(silent, trial.number)
            assert not silent.is_running_here(trial.number)
            assert other.trials[trial.number].state == TrialState.FAIL
            assert other.num_ended == len([each for each in other.trials if each.state == TrialState.COMPLETE])


def test_a_machine_with_a_heartbeat_keeps_its_trial(address: str, plan: StudyPlan, impatient: None) -> None:
    with machine(address, plan) as (slow, _), machine(address, plan) as (other, _):
        trial = slow.start_next()
        assert trial is not None
        with slow.heartbeats():
            time.sleep(2.5)
            run_trials(other, 1)
            assert other.trials[trial.number].state == TrialState.RUNNING
        slow.complete(trial.number, scored(trial), {})
        assert other.num_ended == 2
