"""Workers are heard, replaced where they die, and gone at the end."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from hpo.objective import TrialConfig
from pipelines.engine.worker_pool import Job, Message, WorkerPool
from safemax.errors import InputError
from safemax.judges.load import JudgeConfig
from tests.hpo.conftest import Build


class Heard:
    """What a crew reported of each job, by its number."""

    def __init__(self) -> None:
        self.kinds: dict[int, list[str]] = {}
        self.last: dict[int, Message] = {}

    def __call__(self, job: Job, message: Message) -> bool:
        number = job.request["number"]
        self.kinds.setdefault(number, []).append(message["kind"])
        self.last[number] = message
        return False


def crew_of(task: TrialConfig) -> WorkerPool:
    return WorkerPool("hpo.worker", asdict(task), 1)


def trial(number: int, **values: Any) -> Job:
    return Job({"kind": "trial", "number": number, "values": values})


def test_jobs_are_done_and_a_failed_one_says_why_without_stopping_the_others(
    hpo_cache: Path, tmp_path: Path, tiny_request: Build
) -> None:
    jobs, heard = deque([trial(0, lr=20.0), trial(1, lr=1e-3), trial(2, steps=0)]), Heard()
    with crew_of(replace(tiny_request().task(), folder=str(tmp_path))) as crew:
        crew.run(lambda: jobs.popleft() if jobs else None, heard)
        pids = [worker.process.pid for worker in crew._workers]
    assert heard.kinds[0] == ["started", "failed"]
    assert heard.last[0]["reason"] == "InputError: lr = 20.0 is not allowed; lr is a number from 0 to 10"
    assert heard.kinds[1] == ["started", "log", "done"]
    assert heard.kinds[2] == ["started", "done"]
    assert heard.last[1]["metrics"]["retain/fid_judge"] > 0
    assert set(crew.greeting["base"]) <= set(heard.last[2]["metrics"])
    assert not any(map(psutil.pid_exists, pids))


def test_what_no_worker_can_load_is_refused_before_any_trial(hpo_cache: Path, tiny_request: Build) -> None:
    request = tiny_request()
    task = replace(request.task(), judging=asdict(replace(JudgeConfig(), judge="/nowhere/judge.safetensors")))
    with pytest.raises(InputError, match="/nowhere/judge.safetensors"), crew_of(task):
        pass


@pytest.mark.slow
def test_a_job_that_kills_every_worker_fails_after_three_more_tries(
    hpo_cache: Path, tmp_path: Path, tiny_request: Build
) -> None:
    jobs, heard = deque([trial(0, lr=1e-3), trial(1, lr=1e-3)]), Heard()
    with crew_of(replace(tiny_request().task(), folder=str(tmp_path))) as crew:

        def on_message(job: Job, message: Message) -> bool:
            if job.request["number"] == 0 and message["kind"] == "started":
                crew._workers[0].process.kill()
            return heard(job, message)

        crew.run(lambda: jobs.popleft() if jobs else None, on_message)
    assert heard.kinds[0] == ["started", "died"] * 3 + ["started", "failed"]
    assert heard.last[0]["reason"].startswith("its worker died 4 times: SIGKILL of worker ")
    assert heard.kinds[1][-1] == "done"
