from __future__ import annotations

import itertools
import os

import pytest
import torch

from safemax.errors import Stopped
from safemax.methods.safemax import SAFEMax
from safemax.storage import checkpoint
from safemax.storage.checkpoint import Checkpoint
from safemax.training import saver
from safemax.training.hooks import Folders, Hooks
from safemax.training.saver import Saver
from safemax.training.settings import Training
from tests.support import tiny_models

CPU = torch.device("cpu")


@pytest.fixture
def in_the_background(monkeypatch):
    """A CPU run that writes its checkpoints as one on a GPU does."""
    monkeypatch.setattr(saver, "BACKGROUND", {"cpu"})


def run(folder, stop=lambda: False, **training):
    model = tiny_models.diffusion()
    settings = Training(**{"steps": 8, "batch_size": 8, "device": "cpu", "ema": 0.9, "checkpoint_every": 1, **training})
    hooks = Hooks(should_stop=stop, progress=False)
    tiny_models.train(model, SAFEMax(), settings, hooks=hooks, folders=Folders(folder))
    return model.digest()


def steps_in(folder):
    return [int(path.name[5:13]) for path in sorted(folder.iterdir())] if folder.exists() else []


@pytest.mark.parametrize("seconds", [0.0, 1000.0])
@pytest.mark.parametrize("stop_at", [1, 5, 8])
def test_a_stopped_run_resumes_to_the_same_bytes(in_the_background, monkeypatch, tmp_path, stop_at, seconds):
    monkeypatch.setattr(saver, "SECONDS", seconds)
    expected, polls = run(tmp_path / "whole"), itertools.count(1)
    with pytest.raises(Stopped):
        run(tmp_path / "stopped", lambda: next(polls) > min(stop_at, 7))
    assert steps_in(tmp_path / "stopped")[-1] == min(stop_at, 7)
    assert run(tmp_path / "stopped") == expected


def test_time_decides_when_a_checkpoint_is_due(in_the_background, monkeypatch, tmp_path):
    now = itertools.count(0, 25)  # seconds: at the start, then at each step
    monkeypatch.setattr(saver.time, "monotonic", lambda: next(now))
    keeper = Saver(tmp_path, CPU, every=1)
    assert [keeper.is_due(step) for step in (1, 2, 3)] == [False, False, True]
    keeper.write(Checkpoint(3, {"w": torch.zeros(1)}, {}), wait=True)
    assert [keeper.is_due(step) for step in (4, 5, 6)] == [False, False, True]
    assert not Saver(tmp_path, CPU, every=0).is_due(1000)


def test_on_a_cpu_steps_decide(tmp_path):
    keeper = Saver(tmp_path, CPU, every=3)
    assert [step for step in range(1, 8) if keeper.is_due(step)] == [3, 6]


def test_what_changes_later_is_not_written(in_the_background, monkeypatch, tmp_path):
    weights, keeper = torch.zeros(10), Saver(tmp_path, CPU, every=1)
    for step in range(1, 4):
        keeper.write(Checkpoint(step, {"w": weights}, {}), wait=False)
        weights += 1
    keeper.close()
    saved = checkpoint.newest(tmp_path)
    assert saved is not None
    assert (saved.step, saved.tensors["w"].tolist()) == (3, [2.0] * 10)


def test_a_full_disk_ends_the_run_and_leaves_the_older_checkpoint(in_the_background, monkeypatch, tmp_path):
    monkeypatch.setattr(saver, "SECONDS", 0.0)
    polls = itertools.count(1)
    with pytest.raises(Stopped):
        run(tmp_path, lambda: next(polls) > 4)

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path)
    assert steps_in(tmp_path)[-1] == 4
