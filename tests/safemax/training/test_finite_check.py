from __future__ import annotations

import pytest
import torch

from safemax.errors import NonFiniteError
from safemax.methods import create
from safemax.methods.finetune import Finetune
from safemax.storage import checkpoint
from safemax.training import finite_check
from safemax.training.hooks import Folders, Hooks
from safemax.training.settings import Training
from safemax.training.trainer import Trainer
from tests.support import tiny_models

TRAINING = {"batch_size": 8, "lr": 1e-3, "device": "cpu", "checkpoint_every": 1}


@pytest.fixture
def looks_every_tenth_step(monkeypatch):
    """A CPU run that looks at its gradients as seldom as one on a GPU."""
    monkeypatch.setattr(finite_check, "EVERY", {"cpu": 10})


class Breaks(Finetune):
    """A loss that is NaN at one step."""

    calls, at = 0, 4

    def losses(self, diffusion, batch):
        self.calls += 1
        (terms,) = super().losses(diffusion, batch)
        yield {"retain": terms["retain"] * (float("nan") if self.calls == self.at else 1.0)}


def run(method, folder=None, **training):
    model, seen = tiny_models.diffusion(), []
    hooks = Hooks(
        on_step_end=lambda step: seen.append((model.digest(), all(p.isfinite().all() for p in model.parameters()))),
        progress=False,
    )
    settings = Training(**{"steps": 10, "forget_share": 0.0, **TRAINING, **training})
    try:
        tiny_models.train(model, method, settings, hooks=hooks, forget=(), folders=Folders(folder))
    finally:
        digests, finite = [each[0] for each in seen], [each[1] for each in seen]
        run.seen = digests
        assert all(finite), "no weight is ever not finite"
    return model


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_step_that_is_not_finite_is_skipped_and_then_named(looks_every_tenth_step, ema):
    with pytest.raises(NonFiniteError, match=r"step 4: the gradient is not finite \(retain nan\); lower lr, now 0.001"):
        run(Breaks(), checkpoint_every=0, ema=ema)
    assert len(run.seen) == 9, "the tenth step is checked before anything is called"
    assert run.seen[3] == run.seen[2], "the weights stay"
    assert len(set(run.seen)) == 8, "the other steps are taken"


def test_no_state_after_such_a_step_is_saved(looks_every_tenth_step, tmp_path):
    method = Breaks()
    method.at = 14
    with pytest.raises(NonFiniteError, match="step 14"):
        run(method, tmp_path, steps=30)
    saved = checkpoint.newest(tmp_path)
    assert saved is not None
    assert saved.step == 10


def test_the_last_steps_are_checked_too(looks_every_tenth_step, tmp_path):
    with pytest.raises(NonFiniteError, match="step 4"):
        run(Breaks(), tmp_path, steps=5, checkpoint_every=0)
    assert checkpoint.newest(tmp_path) is None


def test_a_cpu_names_it_at_once():
    with pytest.raises(NonFiniteError, match="step 4"):
        run(Breaks(), checkpoint_every=0)
    assert len(run.seen) == 3


@pytest.mark.parametrize("name", ["safemax", "sfron", "erasediff", "selective_amnesia"])
def test_looking_seldom_changes_no_byte(name, monkeypatch):
    small = {
        "sfron": {"fisher_batches": 1},
        "selective_amnesia": {"replay_images": 2, "replay_steps": 2, "fisher_images": 1},
    }

    def digest():
        model, training = tiny_models.diffusion(), Training(steps=3, **{**TRAINING, "checkpoint_every": 0})
        method = create(name, **small.get(name, {}))
        Trainer(model, method, tiny_models.split(), (0,), training, hooks=Hooks(progress=False)).fit()
        return model.digest()

    at_once = digest()
    monkeypatch.setattr(finite_check, "EVERY", {"cpu": 10})
    assert digest() == at_once


def test_a_gpu_is_waited_for_every_tenth_step():
    assert finite_check.steps_between(torch.device("cuda")) == 10
    assert finite_check.steps_between(torch.device("cpu")) == 1
