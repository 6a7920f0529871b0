"""What a search promises when its processes are killed; takes minutes, on real workers."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import psutil
import pytest
from mlflow import MlflowClient
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from hpo.config import SearchConfig
from hpo.proposal import RETRIED
from pipelines import ROOT
from tests.hpo.conftest import BuildSearch
from tests.hpo.test_search import killed, trials_of
from tests.hpo.test_study import rows
from tests.support.ray_clusters import workers

pytestmark = pytest.mark.slow


def command(config: SearchConfig, *more: str) -> list[str]:
    """Return the command that starts a search."""
    facts: dict[str, object] = {
        "data": config.data.data,
        "model": config.source,
        "name": config.name,
        "forget": "a",
        "device": "cpu",
    }
    facts |= {"steps": config.training.steps, "batch_size": config.training.batch_size, "retain_weight": 3.072}
    facts |= {"protocol": "custom", "sampler_steps": 2, "forget_samples": 6, "retain_samples": 6, "second_samples": 5}
    facts |= {"user_samples": 0}
    facts |= {"judge_steps": 5, "reject_judges": 1, "final_samples": 2, "accuracy_drop": 100.0, "prune": "false"}
    given = [f"--{name}={value}" for name, value in {**facts, "trials": config.search.trials}.items()]
    return [sys.executable, "-m", "hpo.search", *given, *more]


def start(config: SearchConfig, *more: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command(config, *more), env=environment)


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Kill a process at the end."""
    try:
        yield
    finally:
        process.kill()
        process.wait()


def until_trials(config: SearchConfig, n: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until the study that a process works on has n trials."""
    deadline = time.monotonic() + 240
    while len(trials_of(config)) < n:
        assert process.poll() is None, "the search ended, and this is not its study"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def shared(address: str) -> list[FrozenTrial]:
    """Return the trials of the study `shared`, none where it does not exist yet."""
    try:
        return optuna.load_study(study_name="shared", storage=address.replace("://", "+psycopg://", 1)).trials
    except (KeyError, SQLAlchemyError):
        return []


def until_it_runs_one(address: str, process: subprocess.Popen[bytes]) -> int:
    """Wait until a machine runs a trial and return the trial's number."""
    deadline = time.monotonic() + 240
    while True:
        for each in shared(address):
            if each.state == TrialState.RUNNING and f"/{process.pid}/" in each.user_attrs.get("owner", ""):
                return each.number
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Choose a cache, and with it a place for journals, by name."""
    return lambda name: monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path / name))


def test_all_of_60_trials_complete_once_although_12_workers_are_killed(
    mlflow_store: MlflowClient, tiny_search: BuildSearch, apart: Callable[[str], None]
) -> None:
    apart("cache")
    config = tiny_search(trials=60, workers=2, steps=10)
    killed(config, 12)
    trials = trials_of(config)
    assert [each.number for each in trials] == list(range(60))
    assert {each.state for each in trials} == {TrialState.COMPLETE}
    assert 1 <= sum(len(each.user_attrs.get("deaths", [])) for each in trials) <= 12
    assert workers() == []
    runs = mlflow_store.search_runs(
        [each.experiment_id for each in mlflow_store.search_experiments()], "tags.kind = 'trial'", max_results=200
    )
    assert sorted(int(each.data.tags["search.trial"]) for each in runs) == list(range(60))
    assert {each.info.status for each in runs} == {"FINISHED"}


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_study_resumes_with_the_same_command_to_the_table_of_an_undisturbed_one(
    mlflow_store: MlflowClient, tiny_search: BuildSearch, apart: Callable[[str], None], by: signal.Signals
) -> None:
    # Twelve trials: the sampler learns from the eleventh on. One worker: one trial at a time.
    config = tiny_search(trials=12, steps=10)
    apart("whole")
    assert start(config).wait(300) == 0
    undisturbed = rows(trials_of(config))
    apart("stopped")
    dice = random.Random(0)
    for done in (0, 4, 10):
        process = start(config)
        with ended(process):
            until_trials(config, done + 1, process)
            time.sleep(dice.uniform(0, 1.5))
            below = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(by)
            assert process.wait(30) == (128 + signal.SIGTERM if by == signal.SIGTERM else -signal.SIGKILL)
            assert psutil.wait_procs(below, 30)[1] == []
    assert start(config).wait(300) == 0
    assert rows(trials_of(config)) == undisturbed
    everywhere = [each.experiment_id for each in mlflow_store.search_experiments()]
    assert mlflow_store.search_runs(everywhere, "attributes.status = 'RUNNING'") == []
    last = mlflow_store.search_runs(everywhere, "tags.kind = 'search'", order_by=["attributes.start_time DESC"])[0]
    children = mlflow_store.search_runs(everywhere, f"tags.`mlflow.parentRunId` = '{last.info.run_id}'")
    finished = [each.data.tags["search.trial"] for each in children if each.info.status == "FINISHED"]
    assert sorted(finished) == sorted(map(str, range(12)))


def test_two_machines_that_share_a_database_finish_a_study_although_one_dies(
    mlflow_store: MlflowClient, tiny_search: BuildSearch, apart: Callable[[str], None], tmp_path: Path
) -> None:
    pgserver = pytest.importorskip("pgserver", reason="needs a PostgreSQL server: pip install pgserver")
    pytest.importorskip("psycopg", reason="needs a PostgreSQL driver: pip install 'psycopg[binary]'")
    config = tiny_search(trials=24, steps=60)
    server = pgserver.get_server(tmp_path / "postgres")
    address = server.get_uri()
    apart("one")
    leader = start(config, f"--storage={address}", "--study=shared")
    with ended(leader):
        until_it_runs_one(address, leader)  # it came first, so it will register
        apart("two")
        helper = start(config, f"--storage={address}", "--study=shared")
        with ended(helper):
            number = until_it_runs_one(address, helper)
            helper.kill()
            assert leader.wait(400) == 0
    ended_by = {
        each.user_attrs["owner"].split("/")[1] for each in shared(address)
        if each.state == TrialState.COMPLETE and number in (each.number, *each.system_attrs.get(RETRIED, []))
    }  # fmt: skip
    assert ended_by == {str(leader.pid)}
    assert sum(each.state == TrialState.COMPLETE for each in shared(address)) == 24
    (version,) = mlflow_store.search_model_versions("")
    assert version.tags["search.study"] == "shared"
    server.cleanup()
