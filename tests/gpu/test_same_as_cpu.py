"""A GPU does what a CPU does, from the same random numbers, within the rounding of float32 sums."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from safemax.data.batches import Batches
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import FAST, Sampler, sample
from safemax.errors import NonFiniteError, Stopped
from safemax.evaluation.measure import measure
from safemax.evaluation.protocol import Evaluation
from safemax.evaluation.samples import draw
from safemax.judges.classifier import Judge, predict
from safemax.judges.load import Judges
from safemax.judges.reference import reference
from safemax.judges.train import train_judge
from safemax.methods import available, create, find
from safemax.methods.safemax import SAFEMax
from safemax.training.devices import accelerator_for
from safemax.training.hooks import Folders, Hooks
from safemax.training.settings import Training
from tests.gpu.same_draws import SameDraws, exact
from tests.support import tiny_models

NAMES = sorted(available())
LR = 1e-3
DEVICES = ("cpu", "cuda")
# The sums of a step are rounded in another order: relative 1e-4 of a loss. Adam's first step is lr times the gradient's sign,
# which rounding may turn where a gradient is almost 0: a weight in fifty may do so before the mean difference is 0.04 lr.
LOSS, WEIGHT = 1e-3, 0.05 * LR
SMALL = {"mask_batches": 1, "replay_images": 2, "replay_steps": 2, "fisher_images": 2, "fisher_times": 2, "fisher_batches": 1,
         "anchor_images": 4, "trim_batches": 1, "importance_batches": 1, "importance_draws": 1}  # fmt: skip


def after_a_step(name: str, device: str, *, channels_last: bool = False) -> tuple[Diffusion, dict[str, float]]:
    """Return the model that a step of a method leaves, on the CPU, and the terms of its loss."""
    own: dict[str, Any] = {key: value for key, value in SMALL.items() if key in find(name).__dataclass_fields__}
    share = find(name).training.get("forget_share", 0.5)
    steps = min(1, find(name).training.get("steps", 1))
    training = Training(steps=steps, batch_size=8, lr=LR, forget_share=share, device=device)
    training = replace(training, channels_last=channels_last)
    model, logged = tiny_models.diffusion(), {}
    with exact():
        hooks = Hooks(lambda m, step: logged.update(m), progress=False)
        tiny_models.train(model, create(name, **own), training, hooks=hooks)
    return model.to("cpu"), logged


def weights(model: Diffusion) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def judge(device: str, *, reject: bool) -> Judge:
    with exact():
        found = train_judge(tiny_models.dataset(), reject=reject, steps=3, batch_size=16, device=device, progress=False)
    return found.to("cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_a_method_is_that_of_the_cpu(name: str) -> None:
    (cpu, on_cpu), (gpu, on_gpu) = (after_a_step(name, device) for device in DEVICES)
    assert on_gpu == pytest.approx(on_cpu, rel=LOSS, abs=1e-6)
    assert (weights(gpu) - weights(cpu)).abs().mean() <= WEIGHT


@pytest.mark.gpu
@pytest.mark.parametrize("sampler", [FAST, Sampler("ddim", 5, 1.0), Sampler("dpmpp", 5, 1.5)], ids=str)
def test_samples_are_those_of_the_cpu(sampler: Sampler) -> None:
    labels = torch.tensor([0, 1, 2, 0])
    with exact():
        cpu, gpu = (sample(tiny_models.diffusion().to(device), labels, sampler, seed=3) for device in DEVICES)
    assert gpu.device.type == "cpu"
    torch.testing.assert_close(gpu, cpu, atol=0.01, rtol=0)  # a grey level of 255 is 0.008


@pytest.mark.gpu
@pytest.mark.parametrize("computed", ["bf16", "compiled"])
def test_samples_in_bf16_stay_near_those_in_float32(computed: str) -> None:
    labels, model = torch.tensor([0, 1, 2, 0, 1]), tiny_models.diffusion().to("cuda")
    exact, fast = (
        sample(model, labels, Sampler("ddim", 5, 1.5), seed=3, batch_size=2, computed=each)
        for each in ("exact", computed)
    )
    assert 0 < (fast - exact).abs().mean() <= 0.05  # of the range -1 to 1


@pytest.mark.gpu
@pytest.mark.parametrize("reject", [False, True])
def test_a_judge_trained_on_the_gpu_answers_as_one_trained_on_the_cpu(reject: bool) -> None:
    images = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    cpu, gpu = (predict(judge(device, reject=reject), images)[0] for device in DEVICES)
    torch.testing.assert_close(gpu, cpu, atol=0.02, rtol=0)


@pytest.mark.gpu
def test_the_panel_is_that_of_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path))
    evaluation = Evaluation(protocol="custom", sampler_steps=3, forget_samples=8, retain_samples=6, second_samples=4)
    plain, rejecting = judge("cpu", reject=False), judge("cpu", reject=True)
    noise = {"plain": {"noise": {"gaussian": dict.fromkeys("abc", 0.0)}}}
    found = []
    for device in DEVICES:
        jury = Judges(plain.to(device), rejecting.to(device), noise, "same")
        with exact():
            samples = draw(tiny_models.diffusion().to(device), (0,), evaluation, progress=False)
            found.append(measure(samples, jury, reference(tiny_models.dataset(), jury, 20), (0,)))
    cpu, gpu = ({key: value for key, value in each.items() if "second" not in key} for each in found)
    # the second sampler draws its noise on the device; the first's images may differ by a grey level
    assert gpu.keys() == cpu.keys()
    shares = {
        key: value for key, value in cpu.items() if key.startswith(("forget/ua", "forget/rejected", "retain/accuracy"))
    }
    assert {key: gpu[key] for key in shares} == pytest.approx(shares, abs=13.0)  # one image of 8
    assert gpu["retain/fid_judge"] == pytest.approx(cpu["retain/fid_judge"], rel=0.05)


@pytest.mark.gpu
def test_a_stopped_run_resumes_on_the_gpu_and_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    def run(folder: Path, stop_at: int) -> Diffusion:
        model, asked = tiny_models.diffusion(), iter(range(100))
        training = Training(steps=6, batch_size=8, lr=LR, device="cuda")
        hooks = Hooks(should_stop=lambda: next(asked) == stop_at, progress=False)
        tiny_models.train(model, SAFEMax(), training, hooks=hooks, folders=Folders(folder))
        return model.to("cpu")

    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        whole = run(tmp_path / "whole", -1)
        with pytest.raises(Stopped):
            run(tmp_path / "halved", 3)
        resumed = run(tmp_path / "halved", -1)
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(weights(resumed), weights(whole), atol=LR / 10, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["safemax", "salun", "selective_amnesia", "sfron"])
def test_weights_that_lie_channels_last_take_the_same_step(name: str) -> None:
    (first, before), (last, after) = (after_a_step(name, "cuda", channels_last=on) for on in (False, True))
    assert after == pytest.approx(before, rel=LOSS, abs=1e-6)
    assert (weights(last) - weights(first)).abs().mean() <= WEIGHT


@pytest.mark.gpu
def test_bf16_steps_stay_near_those_of_fp32() -> None:
    def loss(precision: str) -> float:
        logged: dict[str, float] = {}
        training = Training(steps=1, batch_size=32, device="cuda", precision=precision)
        with SameDraws():
            hooks = Hooks(lambda m, step: logged.update(m), progress=False)
            tiny_models.train(tiny_models.diffusion(), SAFEMax(), training, hooks=hooks)
        return sum(logged.values())

    assert loss("bf16") == pytest.approx(loss("fp32"), rel=0.02)  # bf16 keeps 8 bits: 0.4 % of each factor


def test_the_same_draws_leave_a_cpu_as_it_is() -> None:
    with_it = after_a_step("safemax", "cpu")[0]
    model = tiny_models.diffusion()
    tiny_models.train(model, SAFEMax(), Training(steps=1, batch_size=8, lr=LR, device="cpu"))
    assert model.digest() == with_it.digest()


@pytest.mark.parametrize("name", NAMES)
def test_a_step_compares_with_itself(name: str) -> None:
    """What the GPU is compared by must at least hold between two runs on a CPU, and see another seed's weights."""
    (one, first), (other, second) = after_a_step(name, "cpu"), after_a_step(name, "cpu")
    assert first == second
    assert torch.equal(weights(one), weights(other))
    assert (weights(one) - weights(tiny_models.diffusion())).abs().mean() > 0


