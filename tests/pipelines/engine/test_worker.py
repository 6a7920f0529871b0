"""A worker loads its context once, does job after job, and turns what goes wrong into messages."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from pipelines.engine.signals import StopSignal
from pipelines.engine.worker import Channel, Message, Pruned, Send, attempt, serve
from safemax.errors import InputError, NonFiniteError, Stopped


@dataclass
class Division:
    """Divides its configuration's number by a job's, and reports the quotient where the job says so."""

    number: float

    @property
    def greeting(self) -> Message:
        return {"number": self.number}

    def do(self, job: Message, send: Send) -> Message:
        quotient = self.number / job["by"]
        if "report" in job and send({"kind": "report", "quotient": quotient}):
            raise Pruned
        send({"kind": "log", "quotient": quotient})
        return {"quotient": quotient}


class Raises:
    """Fails at every job."""

    greeting: Message = {}

    def __init__(self, error: Exception) -> None:
        self.error = error

    def do(self, job: Message, send: Send) -> Message:
        raise self.error


def load(config: Message, stop: StopSignal) -> Division:
    if config["number"] < 0:
        raise InputError("number = -1 is not allowed; 0 or more")
    return Division(config["number"])


def served(*received: Message, load: Callable[[Message, StopSignal], Any] = load) -> list[Message]:
    """Return what a worker sends that receives these messages, until its coordinator closes its end."""
    sink = io.StringIO()
    serve(load, Channel(io.StringIO("".join(json.dumps(each) + "\n" for each in received)), sink), StopSignal())
    return [json.loads(line) for line in sink.getvalue().splitlines()]


def test_a_worker_greets_and_then_answers_each_job() -> None:
    assert served({"number": 6}, {"by": 2}, {"by": 3}) == [
        {"kind": "ready", "number": 6},
        {"kind": "log", "quotient": 3.0},
        {"kind": "done", "quotient": 3.0},
        {"kind": "log", "quotient": 2.0},
        {"kind": "done", "quotient": 2.0},
    ]


def test_a_configuration_that_cannot_be_loaded_is_refused_and_no_job_is_done() -> None:
    assert served({"number": -1}, {"by": 2}) == [{"kind": "refused", "reason": "number = -1 is not allowed; 0 or more"}]


def test_a_job_that_fails_leaves_the_next_one_its_turn(capfd: pytest.CaptureFixture[str]) -> None:
    messages = served({"number": 6}, {"by": 0}, {"by": 2})
    assert messages[1] == {"kind": "failed", "reason": "ZeroDivisionError: division by zero"}
    assert messages[-1] == {"kind": "done", "quotient": 3.0}
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
    messages = served({"number": 6}, {"by": 2, "report": True}, {"answer": answer})
    assert messages[1] == {"kind": "report", "quotient": 3.0}
    assert messages[-1]["kind"] == last


def test_a_report_to_a_coordinator_that_has_ended_stops_the_worker() -> None:
    with pytest.raises(Stopped):
        served({"number": 6}, {"by": 2, "report": True})


def test_a_stop_is_no_failure_of_the_job() -> None:
    with pytest.raises(Stopped):
        attempt(Raises(Stopped()), {}, lambda message: False)


def test_without_a_configuration_nothing_is_loaded_or_sent() -> None:
    assert served() == []
