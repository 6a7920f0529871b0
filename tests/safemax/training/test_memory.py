"""What a run will need is known before it begins, and less memory trains to the same weights."""

from __future__ import annotations

import copy
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from safemax.diffusion import weights
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError, Stopped
from safemax.methods import create
from safemax.training import memory, optimizers
from safemax.training.frozen import ROUNDED, FrozenWeights
from safemax.training.hooks import Folders, Hooks
from safemax.training.settings import Training
from tests.support import tiny_kinds, tiny_models


def kept(diffusion: Diffusion, rows: int) -> int:
    """Return the bytes that a real pass keeps for the pass backward."""
    held: dict[int, Tensor] = {}
    inputs = diffusion.condition(torch.zeros(rows, dtype=torch.int64))

    def hold(tensor: Tensor) -> Tensor:
        held.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        diffusion.denoiser(torch.randn(rows, *diffusion.x0_shape), torch.zeros(rows, dtype=torch.int64), **inputs)
    own = {p.untyped_storage()._cdata for p in diffusion.denoiser.parameters()}
    return sum(each.untyped_storage().nbytes() for key, each in held.items() if key not in own)


def wide() -> Diffusion:
    """Return a model with layers of 4096 weights and more."""
    torch.manual_seed(0)
    return Diffusion.create("small", (1, 8, 8), ("a", "b", "c"))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", tiny_kinds.KINDS)
def test_a_pass_is_estimated_by_what_it_really_keeps(kind: str, checkpointing: bool) -> None:
    diffusion = tiny_kinds.KINDS[kind]().train()
    need = memory.needed(diffusion, Training(batch_size=8, gradient_checkpointing=checkpointing))
    memory.checkpoint_activations(diffusion.denoiser, checkpointing)
    real = kept(diffusion, 9) - kept(diffusion, 1)
    assert need.activations == pytest.approx(real, rel=0.2)  # attention on a CPU keeps a little less
    assert need.weights == sum(p.nbytes for p in diffusion.denoiser.parameters())


@pytest.mark.parametrize("choice", ["all", "attention", "lora"])
def test_the_optimizer_is_counted_by_the_weights_that_move(choice: str) -> None:
    diffusion = tiny_kinds.text()
    need = memory.needed(diffusion, Training(trainable=choice, lora_rank=3, ema=0.5))
    weights.limit(diffusion, choice, rank=3)
    assert need.optimizer == 4 * sum(p.nbytes for p in diffusion.parameters())  # gradient, two moments, average


@pytest.mark.parametrize(("choice", "kind"), [("all", "dit"), ("attention", "text"), ("lora", "text")])
def test_in_bf16_weights_that_do_not_move_are_counted_as_they_are_held(choice: str, kind: str) -> None:
    diffusion = tiny_kinds.KINDS[kind]()
    training = Training(trainable=choice, lora_rank=3, precision="bf16")
    said = memory.needed(diffusion, training).weights
    weights.limit(diffusion, choice, rank=3)
    frozen = FrozenWeights()
    frozen.hold(diffusion.denoiser)
    own = [p for name, p in diffusion.denoiser.named_parameters() if "lora_" not in name]
    layers = [
        each for name, each in diffusion.denoiser.named_modules() if isinstance(each, ROUNDED) and "lora_" not in name
    ]
    copies = [p for each in layers for p in each.parameters(recurse=False) if p.requires_grad]
    real = sum(p.nbytes for p in own) + sum(2 * p.numel() for p in copies)
    assert said == pytest.approx(real, rel=0.1)  # the first layer is not rounded
    assert (said < memory.needed(diffusion, replace(training, precision="fp32")).weights) == (choice != "all")


@pytest.mark.parametrize("choice", ["attention", "lora"])
@pytest.mark.parametrize("kind", ["unet", "dit", "text", "edm"])
def test_frozen_weights_in_bf16_make_the_same_passes_and_gradients_to_the_bit_and_get_their_bytes_back(
    kind: str, choice: str
) -> None:
    diffusion = tiny_kinds.KINDS[kind]()
    weights.limit(diffusion, choice, rank=3)
    before = {name: value.clone() for name, value in diffusion.denoiser.state_dict().items()}
    x_t, t, c = torch.randn(3, *diffusion.x0_shape), torch.tensor([0, 500, 999]), torch.tensor([1, 2, 1])

    def passed() -> tuple[Tensor, list[Tensor]]:
        with torch.autocast("cpu", torch.bfloat16):
            eps = diffusion(x_t, t, c)
        return eps.detach(), list(torch.autograd.grad(eps.square().mean(), [*diffusion.parameters()]))

    eps, gradients = passed()
    frozen = FrozenWeights()
    frozen.hold(diffusion.denoiser)
    held = diffusion.denoiser.state_dict()
    assert sum(each.nbytes for each in held.values()) < 0.85 * sum(each.nbytes for each in before.values())
    again, again_gradients = passed()
    assert torch.equal(eps, again)
    assert all(torch.equal(one, other) for one, other in zip(gradients, again_gradients, strict=True))
    frozen.release()
    assert all(torch.equal(value, before[name]) for name, value in diffusion.denoiser.state_dict().items())


