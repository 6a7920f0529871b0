"""Workers on Ray do jobs, are replaced where they die, refuse what cannot work, and have ended when the driver has."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipelines import ROOT
from pipelines.engine import ray_cluster
from pipelines.engine.options import WorkerOptions
from pipelines.engine.signals import StopSignal, stop_on_signals
from pipelines.engine.worker import Message
from pipelines.engine.workers import Job, Workers, open_workers
from safemax.errors import InputError
from tests.support import ray_clusters
from tests.support.division import Number, load

pytest.importorskip("ray", reason="needs Ray: pip install 'safemax[ray]'")


@contextmanager
def opened(number: float = 6, workers: int = 2, **given: Any) -> Iterator[Workers]:
    options = WorkerOptions(workers=workers, **given)
    with open_workers(options, load, Number(number), StopSignal(), lambda: None, device="cpu") as made:
        yield made


def done(workers: Workers, *jobs: Message) -> dict[int, list[Message]]:
    """Return the messages of each job, by its place."""
    waiting = deque(Job({**job, "place": place}) for place, job in enumerate(jobs))
    messages: dict[int, list[Message]] = {place: [] for place in range(len(jobs))}

    def on_message(job: Job, message: Message) -> bool:
        messages[job.spec["place"]].append(message)
        return bool(job.spec.get("prune"))

    workers.run(lambda: waiting.popleft() if waiting else None, on_message)
    return messages


def kinds(messages: list[Message]) -> list[str]:
    """Return the kinds of messages but logs, of which a kill may lose some."""
    return [each["kind"] for each in messages if each["kind"] != "log"]


def test_jobs_are_done_apart_a_dead_worker_is_replaced_and_nothing_is_left(tmp_path: Path) -> None:
    handler = stop_on_signals() and signal.getsignal(signal.SIGTERM)
    with opened() as workers:
        assert workers.greeting["number"] == 6
        messages = done(
            workers,
            {"by": 2, "where": True, "seconds": 60, "until": str(tmp_path / "second")},
            {"by": 3, "where": True, "touch": str(tmp_path / "second")},
            {"by": 0},
            {"by": 2, "report": True, "prune": True},
            {"by": 2, "print": "a warning"},
            {"by": 2, "kill_unless": str(tmp_path / "killed")},
        )
        assert signal.getsignal(signal.SIGTERM) is handler  # Ray's was replaced
        left = ray_clusters.workers()
        assert left
    first, second = (messages[place][-1] for place in (0, 1))
    assert (first["quotient"], second["quotient"]) == (3.0, 2.0)
    assert len({first["pid"], second["pid"], os.getpid()}) == 3
    assert first["threads"] == str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert messages[2][-1]["reason"] == "ZeroDivisionError: division by zero"
    assert "Traceback" in messages[2][-1]["log"]
    assert kinds(messages[3]) == ["started", "report", "pruned"]
    assert messages[4][-1]["log"] == "a warning\n"
    assert messages[4][0]["worker"].startswith("worker ")
    assert kinds(messages[5]) == ["started", "died", "started", "done"]
    assert psutil.wait_procs(left, 10)[1] == []


@pytest.mark.slow
def test_a_job_that_kills_every_worker_fails_after_three_more_tries() -> None:
    with opened() as workers:
        messages = done(workers, {"by": 2, "kill": True}, {"by": 3})
    assert kinds(messages[0]) == ["started", "died"] * 3 + ["started", "failed"]
    assert messages[0][-1]["reason"].startswith("its worker died 4 times: the end of worker ")
    assert messages[1][-1]["quotient"] == 2.0


def test_a_worker_that_cannot_load_or_has_other_code_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="number = -1"), opened(-1):
        pass
    monkeypatch.setattr("pipelines.engine.ray_workers.tree_digest", lambda: "another")
    with pytest.raises(InputError, match="has different code or another version of torch than the driver"), opened():
        pass


@pytest.mark.parametrize(
    ("workers", "share", "device", "counts", "gpus"),
    [
        (8, 1.0, "auto", [8], 1.0),
        (8, 0.5, "auto", [2, 2], 0.5),
        (2, 2.0, "cuda", [2, 3], 2.0),
        (8, 1.0, "cpu", [8], 0.0),
        (8, 1.0, "auto", [0], 0.0),
    ],
)
def test_each_worker_gets_its_gpus(workers: int, share: float, device: str, counts: list[int], gpus: float) -> None:
    options = WorkerOptions(workers=workers, gpus_per_worker=share)
    assert ray_cluster.gpus_for(options, device, [{"GPU": float(n)} for n in counts]) == gpus


@pytest.mark.parametrize(
    ("workers", "share", "device", "counts"),
    [(8, 1.0, "auto", [4]), (9, 0.5, "auto", [4]), (2, 2.0, "auto", [1, 2]), (2, 0.4, "cuda", [0])],
)
def test_fewer_gpus_than_asked_for_are_refused(workers: int, share: float, device: str, counts: list[int]) -> None:
    options = WorkerOptions(workers=workers, gpus_per_worker=share)
    with pytest.raises(InputError, match="they are enough for"):
        ray_cluster.gpus_for(options, device, [{"GPU": float(n)} for n in counts])


def test_without_ray_the_refusal_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(InputError, match=r"workers = 2 needs Ray, which is not installed: pip install 'safemax\[ray\]'"),
        opened(),
    ):
        pass


@pytest.mark.slow
def test_a_driver_outside_the_cluster_runs_jobs_and_gives_a_dead_workers_job_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("grpc", reason="needs Ray's client: pip install 'ray[client]'")
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path / "cache"))
    with ray_clusters.head_with_client_server() as address:
        with opened(cluster=address) as workers:
            messages = done(
                workers,
                {"by": 2},
                {"by": 2, "kill_unless": str(tmp_path / "killed")},
                {"by": 2, "report": True, "prune": True},
            )
            left = ray_clusters.workers()
        assert messages[0][-1]["quotient"] == 3.0
        assert kinds(messages[1]) == ["started", "died", "started", "done"]
        assert kinds(messages[2]) == ["started", "report", "pruned"]
        assert left
        assert psutil.wait_procs(left, 10)[1] == []


DRIVER = """
import sys
from collections import deque
from pipelines.engine.options import WorkerOptions
from pipelines.engine.signals import stop_on_signals
from pipelines.engine.workers import Job, open_workers
from safemax.errors import Stopped
from tests.support import ray_clusters
from tests.support.division import Number, load

stop = stop_on_signals()

def tick():
    if stop():
        raise Stopped

jobs = deque(Job({"by": 2, "seconds": 300}) for _ in range(2))
try:
    with open_workers(WorkerOptions(workers=2), load, Number(6), stop, tick, device="cpu") as workers:
        workers.run(lambda: jobs.popleft() if jobs else None, lambda job, message: print(message, flush=True) or False)
except Stopped:
    sys.exit(143)
"""


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_driver_by_10_seconds_and_nothing_of_ray_by_60(by: signal.Signals) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], env=environment, stdout=subprocess.PIPE, text=True)
    assert driver.stdout
    for _ in range(2):
        while "'kind': 'log'" not in driver.stdout.readline():
            assert driver.poll() is None
    below = psutil.Process(driver.pid).children(recursive=True)
    ours = [each for each in below if ray_clusters.is_worker(each)]
    assert len(ours) == 2
    began = time.monotonic()
    driver.send_signal(by)
    assert driver.wait(30) == (-by if by == signal.SIGKILL else 143)
    assert psutil.wait_procs(ours, 10)[1] == []
    assert psutil.wait_procs(below, 60 - (time.monotonic() - began))[1] == []
