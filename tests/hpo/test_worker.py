"""A pool's workers do jobs, are replaced where they die, and have ended when the pool has."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from hpo.trial import TrialConfig
from pipelines.engine.worker import Message
from pipelines.engine.worker_pool import Job, WorkerPool
from safemax import metric_keys as keys
from safemax.errors import InputError
from safemax.judges.load import JudgeConfig
from tests.hpo.conftest import BuildSearch


class Messages:
    """The messages of each job, by its number."""

    def __init__(self) -> None:
        self.kinds: dict[int, list[str]] = {}
        self.last: dict[int, Message] = {}

    def __call__(self, job: Job, message: Message) -> bool:
        number = job.spec["number"]
        self.kinds.setdefault(number, []).append(message["kind"])
        self.last[number] = message
        return False


def pool_of(config: TrialConfig) -> WorkerPool:
    return WorkerPool("hpo.trial", asdict(config), 1)


def trial(number: int, **values: Any) -> Job:
    return Job({"kind": "trial", "number": number, "values": values})


def test_jobs_are_done_and_a_failed_one_says_why_without_stopping_the_others(
    hpo_cache: Path, tmp_path: Path, tiny_search: BuildSearch
) -> None:
    jobs, messages = deque([trial(0, lr=20.0), trial(1, lr=1e-3), trial(2, steps=0)]), Messages()
    with pool_of(replace(tiny_search().trial_config(), folder=str(tmp_path))) as pool:
        pool.run(lambda: jobs.popleft() if jobs else None, messages)
        pids = [worker.process.pid for worker in pool._workers]
    assert messages.kinds[0] == ["started", "failed"]
    assert messages.last[0]["reason"] == "InputError: lr = 20.0 is not allowed; lr is a number from 0 to 10"
    assert messages.kinds[1] == ["started", "log", "done"]
    assert messages.kinds[2] == ["started", "done"]
    assert messages.last[1]["metrics"][keys.FID_JUDGE] > 0
    assert set(pool.greeting["base"]) <= set(messages.last[2]["metrics"])
    assert not any(map(psutil.pid_exists, pids))


def test_a_configuration_that_no_worker_can_load_is_refused_before_any_trial(
    hpo_cache: Path, tiny_search: BuildSearch
) -> None:
    config = tiny_search()
    trials = replace(config.trial_config(), judging=asdict(replace(JudgeConfig(), judge="/nowhere/judge.safetensors")))
    with pytest.raises(InputError, match="/nowhere/judge.safetensors"), pool_of(trials):
        pass


@pytest.mark.slow
def test_a_job_that_kills_every_worker_fails_after_three_more_tries(
    hpo_cache: Path, tmp_path: Path, tiny_search: BuildSearch
) -> None:
    jobs, messages = deque([trial(0, lr=1e-3), trial(1, lr=1e-3)]), Messages()
    with pool_of(replace(tiny_search().trial_config(), folder=str(tmp_path))) as pool:

        def on_message(job: Job, message: Message) -> bool:
            if job.spec["number"] == 0 and message["kind"] == "started":
                pool._workers[0].process.kill()
            return messages(job, message)

        pool.run(lambda: jobs.popleft() if jobs else None, on_message)
    assert messages.kinds[0] == ["started", "died"] * 3 + ["started", "failed"]
    assert messages.last[0]["reason"].startswith("its worker died 4 times: SIGKILL of worker ")
    assert messages.kinds[1][-1] == "done"
