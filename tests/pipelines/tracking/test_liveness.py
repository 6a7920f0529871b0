"""A living process is never declared dead: what cannot be known is said to be unknown."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines import ROOT, tracking
from pipelines.reap import reap
from pipelines.tracking import liveness

needs_proc = pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="processes are known by Linux's /proc")
TELLS = "from pipelines import tracking; print(tracking.this_process(), flush=True); input()"


@pytest.fixture
def living() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(["sleep", "60"], text=True) as process:
        yield process
        process.kill()


def record(pid: int | str, **changed: str) -> str:
    """Return the record of a process of this machine, with parts changed."""
    names = ("host", "pid", "boot", "namespace", "ticks")
    parts = dict(zip(names, tracking.this_process().split("/"), strict=True)) | {"pid": str(pid)}
    if "ticks" not in changed:
        parts["ticks"] = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return "/".join((parts | changed).values())


@needs_proc
def test_a_process_is_alive_until_it_dies(living: subprocess.Popen[str]) -> None:
    process = record(living.pid)
    assert tracking.alive(tracking.this_process()) is True
    assert tracking.alive(process) is True
    living.kill()
    living.wait()
    assert tracking.alive(process) is False


@needs_proc
def test_an_id_that_another_process_has_now_is_not_the_process_that_had_it() -> None:
    assert tracking.alive(record(os.getpid(), ticks="1")) is False


@needs_proc
@pytest.mark.parametrize(
    "changed",
    [{"boot": "27814490-0000-0000-0000-000000000000"}, {"namespace": "1"}, {"ticks": "soon"}, {"ticks": ""}],
    ids=str,
)
@pytest.mark.parametrize("pid", ["1", "4194304", "-1", "x", ""])  # 4194304 is more than Linux gives
def test_a_process_of_another_boot_or_namespace_is_unknown_whatever_its_id(pid: str, changed: dict[str, str]) -> None:
    assert tracking.alive(record(pid, **{"ticks": "1", **changed})) is None


@needs_proc
@pytest.mark.parametrize("hours", [-1, 1])
def test_a_changed_clock_changes_no_record(monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    before, now = tracking.this_process(), time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600 * hours)
    monkeypatch.setattr("psutil.boot_time", lambda: 3600.0 * hours)
    assert tracking.this_process() == before
    assert tracking.alive(before) is True


@pytest.mark.parametrize("old", [None, "", "?", "/////", "box", "box/1/1700000000", f"{os.uname().nodename}/4194304/1"])
def test_records_of_older_versions_and_damaged_ones_are_unknown(old: str | None) -> None:
    assert tracking.alive(old) is None


def test_without_proc_nothing_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known = tracking.this_process()
    monkeypatch.setattr(liveness, "_PROC", tmp_path)
    assert tracking.this_process().endswith(f"/{os.getpid()}")
    assert tracking.alive(tracking.this_process()) is None
    assert tracking.alive(known) is None


def _namespaces() -> bool:
    unshare = ["unshare", "-Urpf", "true"]
    return shutil.which("unshare") is not None and subprocess.run(unshare, capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not _namespaces(), reason="this machine lets nobody make a PID namespace")
@pytest.mark.parametrize("flags", ["-Urpf", "-Urpf --mount-proc"])
def test_reap_spares_a_living_run_of_another_pid_namespace_with_the_same_host_name(
    mlflow_store: MlflowClient, flags: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["unshare", *flags.split(), sys.executable, "-c", TELLS]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as inside:
        assert inside.stdin
        assert inside.stdout
        process = inside.stdout.readline().strip()
        run_id = mlflow_store.create_run("0").info.run_id
        mlflow_store.log_param(run_id, tracking.PROCESS, process)
        reap([])
        assert mlflow_store.get_run(run_id).info.status == "RUNNING"
        inside.stdin.close()
    assert process.split("/")[1] == "1"  # as init, which is alive here too
    assert f"left alone: {process} may be alive" in capsys.readouterr().out
