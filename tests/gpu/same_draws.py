"""Random numbers that are the same on every device, so that a GPU can be compared with a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_MAKERS = {torch.randn, torch.rand, torch.randint, torch.randperm}
_LIKE: dict[Callable[..., Any], Callable[..., Tensor]] = {torch.randn_like: torch.randn, torch.rand_like: torch.rand}


class SameDraws(TorchFunctionMode):
    """While it is active, torch's random tensors come from the CPU's generator and move to the device that asked for them."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func in _LIKE:
            return _LIKE[func](args[0].shape, dtype=args[0].dtype).to(args[0].device)
        if func in _MAKERS and not _has_generator(given):
            device = given.pop("device", "cpu")
            return func(*args, **given).to(device)
        return func(*args, **given)


def _has_generator(given: dict[str, Any]) -> bool:
    return given.get("generator") is not None


@contextmanager
def exact() -> Iterator[None]:
    """Multiply in full float32 for as long as the block lasts: a GPU's convolutions round to 10 bits (TF32) otherwise."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with SameDraws():
            yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
