"""Runs of dead processes are ended, all others are spared."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.projects.utils import _create_run

from pipelines import ROOT, tracking
from pipelines.reap import reap
from pipelines.registry import model_versions
from safemax.errors import InputError

SCRIPT = """
import sys, time
from pipelines import tracking
with tracking.run("job", experiment="tiny-ddpm", params={}, tags={}) as run:
    print(run.id, flush=True)
    time.sleep(60)
"""


def status(client: MlflowClient, run_id: str) -> str:
    return str(client.get_run(run_id).info.status)


def dead_run(client: MlflowClient, process: str | None = None) -> str:
    """Return a RUNNING run whose process is dead, or one that another process is said to have opened."""
    run_id = client.create_run(client.create_experiment(f"experiment-{time.monotonic()}")).info.run_id
    client.log_param(run_id, tracking.PROCESS, process or _record_of_dead())
    return run_id


def _record_of_dead() -> str:
    """Return the record of a process of this machine that has ended."""
    with subprocess.Popen(["true"]) as process:
        host, _, *rest = tracking.this_process().split("/")
    return "/".join([host, str(process.pid), *rest])


def test_a_run_of_a_dead_process_is_failed_and_says_so(mlflow_store: MlflowClient) -> None:
    gone = dead_run(mlflow_store)
    reap([])
    assert status(mlflow_store, gone) == "FAILED"
    assert mlflow_store.get_run(gone).data.tags["failure"].startswith("reaped: process ")


def test_a_process_id_that_another_process_has_now_does_not_save_a_run(mlflow_store: MlflowClient) -> None:
    gone = mlflow_store.create_run("0").info.run_id
    with tracking.run("job", experiment="tiny-ddpm", params={}, tags={}) as run:
        process = mlflow_store.get_run(run.id).data.tags["env.process"]
        mlflow_store.log_param(gone, "env.process", process.rpartition("/")[0] + "/1")
        reap([])
        assert status(mlflow_store, run.id) == "RUNNING"
    assert status(mlflow_store, gone) == "FAILED"


def test_runs_of_unknown_processes_and_other_peoples_runs_are_spared(mlflow_store: MlflowClient) -> None:
    host, pid, boot, *rest = _record_of_dead().split("/")
    elsewhere = ("/".join([host, pid, boot[::-1], *rest]), f"{host}/{pid}/1700000000", f"{host}/{pid}", "?")
    spared = [dead_run(mlflow_store, each) for each in elsewhere]
    spared.append(mlflow_store.create_run("0", start_time=1).info.run_id)
    reap([])
    assert {status(mlflow_store, each) for each in spared} == {"RUNNING"}


def test_a_run_of_an_unknown_process_is_listed_and_ended_by_its_id(
    mlflow_store: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [dead_run(mlflow_store, process) for process in ("elsewhere/7", "elsewhere/8")]
    reap([])
    assert f"left alone: elsewhere/7 may be alive; dead_run={runs[0]} ends it" in capsys.readouterr().out
    reap([f"--dead_run={runs[0]}"])
    assert [status(mlflow_store, each) for each in runs] == ["FAILED", "RUNNING"]
    assert "elsewhere/7 is dead, as dead_run=" in mlflow_store.get_run(runs[0]).data.tags["failure"]


@pytest.mark.parametrize("which", ["finished", "living", "nobody", "-"])
def test_a_run_that_is_not_running_or_whose_process_lives_is_not_ended_by_its_id(
    mlflow_store: MlflowClient, which: str
) -> None:
    with tracking.run("job", experiment="tiny-ddpm", params={}, tags={}) as finished:
        pass
    with tracking.run("job", experiment="tiny-ddpm", params={}, tags={}) as living:
        if which == "living":
            reap([f"--dead_run={living.id}"])
        else:
            with pytest.raises(InputError, match="dead_run = .* is not the id of a RUNNING run"):
                reap([f"--dead_run={finished.id if which == 'finished' else which}"])
        assert status(mlflow_store, living.id) == "RUNNING"
    assert status(mlflow_store, finished.id) == "FINISHED"


def test_a_run_that_mlflow_run_opened_and_nobody_took_over_is_ended_when_it_is_old(mlflow_store: MlflowClient) -> None:
    opened = _create_run(str(ROOT), "0", str(ROOT), None, "main", {}).info.run_id
    reap([])
    assert status(mlflow_store, opened) == "RUNNING"
    started = int(time.time() * 1000) - 2 * 3_600_000
    tags = mlflow_store.get_run(opened).data.tags
    old = mlflow_store.create_run("0", start_time=started, tags=tags).info.run_id
    elsewhere = mlflow_store.create_run("0", start_time=started, tags={**tags, "mlflow.source.name": "/x"}).info.run_id
    reap([])
    assert [status(mlflow_store, each) for each in (opened, old, elsewhere)] == ["RUNNING", "FAILED", "RUNNING"]


def test_a_dry_run_says_what_it_would_end(mlflow_store: MlflowClient, capsys: pytest.CaptureFixture[str]) -> None:
    gone = dead_run(mlflow_store)
    reap(["--dry-run=true"])
    assert gone in capsys.readouterr().out
    assert status(mlflow_store, gone) == "RUNNING"


def test_what_a_killed_registration_left_is_removed(
    mlflow_store: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = mlflow_store.create_run("0").info.run_id
    mlflow_store.set_terminated(run_id, "KILLED")
    mlflow_store.create_logged_model("0", "tiny-ddpm", run_id, tags={model_versions.WEIGHTS: "w"})
    mlflow_store.create_registered_model("empty-ddpm")
    reap([])
    assert mlflow_store.search_logged_models(["0"]) == []
    assert mlflow_store.search_registered_models() == []
    capsys.readouterr()
    reap([])
    assert capsys.readouterr().out == "nothing to clean up\n"


@pytest.mark.slow
def test_a_killed_process_is_reaped_and_a_living_one_is_spared(mlflow_store: MlflowClient) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    jobs = [
        subprocess.Popen([sys.executable, "-c", SCRIPT], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    runs = [job.stdout.readline().strip() for job in jobs if job.stdout]
    try:
        jobs[0].send_signal(signal.SIGKILL)
        jobs[0].wait()
        reap([])
        assert [status(mlflow_store, run) for run in runs] == ["FAILED", "RUNNING"]
    finally:
        jobs[1].kill()
        jobs[1].wait()
