"""Judges that several workers train are those that one process trains."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.cli.options import DataOptions
from pipelines.correction import judge_jobs
from pipelines.correction.judge_jobs import train_judges
from pipelines.engine.options import WorkerOptions
from pipelines.engine.signals import StopSignal
from safemax.judges.config import JudgeConfig
from safemax.judges.load import judges
from safemax.judges.own import own_judges
from tests.support import tiny_models

JUDGING = JudgeConfig(judge_steps=200, reject_judges=2)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataOptions:
    tiny_models.write_images(tmp_path / "tiny")
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path / "cache"))
    return DataOptions(data=str(tmp_path / "tiny"))


@pytest.mark.parametrize(
    ("workers", "judging"),
    [
        (1, JUDGING),
        (2, JudgeConfig(judge_steps=100, reject_judges=2)),
        (2, JudgeConfig(judge_steps=2000, reject_judge="none_head")),
    ],
)
def test_one_worker_one_judge_and_short_trainings_are_left_to_who_loads_them(
    data: DataOptions, monkeypatch: pytest.MonkeyPatch, workers: int, judging: JudgeConfig
) -> None:
    monkeypatch.setattr(judge_jobs, "open_workers", None)  # any job would fail
    train_judges(WorkerOptions(workers=workers), data, data.load(), judging, "cpu", StopSignal())


@pytest.mark.slow
def test_two_workers_train_the_judges_of_one_process(
    data: DataOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'safemax[ray]'")
    dataset = data.load()
    train_judges(WorkerOptions(workers=2), data, dataset, JUDGING, "cpu", StopSignal())
    assert [each.cached for each in own_judges(dataset, JUDGING)] == [True] * 3
    together = judges(dataset, JUDGING).digest
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path / "alone"))
    assert judges(dataset, JUDGING).digest == together
