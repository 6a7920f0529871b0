"""The state of a training run as the tensors of a checkpoint, and back.

A checkpoint holds weights, their moving average, the method's state, the optimizer, step and cost. It holds no generator
state: every step seeds the generators anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from safemax.errors import InputError
from safemax.storage.checkpoint import Checkpoint
from safemax.training import optimizers
from safemax.training.method import Method
from safemax.training.result import Cost


def take(
    step: int,
    network: Module,
    method: Method,
    optimizer: torch.optim.Optimizer,
    average: list[Tensor],
    cost: Cost,
    origin: str,
    originals: Mapping[str, Tensor],
) -> Checkpoint:
    """Return the checkpoint of a run after `step` steps.

    Args:
        step: steps done.
        network: the denoiser, not wrapped for several processes.
        method: its `state` is included.
        optimizer: of the trained weights.
        average: moving average of each trained weight; [] without one.
        cost: so far.
        origin: the name of the run.
        originals: weights of the network that it holds rounded, by name.
    """
    tensors = _model_tensors(network, method) | {f"model.{name}": value for name, value in originals.items()}
    tensors |= {f"average.{i:05d}": value for i, value in enumerate(average)}
    for i, state in optimizers.state_of(optimizer).items():
        tensors |= {f"optimizer.{i:05d}.{name}": value for name, value in state.items()}
    about: dict[str, Any] = {"origin": origin, "cost": asdict(cost)}
    return Checkpoint(step, tensors, about)


def take_start(network: Module, method: Method) -> Checkpoint:
    """Return what a run starts from once its method is prepared: weights and the method's state."""
    return Checkpoint(0, _model_tensors(network, method), {})


def progress(saved: Checkpoint) -> tuple[Cost, str]:
    """Return the cost of a checkpoint's run so far, and the run's name; InputError where it does not say."""
    with _one_line(saved):
        return Cost(**saved.about["cost"]), str(saved.about["origin"])


def restore_model(saved: Checkpoint, network: Module, method: Method, device: torch.device) -> None:
    """Load a checkpoint's weights into the network and its method state into the method; InputError where they do not fit."""
    with _one_line(saved):
        network.load_state_dict(_under("model.", saved.tensors))
        state = _under("method.", saved.tensors)
        method.load_state({name: value.to(device) for name, value in state.items()})


def restore_optimizer(saved: Checkpoint, optimizer: torch.optim.Optimizer) -> None:
    """Load a checkpoint's moments and step counts into the optimizer, whose settings stay; InputError where they do not fit."""
    state: dict[int, dict[str, Tensor]] = {}
    with _one_line(saved):
        for name, value in _under("optimizer.", saved.tensors).items():
            number, key = name.split(".")
            state.setdefault(int(number), {})[key] = value
        optimizers.load(optimizer, state)


def average_of(saved: Checkpoint, like: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Return a checkpoint's moving average of each trained weight; InputError where it is not shaped `like` that of the run.

    Args:
        saved: the checkpoint.
        like: the average that the run starts with, [] without one.
        device: of the result.
    """
    average = [value.to(device) for _, value in sorted(_under("average.", saved.tensors).items())]
    with _one_line(saved):
        for ours, theirs in zip(average, like, strict=True):
            optimizers.match("the moving average", ours, theirs)
    return average


def _model_tensors(network: Module, method: Method) -> dict[str, Tensor]:
    tensors = {f"model.{name}": value for name, value in network.state_dict().items()}
    return tensors | {f"method.{name}": value for name, value in method.state().items()}


@contextmanager
def _one_line(saved: Checkpoint) -> Iterator[None]:
    try:
        yield
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"the checkpoint of step {saved.step} is not one of this model and method; delete its folder: {reason}"
        ) from error


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