@pytest.mark.gpu
def test_auto_precision_is_bf16() -> None:
    assert accelerator_for(Training(precision="auto")).mixed_precision == "bf16"


@pytest.mark.gpu
def test_batches_are_those_of_the_cpu() -> None:
    on_cpu, on_gpu = (
        Batches(tiny_models.split(), (0,), forget_size=4, retain_size=6, seed=3, flip=True, device=device)
        for device in DEVICES
    )
    for step in range(12):
        cpu, gpu = on_cpu(step), on_gpu(step)
        for mine, its in ((cpu.forget, gpu.forget), (cpu.retain, gpu.retain)):
            assert torch.equal(mine.x0, its.x0.cpu())
            assert torch.equal(mine.c, its.c.cpu())


@pytest.mark.gpu
def test_a_batch_does_not_wait_for_the_gpu() -> None:
    batches = Batches(tiny_models.split(), (0,), forget_size=4, retain_size=6, seed=3, flip=True, device="cuda")
    batches(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_a_step_that_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    model = tiny_models.diffusion()
    model.alpha_bar[5:] = float("nan")
    training = Training(steps=25, batch_size=8, device="cuda")
    with pytest.raises(NonFiniteError, match="step 1: the gradient is not finite"):
        tiny_models.train(model, SAFEMax(), training, folders=Folders(tmp_path))
    assert not list(tmp_path.iterdir())
    assert weights(model).isfinite().all()
