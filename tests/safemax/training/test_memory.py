"""What a run will need is known before it begins, and less memory trains to the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from safemax.diffusion import weights
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError
from safemax.methods import create
from safemax.training import memory
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


def test_a_device_of_less_memory_is_refused_with_the_ways_out() -> None:
    need = memory.Need(2_700_000_000, 8_100_000_000, 42_000_000_000, 128)
    assert str(need) == (
        "memory: weights 2.7 GB, gradients and Adam 8.1 GB, a pass of 128 rows 42 GB: about 53 GB, beside what the method holds"
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