@pytest.mark.parametrize("choice", ["attention", "lora"])
def test_a_run_in_bf16_leaves_the_other_weights_bytes_and_resumes_to_the_same(choice: str, tmp_path: Path) -> None:
    training = Training(
        steps=3, batch_size=8, device="cpu", precision="bf16", trainable=choice, lora_rank=3, checkpoint_every=1
    )
    whole, stopped, start = tiny_kinds.text(), tiny_kinds.text(), tiny_kinds.text()
    tiny_models.train(whole, create("salun"), training)
    asked = iter((False, True))
    hooks = Hooks(should_stop=lambda: next(asked), progress=False)
    with pytest.raises(Stopped):
        tiny_models.train(stopped, create("salun"), training, hooks=hooks, folders=Folders(checkpoints=tmp_path))
    resumed = tiny_kinds.text()
    with torch.no_grad():
        for p in resumed.parameters():
            p.zero_()  # all weights come from the checkpoint
    tiny_models.train(resumed, create("salun"), training, folders=Folders(checkpoints=tmp_path))
    assert resumed.digest() == whole.digest() != start.digest()
    first = start.denoiser.state_dict()
    moved = [name for name, value in whole.denoiser.state_dict().items() if not torch.equal(value, first[name])]
    assert moved
    assert not any("conv" in name or "norm" in name for name in moved)
    assert all(value.dtype == torch.float32 for value in whole.denoiser.state_dict().values())


def test_eight_bit_moments_need_a_library_and_say_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"needs bitsandbytes, which is not installed: pip install 'safemax\[eight_bit\]'"
    ):
        tiny_models.train(tiny_models.diffusion(), create("safemax"), Training(optimizer_state="8bit"))


def test_eight_bit_moments_are_counted_by_what_they_take() -> None:
    assert optimizers.bytes_of([4096, 100], Training(optimizer_state="8bit")) == 2 * 4096 + 16 * 8 + 800
    assert optimizers.bytes_of([4096, 100], Training()) == 8 * 4196


def test_eight_bit_moments_are_refused_where_a_mask_holds_weights() -> None:
    with pytest.raises(
        InputError, match="optimizer_state = 8bit is not allowed with SalUn: .*; optimizer_state must be fp32"
    ):
        tiny_models.train(tiny_models.diffusion(), create("salun"), Training(optimizer_state="8bit", device="cpu"))


def test_eight_bit_moments_are_refused_with_weights_that_lie_channels_last() -> None:
    with pytest.raises(InputError, match="channels_last = true is not allowed with optimizer_state = 8bit"):
        Training(optimizer_state="8bit", channels_last=True)


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_eight_bit_moments_learn_as_those_in_fp32_and_resume_to_the_same_weights(tmp_path: Path) -> None:
    training = Training(steps=3, batch_size=8, device="cpu", optimizer_state="8bit", checkpoint_every=1)
    models = [wide() for _ in range(4)]
    tiny_models.train(models[0], create("safemax"), training)
    asked = iter((False, True))
    hooks = Hooks(should_stop=lambda: next(asked), progress=False)
    with pytest.raises(Stopped):
        tiny_models.train(models[1], create("safemax"), training, hooks=hooks, folders=Folders(checkpoints=tmp_path))
    tiny_models.train(models[2], create("safemax"), training, folders=Folders(checkpoints=tmp_path))
    assert models[2].digest() == models[0].digest()
    tiny_models.train(models[3], create("safemax"), replace(training, optimizer_state="fp32"))
    start, eight, full = (
        torch.cat([p.flatten() for p in each.parameters()]) for each in (wide(), models[0], models[3])
    )
    assert torch.nn.functional.cosine_similarity(eight - start, full - start, dim=0) > 0.95
    other = replace(training, optimizer_state="fp32", steps=4)
    with pytest.raises(InputError, match="is not one of this model and method"):
        tiny_models.train(wide(), create("safemax"), other, folders=Folders(checkpoints=tmp_path))


def test_a_device_of_less_memory_is_refused_with_the_ways_out() -> None:
    need = memory.Need(2_700_000_000, 8_100_000_000, 42_000_000_000, 128)
    assert str(need) == (
        "memory: weights 2.7 GB, gradients and Adam 8.1 GB, a pass of 128 rows 42 GB: about 53 GB, plus what the method holds"
    )
    need.validate(80_000_000_000)
    with pytest.raises(
        InputError, match=r"about 53 GB.*; the device has 24 GB: accumulate .* gradient_checkpointing .* lora"
    ):
        need.validate(24_000_000_000)
    assert memory.check(tiny_models.diffusion(), Training(), torch.device("cpu")) == ""


@pytest.mark.parametrize("kind", ["unet", "dit", "text"])
def test_checkpointed_passes_train_to_the_same_weights_and_are_off_afterwards(kind: str) -> None:
    plain, checkpointed = tiny_kinds.KINDS[kind](), tiny_kinds.KINDS[kind]()
    for diffusion, on in ((plain, False), (checkpointed, True)):
        training = Training(steps=2, batch_size=8, device="cpu", gradient_checkpointing=on)
        tiny_models.train(diffusion, create("safemax"), training)
    for ours, theirs in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)  # Adam's first steps enlarge a rounding
    assert not checkpointed.denoiser.is_gradient_checkpointing


def test_the_weights_of_a_run_are_listed_once_and_anew_after_it():
    diffusion = tiny_models.diffusion()
    every = list(diffusion.parameters())
    weights.limit(diffusion, "attention", rank=3)
    chosen = list(diffusion.parameters())
    assert 0 < len(chosen) < len(every)
    assert list(map(id, chosen)) == [id(p) for name, p in diffusion.denoiser.named_parameters() if p.requires_grad]
    copied = copy.deepcopy(diffusion)
    own = {id(p) for p in copied.denoiser.parameters()}
    assert all(id(p) in own for p in copied.parameters()), "a copy lists its own weights"
    weights.release(diffusion)
    diffusion.denoiser = tiny_models.diffusion().denoiser
    assert [id(p) for p in diffusion.parameters()] == [id(p) for p in diffusion.denoiser.parameters()]
