"""Weights that lie channels last train to the same numbers, whatever a method, a checkpoint or a cache holds beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from safemax.diffusion import layout
from safemax.diffusion.model import Diffusion
from safemax.errors import Stopped
from safemax.method_tools.frozen_teacher import Teacher
from safemax.methods import available, create, find
from safemax.storage import checkpoint
from safemax.training.hooks import Folders, Hooks
from safemax.training.settings import Training
from tests.support import tiny_kinds, tiny_models

LR = 1e-3
SMALL = {"mask_batches": 1, "replay_images": 2, "replay_steps": 2, "fisher_images": 2, "fisher_times": 2, "fisher_batches": 1,
         "anchor_images": 4, "trim_batches": 1, "importance_batches": 1, "importance_draws": 1}  # fmt: skip
DUAL: dict[str, dict[str, Any]] = {
    "scrub": {"dual_adam": True}
}  # two Adams, of which the second has moments in the method's state


def trained(name: str, folders: Folders | None = None, *, stop_at: int = -1, **settings: Any) -> Diffusion:
    own: dict[str, Any] = {key: value for key, value in SMALL.items() if key in find(name).__dataclass_fields__}
    share = find(name).training.get("forget_share", 0.5)
    steps = min(3, find(name).training.get("steps", 3))
    training = Training(
        steps=steps,
        batch_size=8,
        lr=LR,
        forget_share=share,
        device="cpu",
        checkpoint_every=1,
        ema=0.5 if steps else 0.0,
        **settings,
    )
    model, asked = tiny_models.diffusion(), iter(range(100))
    hooks = Hooks(should_stop=lambda: next(asked) == stop_at, progress=False)
    method = create(name, **own, **DUAL.get(name, {}))
    tiny_models.train(model, method, training, hooks=hooks, folders=folders)
    return model


def apart(one: Diffusion, other: Diffusion) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return torch.cat([(a - b).detach().abs().flatten() for a, b in pairs]).mean().item()


@pytest.mark.parametrize("name", sorted(available()))
def test_a_run_ends_in_the_same_weights(name: str) -> None:
    first, last = trained(name), trained(name, channels_last=True)
    # sums in another order turn the sign of some gradients that are almost 0, and with it Adam's first steps
    assert apart(first, last) <= 0.05 * LR
    assert all(p.is_contiguous() for p in last.parameters())


@pytest.mark.parametrize("name", ["safemax", "scrub", "selective_amnesia", "sfron"])
def test_a_stopped_run_resumes_though_files_hold_all_channels_first(name: str, tmp_path: Path) -> None:
    whole = trained(name, channels_last=True)
    folders = Folders(tmp_path / "run", tmp_path / "priors")
    with pytest.raises(Stopped):
        trained(name, folders, stop_at=2, channels_last=True)
    assert apart(trained(name, folders, channels_last=True), whole) <= 1e-7


@pytest.mark.parametrize("make", [tiny_kinds.dit, tiny_kinds.text], ids=["dit", "text"])
def test_other_networks_predict_the_same(make: Any) -> None:
    model = make().eval()
    x_t, t, c = torch.randn(2, *model.x0_shape), torch.tensor([3, 7]), torch.tensor([0, 1])
    with torch.no_grad():
        before = model(x_t, t, c)
        layout.lay_out(model.denoiser, channels_last=True)
        torch.testing.assert_close(model(x_t, t, c), before, rtol=1e-4, atol=1e-5)


def test_a_run_trains_channels_last_and_its_checkpoints_are_as_always(tmp_path: Path) -> None:
    orders: set[bool] = set()
    model = tiny_models.diffusion()
    convolution = next(p for p in model.parameters() if p.ndim == 4 and min(p.shape) > 1)
    training = Training(steps=2, batch_size=8, device="cpu", channels_last=True, checkpoint_every=1)
    hooks = Hooks(on_step_end=lambda _: orders.add(convolution.is_contiguous()), progress=False)
    tiny_models.train(model, create("safemax"), training, hooks=hooks, folders=Folders(tmp_path))
    assert orders == {False}
    saved = checkpoint.newest(tmp_path)
    assert saved is not None
    assert all(torch.equal(saved.tensors[f"model.{name}"], p) for name, p in model.denoiser.state_dict().items())


def test_a_gradient_that_lies_otherwise_is_laid_out_as_its_weight() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last))
    weight.grad = torch.randn(4, 3, 2, 2).contiguous()
    before = weight.grad.clone()
    layout.align_gradients([weight])
    assert weight.grad.stride() == weight.stride()
    assert torch.equal(weight.grad, before)


def test_a_teacher_from_a_file_teaches_by_weights_that_lie_as_the_models() -> None:
    model = tiny_models.diffusion()
    weights = list(model.parameters())
    teacher = Teacher.from_state(Teacher.of(weights).state())
    values = [p.detach().clone() for p in weights]
    layout.lay_out(model.denoiser, channels_last=True)
    before = [p.stride() for p in weights]
    with torch.no_grad():
        torch._foreach_add_(list[torch.Tensor](weights), 1.0)
    with teacher.teaching(model, weights):
        assert [p.stride() for p in weights] == before
        assert all(torch.equal(p, value) for p, value in zip(weights, values, strict=True))
    assert all(torch.equal(p, value + 1) for p, value in zip(weights, values, strict=True))
