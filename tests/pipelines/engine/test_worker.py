"""A worker loads its context once, does job after job, and turns what goes wrong into messages."""

from __future__ import annotations

import errno
from collections import deque
from dataclasses import dataclass
from typing import Any

import pytest

from pipelines.engine.options import WorkerOptions
from pipelines.engine.signals import StopSignal
from pipelines.engine.worker import Message, attempt
from pipelines.engine.workers import Job, open_workers
from safemax.errors import InputError, NonFiniteError, Stopped
from tests.support.division import Number, load


class Raises:
    """Fails at every job."""

    greeting: Message = {}

    def __init__(self, error: Exception) -> None:
        self.error = error

    def do(self, job: Message, send: object) -> Message:
        raise self.error


def nothing() -> None:
    pass


@dataclass
class Done:
    """What `run` made of jobs."""

    greeting: Message
    messages: list[Message]


def run(number: float, *jobs: Message, prune: bool = False, stop: StopSignal | None = None) -> Done:
    """Do jobs in this process."""
    waiting, messages = deque(map(Job, jobs)), []

    def on_message(job: Job, message: Message) -> bool:
        messages.append(message)
        return prune

    workers = open_workers(WorkerOptions(), load, Number(number), stop or StopSignal(), nothing)
    with workers:
        workers.run(lambda: waiting.popleft() if waiting else None, on_message)
        return Done(workers.greeting, messages)


def test_a_worker_greets_and_then_does_each_job() -> None:
    done = run(6, {"by": 2}, {"by": 3})
    assert done.greeting == {"number": 6}
    assert [each["kind"] for each in done.messages] == ["started", "log", "done"] * 2
    assert [each["quotient"] for each in done.messages if each["kind"] == "done"] == [3.0, 2.0]


def test_a_configuration_that_cannot_be_loaded_is_refused() -> None:
    with pytest.raises(InputError, match="number = -1"):
        run(-1, {"by": 2})


def test_a_job_that_fails_leaves_the_next_one_its_turn(capfd: pytest.CaptureFixture[str]) -> None:
    done = run(6, {"by": 0}, {"by": 2})
    assert done.messages[1] == {"kind": "failed", "reason": "ZeroDivisionError: division by zero"}
    assert done.messages[-1] == {"kind": "done", "quotient": 3.0}
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.parametrize("error", [InputError("lr = 20 is not allowed"), NonFiniteError("step 1")])
def test_an_expected_failure_is_one_line_without_a_traceback(
    error: Exception, capfd: pytest.CaptureFixture[str]
) -> None:
    message = attempt(Raises(error), {}, lambda message: False)
    assert message == {"kind": "failed", "reason": f"{type(error).__name__}: {error}"}
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("answer", "last"), [(True, "pruned"), (False, "done")])
def test_the_answer_to_a_report_decides_whether_the_job_is_pruned(answer: bool, last: str) -> None:
    done = run(6, {"by": 2, "report": True}, prune=answer)
    assert done.messages[1] == {"kind": "report", "quotient": 3.0}
    assert done.messages[-1]["kind"] == last


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), PermissionError(errno.EACCES, "denied")]
)
def test_a_disk_that_fails_is_no_failure_of_the_job(error: OSError) -> None:
    with pytest.raises(type(error)):
        attempt(Raises(error), {}, lambda message: False)


def test_what_the_driver_cannot_record_ends_the_work_and_is_no_failure_of_the_job() -> None:
    def on_message(job: Job, message: Message) -> bool:
        if message["kind"] == "report":
            raise ConnectionError("the store does not answer")
        assert message["kind"] == "started"
        return False

    waiting = deque([Job({"by": 2, "report": True})])
    with (
        pytest.raises(ConnectionError, match="the store does not answer"),
        open_workers(WorkerOptions(), load, Number(6), StopSignal(), nothing) as workers,
    ):
        workers.run(lambda: waiting.popleft() if waiting else None, on_message)


def test_a_stop_is_no_failure_of_the_job() -> None:
    with pytest.raises(Stopped):
        attempt(Raises(Stopped()), {}, lambda message: False)


def test_a_stop_that_came_before_ends_the_loading() -> None:
    stop = StopSignal()
    stop.request()
    with pytest.raises(Stopped):
        run(6, {"by": 2}, stop=stop)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"cluster": "http://head:10001"}, "it is none, auto or ray://HOST:10001"),
        ({"gpus_per_worker": 1.5}, "above 1 it is a whole number"),
    ],
)
def test_options_that_mean_nothing_are_refused(given: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=line):
        WorkerOptions(**given)
