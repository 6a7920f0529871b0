"""The optimizer of a run: AdamW, its two moments in float32 or, by bitsandbytes, in 8 bits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from safemax.errors import InputError
from safemax.training.settings import Training

State = dict[int, dict[str, Tensor]]

STATE = "the optimizer's state"  # in messages
_LEAST = 4096  # values of a tensor whose moments bitsandbytes keeps in 8 bits
_BLOCK = 256  # values that share a scale
_INSTALL = "pip install 'safemax[eight_bit]'"


def validate(training: Training) -> None:
    """Raise InputError where the settings need a library that is not installed."""
    if training.optimizer_state == "8bit" and find_spec("bitsandbytes") is None:
        raise InputError(f"optimizer_state = 8bit needs bitsandbytes, which is not installed: {_INSTALL}")


def create(weights: Sequence[Parameter], training: Training) -> torch.optim.Optimizer:
    """Return the optimizer of these weights."""
    options: dict[str, Any] = {"lr": training.lr, "weight_decay": training.weight_decay}
    if training.optimizer_state == "fp32":
        return torch.optim.AdamW(weights, fused=True, **options)
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(weights, min_8bit_size=_LEAST, **options)


def bytes_of(shapes: Iterable[int], training: Training) -> int:
    """Return the bytes of both moments of tensors of so many values each."""
    if training.optimizer_state == "fp32":
        return sum(8 * count for count in shapes)
    return sum(2 * count + 8 * -(-count // _BLOCK) if count >= _LEAST else 8 * count for count in shapes)


def skips_infinite(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer's kernel leaves a step out where a gradient is not finite, as torch's fused one does."""
    return isinstance(optimizer, torch.optim.AdamW)


def state_of(optimizer: torch.optim.Optimizer) -> State:
    """Return the moments and step counts of each weight, by its number; {} for one without a step."""
    taken = {i: optimizer.state.get(weight, {}) for i, weight in enumerate(_weights(optimizer))}
    return {i: {name: _alone(name, value) for name, value in each.items()} for i, each in taken.items() if each}


def load(optimizer: torch.optim.Optimizer, state: State) -> None:
    """Take over what `state_of` returned; the optimizer's settings stay.

    Raises:
        LookupError, ValueError: the state is of other weights, or of other moments.
    """
    weights, is_fp32 = _weights(optimizer), skips_infinite(optimizer)
    for index, moments in state.items():
        like = weights[index]
        for name in ("exp_avg", "exp_avg_sq") if is_fp32 else ("state1", "state2"):
            match(STATE, moments[name], like if is_fp32 else like.to(moments[name].dtype))
        match(STATE, moments["step"].float(), torch.zeros(()))
    groups = optimizer.state_dict()["param_groups"]
    counted = state if is_fp32 else {i: {**each, "step": int(each["step"])} for i, each in state.items()}
    optimizer.load_state_dict({"state": counted, "param_groups": groups})


def _alone(name: str, value: Tensor | int) -> Tensor:
    """Return a value as a tensor; the maps of bitsandbytes' codes are shared by all weights, which safetensors refuses."""
    return torch.as_tensor(value).clone() if name.startswith("qmap") else torch.as_tensor(value)


def match(what: str, tensor: Tensor, like: Tensor) -> None:
    """Raise ValueError where a tensor of a checkpoint has another shape or type than the one that it replaces."""
    if (tensor.shape, tensor.dtype) != (like.shape, like.dtype):
        shapes = f"{tuple(tensor.shape)} {tensor.dtype} in place of {tuple(like.shape)} {like.dtype}"
        raise ValueError(f"{what} has a tensor of {shapes}")


def _weights(optimizer: torch.optim.Optimizer) -> list[Parameter]:
    return [each for group in optimizer.param_groups for each in group["params"]]
