"""Processes that draw together: one leads and goes its own way; the others wait and compute the rows that it hands them.

Only the leader has a run, a cache and a plan, so that no decision of it must be repeated elsewhere:

    with team.leading():           # process 0
        sample(diffusion, ...)     # shared by row

    sampling.follow()              # every other process, until the leader is done
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

from safemax.data import row_share
from safemax.storage import cache

T = TypeVar("T")
Network = TypeVar("Network", bound=nn.Module)
_PATIENCE = timedelta(days=1)  # others wait while the leader trains a judge
_POLL_SECONDS = (1e-4, 0.01)  # at first, and where it lasts; a wait in Python lets signals through

_teams: list[Team] = []
# A piece of work of a process that follows: it gets its team, what was said about the work, its tensors, and its device.
Job: TypeAlias = "Callable[[Team, dict[str, Any], dict[str, Tensor], torch.device], None]"


class Team:
    """The processes of torch's default group, connected on the CPU; each of them must make one.

    Args:
        together: all of them ask for the same draws, and all get them.

    Attributes:
        rank: the index of this process.
        world: their number.
        share: this process's rows of a batch.
        is_whole: no draw or other shared work is under way.
    """

    def __init__(self, *, together: bool = False) -> None:
        self._group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        self.together, self.share = together, row_share.of_this_process()
        self.rank, self.world = self.share.rank, self.share.world
        self.is_whole = True
        self._told: dict[str, str] = {}
        self._kept: dict[str, Any] = {}

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

    def whole(self, own: Tensor, total: int) -> Tensor:
        """Return all rows of a batch where this process leads, or where all are together; else its own."""
        parts = self.gather(own, self.share.counts(total))
        rows = row_share.joined(parts) if parts else own
        if self.together:
            if not self.rank:
                self.tell({"rows": rows})
            rows = rows if not self.rank else self.hear()["rows"]
        return rows

    def hand_out(self, job: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Tell all others what to do next; see `follow`."""
        self.tell({"about": cache.json_to_tensor({**about, "job": job}), **tensors})

    @contextmanager
    def acting_together(self) -> Iterator[None]:
        """Do the same in all processes: each gets all that they draw; what one raises ends the others by their connection."""
        self.together, self.is_whole = True, False
        try:
            yield
            self.is_whole = True
        finally:
            self.together = False

    def once(self, role: str, identity: str, save: Callable[[str], object]) -> dict[str, Tensor]:
        """Return the files of what plays a role, to be told; none where the others have it from the last time.

        Args:
            role: what it is to the others, such as "model"; they keep one of each role.
            identity: differs where what it computes may differ.
            save: writes it to a folder.
        """
        if self._told.get(role) == identity:
            return {}
        self._told[role] = identity
        return packed(save, f"{role}:")

    def kept(
        self, role: str, tensors: Mapping[str, Tensor], load: Callable[[str], Network], device: torch.device | str
    ) -> Network:
        """Return what plays a role: it was told now, or the last time; see `once`."""
        told = unpacked(tensors, load, f"{role}:")
        if told is not None:
            self._kept[role] = told.to(device)
        network: Network = self._kept[role]
        return network

    def _broadcast(self, tensor: Tensor) -> None:
        work = dist.broadcast(tensor, src=0, group=self._group, async_op=True)
        assert work is not None
        pause, longest = _POLL_SECONDS
        while not work.is_completed():  # it may last as long as the leader has other work
            time.sleep(pause)
            pause = min(2 * pause, longest)
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


def follow(jobs: Mapping[str, Job], device: torch.device | str = "cpu") -> None:
    """Do what the leader hands out, until it is done.

    Args:
        jobs: by the names that the leader calls them.
        device: where this process computes.
    """
    team = Team()
    _teams.append(team)
    try:
        while told := team.hear():
            about = cache.tensor_to_json(told.pop("about"))
            jobs[about.pop("job")](team, about, told, torch.device(device))
    finally:
        _teams.pop()


def packed(save: Callable[[str], object], prefix: str) -> dict[str, Tensor]:
    """Return the files that something writes to a folder, to be told; their names begin with the prefix."""
    with tempfile.TemporaryDirectory() as folder:
        save(folder)
        files = [each for each in sorted(Path(folder).rglob("*")) if each.is_file()]
        return {f"{prefix}{each.relative_to(folder)}": _bytes(each) for each in files}


def unpacked(tensors: Mapping[str, Tensor], load: Callable[[str], T], prefix: str) -> T | None:
    """Return what is read from a folder with the files that were told by this prefix; None where none were."""
    files = {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}
    if not files:
        return None
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.numpy().tobytes())
        return load(folder)


def _bytes(path: Path) -> Tensor:
    return torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
