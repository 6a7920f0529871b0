from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import warnings

import pytest
import torch

from safemax.errors import InputError, NonFiniteError, Stopped
from safemax.methods import create
from safemax.methods.finetune import Finetune
from safemax.storage import checkpoint
from safemax.training.hooks import Folders, Hooks
from safemax.training.settings import Training
from safemax.training.trainer import Trainer
from tests.support import tiny_models

CPU = {"device": "cpu", "batch_size": 8, "checkpoint_every": 2}


def trained(steps=6, *, folder=None, method=None, stop=lambda: False, **training):
    """Return a model after some steps, and the result of its training."""
    model = tiny_models.diffusion()
    method = method or create("safemax")
    settings = Training(steps=steps, **{**CPU, **training})
    hooks, folders = Hooks(should_stop=stop, progress=False), Folders(checkpoints=folder, origin="run-1")
    return model, tiny_models.train(model, method, settings, hooks=hooks, folders=folders)


def test_the_loss_falls():
    logged = []
    hooks = Hooks(log=lambda metrics, step: logged.append(metrics["loss/retain"]), progress=False)
    training = Training(steps=60, lr=3e-3, forget_share=0.0, **CPU)
    tiny_models.train(tiny_models.diffusion(), Finetune(), training, forget=(), hooks=hooks)
    assert len(logged) == 6
    assert logged[-1] < 0.7 * logged[0]


def test_the_same_seed_gives_the_same_bytes_and_another_does_not():
    assert trained()[0].digest() == trained()[0].digest()
    assert trained()[0].digest() != trained(seed=1)[0].digest()


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("stop_at", [1, 3, 6])
def test_a_stopped_run_resumes_to_the_same_bytes(tmp_path, stop_at, ema):
    asked = iter(range(100))
    expected = trained(7, ema=ema)[0].digest()
    with pytest.raises(Stopped, match="the same command resumes"):
        trained(7, folder=tmp_path, stop=lambda: next(asked) >= stop_at, ema=ema)
    model, result = trained(7, folder=tmp_path, ema=ema)
    assert model.digest() == expected
    assert result.resumed_from == "run-1"
    assert result.cost.images_seen == 7 * 8


class Counted(Finetune):
    """Writes down the number of steps done that each of its steps was told."""

    def __post_init__(self):
        super().__post_init__()
        self.told = []

    def step(self, *args):
        self.told.append((self.steps_done, self.run_steps))
        return super().step(*args)


def test_a_method_is_told_the_steps_done_and_a_resumed_run_counts_on(tmp_path):
    asked, stopped, resumed = iter(range(100)), Counted(), Counted()
    with pytest.raises(Stopped):
        trained(5, folder=tmp_path, method=stopped, stop=lambda: next(asked) >= 3)
    trained(5, folder=tmp_path, method=resumed)
    assert stopped.told + resumed.told == [(step, 5) for step in range(5)]


def test_a_finished_run_is_not_trained_again_and_keeps_its_costs(tmp_path):
    model, first = trained(folder=tmp_path)
    again, second = trained(folder=tmp_path)
    assert again.digest() == model.digest()
    assert second.cost.runtime_minutes == first.cost.runtime_minutes


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path):
    trained(folder=tmp_path)
    newest = sorted(tmp_path.iterdir())[-1]
    damaged = bytearray(newest.read_bytes())
    damaged[-1] ^= 1
    newest.write_bytes(damaged)
    assert checkpoint.newest(tmp_path).step == 4
    assert trained(folder=tmp_path)[0].digest() == trained()[0].digest()


def test_only_the_two_newest_checkpoints_are_kept_and_clear_removes_them(tmp_path):
    trained(10, folder=tmp_path)
    assert [int(p.name[5:13]) for p in sorted(tmp_path.iterdir())] == [8, 10]
    checkpoint.clear(tmp_path)
    assert not tmp_path.exists()


def test_a_full_disk_leaves_the_older_checkpoint_whole(tmp_path, monkeypatch):
    trained(folder=tmp_path)
    kept = {p.name for p in tmp_path.iterdir()}

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.write(tmp_path, checkpoint.Checkpoint(99, {"w": torch.zeros(1)}, {}))
    assert {p.name for p in tmp_path.iterdir()} == kept


