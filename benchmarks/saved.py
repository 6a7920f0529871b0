"""How many bytes autograd holds for backward at once; each storage counts once, known ones such as weights not at all."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable

import torch
from torch import Tensor


class _Saved:
    """A saved tensor; it is dropped when its graph is freed."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class SavedBytes:
    """A meter of the graphs that are alive.

    Args:
        known: tensors that live anyway, such as weights; what shares their storage is not counted.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        self._known = {each.untyped_storage().data_ptr() for each in known}
        self._uses: Counter[int] = Counter()
        self.now = self.peak = 0

    def during(self, work: Callable[[], object]) -> int:
        """Run some work and return the most bytes that were saved at once."""
        self.peak = self.now
        with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda saved: saved.tensor):
            work()
        return self.peak

    def _pack(self, tensor: Tensor) -> _Saved:
        saved, storage = _Saved(tensor), tensor.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        if key not in self._known:
            self.now += size if not self._uses[key] else 0
            self._uses[key] += 1
            self.peak = max(self.peak, self.now)
            weakref.finalize(saved, self._drop, key, size)
        return saved

    def _drop(self, key: int, size: int) -> None:
        self._uses[key] -= 1
        self.now -= size if not self._uses[key] else 0
