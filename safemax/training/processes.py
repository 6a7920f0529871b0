"""Several processes that train one model: rank 0's state reaches all of them, they must agree, and none waits for ever."""

from __future__ import annotations

import faulthandler
import hashlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, distributed

from safemax.data.dataset import Split
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError, LostProcessError
from safemax.knobs import external, knobs
from safemax.storage import checkpoint, source_digest
from safemax.storage.checkpoint import Checkpoint
from safemax.training.method import Method
from safemax.training.settings import Training

HANG_MINUTES = 10.0  # a step that takes longer has lost a process
_CHUNK = 1 << 26  # bytes of a broadcast
_AS_INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element
_LOOKS = 50  # at the clock, while HANG_MINUTES pass


class Processes:
    """The processes of a run, which torchrun started; alone in most runs, where nothing here costs anything.

    Args:
        accelerator: of the run.

    Attributes:
        rank: the index of this process.
        world: their number.
        name: this process in words, for messages.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.name = f"rank {self.rank} of {self.world} on {socket.gethostname()}"
        self._device = accelerator.device
        self._step, self._since = 0, 0.0

    def any(self, value: bool) -> bool:
        """Return whether the value is true in any process, each of which must call this."""
        if self.world == 1:
            return value
        flag = torch.tensor(float(value), device=self._device)
        distributed.all_reduce(flag)
        return bool(flag)

    def share(self, make: Callable[[], Checkpoint | None]) -> Checkpoint | None:
        """Return what `make` returns in rank 0, the only process that calls it: each may have a disk of its own."""
        if self.world == 1:
            return make()
        saved = make() if self.rank == 0 else None
        packed = self._broadcast(checkpoint.pack(saved) if saved else b"")
        return saved if self.rank == 0 or not packed else checkpoint.unpack(packed)

    def validate_same(self, facts: Callable[[], Mapping[str, Any]]) -> None:
        """Raise InputError in every process where one has other facts than rank 0: settings, data, weights, code.

        Args:
            facts: what must be the same, by name; JSON. Not called where this process is alone.
        """
        if self.world == 1:
            return
        mine = json.loads(json.dumps(facts()))
        theirs = json.loads(self._broadcast(json.dumps(mine).encode() if self.rank == 0 else b""))
        differs = [
            f"{name} is {_short(mine.get(name))} here and {_short(theirs.get(name))} in rank 0"
            for name in sorted({*mine, *theirs}) if mine.get(name) != theirs.get(name)
        ]  # fmt: skip
        if self.any(bool(differs)):
            raise InputError(
                f"{self.name}: {'; '.join(differs) or 'another process differs from rank 0, and says how'}"
            )

    def validate_weights(self, weights: Iterable[Tensor], step: int) -> None:
        """Raise LostProcessError in every process where one has other weights than rank 0, to the bit."""
        if self.world == 1:
            return
        mine = torch.stack([_checksum(each) for each in weights])
        theirs = mine.clone()
        distributed.broadcast(theirs, 0)
        if self.any(not torch.equal(mine, theirs)):
            raise LostProcessError(
                f"{self.name}: the processes hold different weights after step {step}; the last checkpoint is older"
            )

    @contextmanager
    def watched(self, step: int) -> Iterator[None]:
        """End this process where a step inside takes longer than HANG_MINUTES, and say which; `stepped` counts the steps.

        A process that waits inside a collective call cannot be woken: it ends with status 1, and with it torchrun's others.

        Raises:
            LostProcessError: the connection to another process broke.
        """
        if self.world == 1:
            yield
            return
        over = threading.Event()
        self.stepped(step)
        threading.Thread(target=self._watch, args=(over,), daemon=True).start()
        try:
            yield
        except RuntimeError as error:  # gloo's and NCCL's
            if isinstance(error, LostProcessError) or not _is_connection(error):
                raise
            reason = " ".join(str(error).split())[:200]
            raise LostProcessError(f"{self.name}: lost another process in step {self._step + 1}: {reason}") from error
        finally:
            over.set()

    def stepped(self, step: int) -> None:
        """Note the number of steps done."""
        self._step, self._since = step, time.monotonic()

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(HANG_MINUTES * 60 / _LOOKS):
            if time.monotonic() - self._since > HANG_MINUTES * 60:
                print(
                    f"error: {self.name}: step {self._step + 1} has not ended in {HANG_MINUTES:g} minutes; this process or "
                    "another one hangs; the same command resumes. This one's stack:",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
                faulthandler.dump_traceback()
                os._exit(1)

    def _broadcast(self, content: bytes) -> bytes:
        """Return rank 0's bytes, in parts: a checkpoint would fill a GPU's memory."""
        size = torch.tensor(len(content), device=self._device)
        distributed.broadcast(size, 0)
        parts = []
        for start in range(0, int(size), _CHUNK):
            part = torch.empty(min(_CHUNK, int(size) - start), dtype=torch.uint8, device=self._device)
            if self.rank == 0:
                part.copy_(torch.frombuffer(bytearray(content[start : start + _CHUNK]), dtype=torch.uint8))
            distributed.broadcast(part, 0)
            parts.append(part.cpu().numpy().tobytes())
        return b"".join(parts)


def facts(
    diffusion: Diffusion, method: Method, split: Split, forget: tuple[int, ...], training: Training
) -> dict[str, Any]:
    """Return what all processes of a run must have in common, by name."""
    images = hashlib.sha256(split.images.numpy().tobytes())
    images.update(split.labels.numpy().tobytes())
    own = {external(name): getattr(method, name) for name in knobs(method)}
    return {
        **asdict(training), **own, "method": type(method).__name__, "forget": forget, "data": images.hexdigest(),
        "weights": diffusion.digest(), "torch": torch.__version__,
        "code": source_digest.digest("safemax.training.trainer", type(method).__module__),
    }  # fmt: skip


def _checksum(tensor: Tensor) -> Tensor:
    """Return a sum of a tensor's bits, weighted by their places, computed on its device and exact in any order."""
    bits = tensor.detach().flatten().view(_AS_INTEGER[tensor.element_size()]).to(torch.int64)
    return (bits * torch.arange(1, len(bits) + 1, device=bits.device)).sum()


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:12]}..."


def _is_connection(error: RuntimeError) -> bool:
    return isinstance(error, distributed.DistError) or any(word in str(error) for word in ("gloo", "NCCL"))