def test_a_non_finite_gradient_stops_before_the_weights_change():
    model = tiny_models.diffusion()
    before = model.digest()
    method = create("safemax", retain_weight=1e6)
    model.alpha_bar[:] = float("nan")
    with pytest.raises(NonFiniteError, match="step 1: the gradient is not finite"):
        tiny_models.train(model, method, Training(steps=3, **CPU))
    assert model.digest() == before


def test_accumulated_passes_give_the_gradient_of_one_pass():
    # The mean over 8 rows is the mean of two means over 4; the rows' noise differs between the two ways, so only a method
    # without noise can be compared.
    class Plain(Finetune):
        def losses(self, model, batch):
            t = torch.full_like(batch.retain.c, 500)
            yield {"retain": (model(batch.retain.x0, t, batch.retain.c) - batch.retain.x0).square().mean()}

    def weights(accumulate):
        model = trained(3, method=Plain(), forget_share=0.0, accumulate=accumulate)[0]
        return torch.cat([p.flatten() for p in model.parameters()])

    torch.testing.assert_close(weights(2), weights(1), atol=2e-5, rtol=0)


def test_an_average_that_keeps_the_old_weights_warns():
    with pytest.warns(UserWarning, match="keeps 99% of the weights it started from"):
        trained(6, ema=0.999)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(6, ema=0.5)


def test_a_warmup_as_long_as_the_run_warns():
    with pytest.warns(
        UserWarning, match=r"leaves none of the 6 steps after it: .* only rises, to 0.00012 of lr = 0.001"
    ):
        trained(6, lr=1e-3, warmup=50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(6, warmup=5)


def test_a_gpu_that_is_not_there_is_refused():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(InputError, match="device = cuda is not allowed"):
        trained(device="cuda")


VICTIM = """
import sys, torch
from pathlib import Path
from safemax.training import saver
torch.set_num_threads(1)
saver.BACKGROUND, saver.SECONDS = set(sys.argv[2:]), 0.02
from tests.safemax.training.test_trainer import trained
print("ready", flush=True)
model, _ = trained(40, folder=Path(sys.argv[1]), checkpoint_every=3)
print(model.digest(), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("background", [(), ("cpu",)], ids=["by the run", "by a thread"])
def test_ten_kills_at_random_moments_leave_the_bytes_of_an_undisturbed_run(tmp_path, background):
    def run(folder):
        command = [sys.executable, "-c", VICTIM, str(folder), *background]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    undisturbed = run(tmp_path / "undisturbed").communicate()[0].split()[-1]
    rng, kills = random.Random(0), 0
    while kills < 10:
        victim = run(tmp_path / "killed")
        assert victim.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.02, 0.5))
        if victim.poll() is None:
            victim.send_signal(signal.SIGKILL)
            kills += 1
        victim.communicate()
    assert run(tmp_path / "killed").communicate()[0].split()[-1] == undisturbed


@pytest.mark.slow
def test_two_processes_train_to_the_same_weights_on_both(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(
        "import torch\nfrom tests.safemax.training.test_trainer import trained\n"
        "model, result = trained(4)\nprint('digest', model.digest(), result.cost.images_seen, flush=True)\n"
    )
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29533", str(script)]
    lines = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300).stdout.splitlines()
    digests = [line.split()[1:] for line in lines if line.startswith("digest")]
    assert len(digests) == 2
    assert digests[0] == digests[1]
    assert digests[0][1] == "32"


def test_a_prior_of_images_that_training_mirrors_is_another_one(tmp_path):
    method = create("salun", mask_batches=1)
    for flip in (False, True, False):
        Trainer(
            tiny_models.diffusion(), method, tiny_models.split(), (0,), Training(steps=1, batch_size=8, device="cpu"),
            flip=flip, hooks=tiny_models.SILENT, folders=Folders(priors=tmp_path),
        ).fit()  # fmt: skip
    assert len(list(tmp_path.iterdir())) == 2
