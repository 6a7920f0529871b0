"""Where a training run computes: device, processes and precision, by accelerate."""

from __future__ import annotations

from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs

from safemax.errors import InputError
from safemax.training.settings import Training

# Other processes wait while one trains judges or prepares a prior; torch's own limit is ten minutes.
_TIMEOUT = timedelta(days=1)


def accelerator_for(training: Training) -> Accelerator:
    """Return the accelerator of the settings' device and precision; each call may choose another precision.

    Raises:
        InputError: device = cuda on a machine without a GPU.
    """
    if training.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device = cuda is not allowed: this machine has no GPU; use auto or cpu")
    # A process's accelerate state fixes the device too, so it is reset; with several processes it holds their group and
    # must stay.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    return Accelerator(
        mixed_precision="bf16" if training.precision == "bf16" else "no",
        cpu=training.device == "cpu" or not torch.cuda.is_available(),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_TIMEOUT)],
    )
