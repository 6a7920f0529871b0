from __future__ import annotations

import itertools
import math

import pytest
import torch

from safemax.errors import Stopped
from safemax.knobs import knobs, without_added
from safemax.methods.finetune import Finetune
from safemax.methods.safemax import SAFEMax
from safemax.methods.sfron import SFRon
from safemax.storage import checkpoint
from safemax.training import budget, devices
from safemax.training.hooks import Folders, Hooks
from safemax.training.settings import Training
from safemax.training.trainer import Trainer
from tests.support import tiny_models

SMALL = {"batch_size": 8, "device": "cpu", "checkpoint_every": 2}


@pytest.fixture
def an_eighth_of_a_minute_a_step(monkeypatch):
    """A clock that advances by 7.5 seconds between the beginning and the end of a step."""
    ticks = itertools.count(0.0, 7.5)
    monkeypatch.setattr(budget.time, "perf_counter", lambda: next(ticks))


def test_minutes_decide_the_number_of_steps_and_the_last_learning_rate(an_eighth_of_a_minute_a_step):
    rates = []
    training = Training(minutes=1.0, lr=1e-3, lr_end=0.0, warmup=3, **SMALL)
    trainer = Trainer(tiny_models.diffusion(), SAFEMax(), tiny_models.split(), (0,), training)
    trainer.hooks = Hooks(
        on_step_end=lambda step: rates.append(trainer.update.optimizer.param_groups[0]["lr"]), progress=False
    )
    result = trainer.fit()
    assert trainer.done == 8
    assert result.cost.runtime_minutes == pytest.approx(1.0)
    cosine = [5e-4 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert rates == pytest.approx([1e-3 / 3, 2e-3 / 3, *cosine[2:]])


@pytest.mark.parametrize("stop_at", [1, 4, 7])
def test_a_stopped_run_resumes_with_the_minutes_that_are_left(an_eighth_of_a_minute_a_step, tmp_path, stop_at):
    def run(folder, stop=lambda: False):
        model, training = tiny_models.diffusion(), Training(minutes=1.0, lr_end=0.0, ema=0.9, **SMALL)
        hooks = Hooks(should_stop=stop, progress=False)
        result = tiny_models.train(model, SAFEMax(), training, hooks=hooks, folders=Folders(folder))
        return model.digest(), result

    polls = itertools.count()
    with pytest.raises(Stopped, match=rf"{stop_at} steps and 0\.\d of 1 minutes; the same command resumes"):
        run(tmp_path / "stopped", lambda: next(polls) >= stop_at)
    (resumed, result), (whole, _) = run(tmp_path / "stopped"), run(tmp_path / "whole")
    assert resumed == whole
    assert result.cost.runtime_minutes == pytest.approx(1.0)
    assert run(tmp_path / "whole")[1].cost.images_seen == 64, "a run whose minutes are spent takes no more steps"


def test_a_method_that_decays_over_the_run_decays_over_the_minutes(an_eighth_of_a_minute_a_step):
    shares = []
    method = SFRon(fisher_batches=1)
    hooks = Hooks(on_step_end=lambda step: shares.append((step - 1) / method.run_steps), progress=False)
    tiny_models.train(tiny_models.diffusion(), method, Training(minutes=0.5, **SMALL), hooks=hooks)
    assert shares == pytest.approx([0.0, 0.25, 0.5, 0.75])


@pytest.mark.parametrize(("compile", "steps", "minutes"), [("auto", 10**6, 0), ("auto", 1, 60), ("none", 10**6, 0)])
def test_a_cpu_compiles_nothing_by_itself(compile, steps, minutes):
    assert not devices.compiles(Training(steps=steps, minutes=minutes, compile=compile, device="cpu"))


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        (Training(steps=4999), False),
        (Training(steps=5000), True),
        (Training(steps=5000, compile="none"), False),
        (Training(steps=5000, minutes=1), False),
        (Training(steps=1, minutes=20), True),
        (Training(steps=1, compile="max"), True),
    ],
)
def test_a_gpu_compiles_for_a_long_run(training, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert devices.compiles(training) == expected


def test_a_compiled_run_ends_in_the_same_weights_by_the_same_names(tmp_path, monkeypatch):
    """With dynamo's eager backend, which traces the denoiser but makes no code for it: minutes are saved."""
    monkeypatch.setattr(devices, "BACKEND", "eager")
    torch._dynamo.reset()

    def run(compile):
        model, seen = tiny_models.diffusion(), []
        hooks = Hooks(on_step_end=lambda step: seen.append(type(model.denoiser).__name__), progress=False)
        training = Training(steps=3, compile=compile, **SMALL)
        cost = tiny_models.train(model, Finetune(), training, hooks=hooks, folders=Folders(tmp_path / compile)).cost
        saved = checkpoint.newest(tmp_path / compile)
        assert saved is not None
        assert set(seen) == {"UNet2DModel"}, "a hook gets the denoiser itself: its rows would compile it again"
        assert type(model.denoiser).__name__ == "UNet2DModel"
        return model.digest(), sorted(saved.tensors), cost

    (plain, names, _), (compiled, compiled_names, cost) = run("none"), run("max")
    assert compiled == plain
    assert compiled_names == names
    assert cost.setup_minutes > cost.runtime_minutes, "the first step compiles, which is set-up"
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


def test_a_knob_added_later_enters_a_digest_only_where_it_is_set():
    values = {"steps": 5, "minutes": 0.0, "compile": "max"}
    assert without_added(values, Training) == {"steps": 5, "compile": "max"}
    assert knobs(Training)["minutes"][1].added
