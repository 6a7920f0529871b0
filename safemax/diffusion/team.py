"""Processes that draw together: one leads and goes its own way; the others wait and compute the rows that it hands them.

Only the leader has a run, a cache and a plan, so that no decision of it must be repeated elsewhere:

    with team.leading():           # process 0
        sample(diffusion, ...)     # shared by row

    sampling.follow()              # every other process, until the leader is done
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor

from safemax.diffusion.model import Diffusion

_PATIENCE = timedelta(days=1)  # others wait while the leader trains a judge
_POLL_SECONDS = 0.01  # a wait in Python lets signals through
_MODEL = "model:"

_teams: list[Team] = []


class Team:
    """The processes of torch's default group, connected on the CPU; each of them must make one.

    Args:
        together: all of them ask for the same draws, and all get them.

    Attributes:
        rank: the index of this process.
        world: their number.
        is_whole: no draw is under way.
    """

    def __init__(self, *, together: bool = False) -> None:
        self._group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        self.together = together
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.is_whole = True
        self._model = ""
        self._diffusion: Diffusion | None = None

    def tell(self, tensors: Mapping[str, Tensor]) -> None:
        """Send tensors from the leader to all others; nothing ends their wait."""
        text = safetensors.torch.save({name: each.detach().cpu().contiguous() for name, each in tensors.items()})
        self._broadcast(torch.tensor(len(text)))
        self._broadcast(torch.frombuffer(bytearray(text), dtype=torch.uint8))

    def hear(self) -> dict[str, Tensor]:
        """Wait for what the leader tells."""
        size = torch.tensor(0)
        self._broadcast(size)
        text = torch.zeros(int(size), dtype=torch.uint8)
        self._broadcast(text)
        return safetensors.torch.load(text.numpy().tobytes())

    def gather(self, own: Tensor, counts: list[int]) -> list[Tensor]:
        """Bring every process's rows to the leader, in the order of the processes; the others get none.

        Args:
            own: this process's rows, (n, ...).
            counts: n of each process.
        """
        if self.rank:
            if len(own):
                dist.send(own.contiguous(), dst=0, group=self._group)
            return []
        parts = [own, *(own.new_empty(n, *own.shape[1:]) for n in counts[1:])]
        for source, part in enumerate(parts[1:], start=1):
            if len(part):
                dist.recv(part, src=source, group=self._group)
        return parts

    def whole(self, own: Tensor, counts: list[int]) -> Tensor:
        """Return all processes' rows where this process leads, or where all are together; else its own."""
        parts = self.gather(own, counts)
        images = torch.cat(parts) if parts else own
        if self.together:
            if not self.rank:
                self.tell({"images": images})
            images = images if not self.rank else self.hear()["images"]
        return images

    def model_of(self, diffusion: Diffusion) -> dict[str, Tensor]:
        """Return the files of the leader's model, to be told; none where the others have it."""
        identity = diffusion.identity()
        if identity == self._model:
            return {}
        self._model = identity
        with tempfile.TemporaryDirectory() as folder:
            diffusion.save(folder)
            files = [each for each in sorted(Path(folder).rglob("*")) if each.is_file()]
            return {f"{_MODEL}{each.relative_to(folder)}": _bytes(each) for each in files}

    def model_from(self, tensors: Mapping[str, Tensor], device: torch.device | str) -> Diffusion:
        """Return the model whose files were told now, or last."""
        files = {name.removeprefix(_MODEL): each for name, each in tensors.items() if name.startswith(_MODEL)}
        if files:
            with tempfile.TemporaryDirectory() as folder:
                for name, content in files.items():
                    path = Path(folder) / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content.numpy().tobytes())
                self._diffusion = Diffusion.load(folder).to(device)
        assert self._diffusion is not None
        return self._diffusion

    def _broadcast(self, tensor: Tensor) -> None:
        work = dist.broadcast(tensor, src=0, group=self._group, async_op=True)
        assert work is not None
        while not work.is_completed():  # it may last as long as the leader has other work
            time.sleep(_POLL_SECONDS)
        work.wait()  # raises what went wrong


def current() -> Team | None:
    """Return the team whose draws are shared now; None where this process is alone."""
    return _teams[-1] if _teams else None


@contextmanager
def leading() -> Iterator[None]:
    """Share every `sample` inside with the processes that follow; without others, or outside a group, nothing changes."""
    if _is_alone():
        yield
        return
    team = Team()
    _teams.append(team)
    try:
        yield
    finally:
        _teams.pop()
        if team.is_whole:
            team.tell({})


@contextmanager
def together() -> Iterator[None]:
    """Share every `sample` inside among processes that all call it with the same arguments; all get all images."""
    if _is_alone():
        yield
        return
    _teams.append(Team(together=True))
    try:
        yield
    finally:
        _teams.pop()


def _is_alone() -> bool:
    return not dist.is_initialized() or dist.get_world_size() == 1


def _bytes(path: Path) -> Tensor:
    return torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
