"""Where and how a training run computes: device, processes, precision and compilation, by accelerate."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, TorchDynamoPlugin

from safemax.errors import InputError
from safemax.training.settings import Training

# Other processes wait while one trains judges; torch's own limit is ten minutes, and a step has its own (processes.py).
_TIMEOUT = timedelta(days=1)
# A run this long wins back the minute or two that compiling takes: estimates, not measured.
_LONG_STEPS, _LONG_MINUTES = 5000, 5.0
BACKEND = "inductor"  # of torch.compile


def accelerator_for(training: Training) -> Accelerator:
    """Return the accelerator of the settings' device and precision; each call may choose another precision.

    Raises:
        InputError: device = cuda on a machine without a GPU.
    """
    validate(training)
    # A process's accelerate state fixes the device too, so it is reset; with several processes it holds their group and
    # must stay.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    use_fast_gpu_kernels(training.precision)
    return Accelerator(
        mixed_precision="bf16" if uses_bf16(training) else "no",
        cpu=not _on_gpu(training),
        dynamo_plugin=_compiler(training),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_TIMEOUT)],
    )


def validate(training: Training) -> None:
    """Raise InputError for device = cuda on a machine without a GPU."""
    if training.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device = cuda is not allowed: this machine has no GPU; use auto or cpu")


def number_of_processes() -> int:
    """Return how many processes torchrun started, this one included; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def use_fast_gpu_kernels(precision: str = "fp32") -> None:
    """Let a GPU choose its fastest convolutions and, unless the precision is fp32, multiply float32 matrices in TF32.

    For the whole process: training, judges and sampling. On a CPU it changes nothing. The choice of convolutions is by their
    time, so that two runs may round differently, unless torch.use_deterministic_algorithms forbids that.
    """
    if not torch.cuda.is_available():
        return
    torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
    if precision != "fp32":
        torch.set_float32_matmul_precision("high")


def compiles(training: Training) -> bool:
    """Whether the denoiser of a run with these settings is compiled; auto never compiles on a CPU."""
    if training.compile != "auto":
        return training.compile == "max"
    is_long = training.minutes >= _LONG_MINUTES if training.minutes else training.steps >= _LONG_STEPS
    return _on_gpu(training) and is_long


def _compiler(training: Training) -> TorchDynamoPlugin | None:
    if not compiles(training):
        return None
    mode = "max-autotune" if training.compile == "max" else "default"
    return TorchDynamoPlugin(backend=BACKEND, mode=mode, dynamic=False)


def uses_bf16(training: Training) -> bool:
    """Whether a run with these settings computes in bf16; auto does on a GPU."""
    return training.precision == "bf16" or (training.precision == "auto" and _on_gpu(training))


def _on_gpu(training: Training) -> bool:
    return training.device != "cpu" and torch.cuda.is_available()
