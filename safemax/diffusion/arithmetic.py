"""How a network is computed where images are drawn: exactly, or on a GPU in bf16, compiled or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from safemax.diffusion.model import Diffusion
from safemax.errors import unknown

EXACT, BF16, COMPILED = "exact", "bf16", "compiled"
CHOICES = (EXACT, BF16, COMPILED)
# On a CPU all are exact: bf16 and compilation gain nothing there, and one seed gives one set of images.
DEVICES = {"cuda"}
BACKEND = "inductor"  # of torch.compile


@contextmanager
def computed(diffusion: Diffusion, arithmetic: str, rows: int) -> Iterator[None]:
    """Let a model predict in an arithmetic for as long as the block lasts; no gradient is taken inside.

    Args:
        diffusion: the model.
        arithmetic: one of CHOICES.
        rows: that a compiled network always gets, since it is compiled for one number; no pass has more.

    Raises:
        InputError: another name, on a CPU too.
    """
    if arithmetic not in CHOICES:
        raise unknown("arithmetic", arithmetic, CHOICES)
    if arithmetic == EXACT or diffusion.device.type not in DEVICES:
        yield
        return
    network = diffusion.denoiser
    diffusion.denoiser = _Fast(network, rows if arithmetic == COMPILED else 0)
    try:
        yield
    finally:
        diffusion.denoiser = network


class _Fast(nn.Module):
    """A network in bf16, float32 where torch's autocast keeps it.

    Args:
        network: of diffusers' signature.
        rows: for which it is compiled; 0 compiles nothing.
    """

    def __init__(self, network: nn.Module, rows: int) -> None:
        super().__init__()
        self._rows = rows
        # made anew for each batch, but compiled once: torch keeps the code by what it was made of
        self.network = torch.compile(network, backend=BACKEND, dynamic=False) if rows else network

    def forward(self, x_t: Tensor, t: Tensor, *, return_dict: bool = False, **told: Tensor) -> tuple[Tensor]:
        count = len(x_t)
        inputs: dict[str, Any] = {name: self._filled(each) for name, each in told.items()}
        with torch.autocast(x_t.device.type, torch.bfloat16):
            eps = self.network(self._filled(x_t), self._filled(t), **inputs, return_dict=return_dict)[0]
        return (eps[:count],)

    def _filled(self, tensor: Tensor) -> Tensor:
        """Return a tensor with its last row again and again, up to the rows that the network is compiled for."""
        missing = self._rows - len(tensor)
        return torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])]) if missing > 0 else tensor
