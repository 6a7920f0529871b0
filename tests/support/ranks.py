"""Two processes that train one model over gloo, as two machines with separate disks do."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

WORLD = 2
_CONTEXT = multiprocessing.get_context("forkserver")  # torch is imported once, and each rank is a fork
_CONTEXT.set_forkserver_preload(["tests.support.rank_program"])


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def _enter(program: Callable[..., Any], rank: int, port: int, folder: Path, given: dict[str, Any]) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": WORLD, "LOCAL_WORLD_SIZE": WORLD, "MASTER_PORT": port}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", **{key: str(value) for key, value in names.items()}}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "stderr").open("w") as stderr:
        os.dup2(stderr.fileno(), 2)
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - for as long as the process lives
        try:
            (folder / "answer.json").write_text(json.dumps(program(rank, folder, **given)))
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(3)
        os._exit(0)


@contextmanager
def started(program: Callable[..., Any], folder: Path, **given: Any) -> Iterator[Sequence[BaseProcess]]:
    """Start both ranks on a program of rank_program; none is left at the end.

    Args:
        program: gets rank, a folder of its own and what is given; its result is JSON.
        folder: of both; each rank has `folder/rank`.
        given: by name.
    """
    port = _free_port()
    ranks = [
        _CONTEXT.Process(target=_enter, args=(program, rank, port, folder / str(rank), given)) for rank in range(WORLD)
    ]
    for each in ranks:
        each.start()
    try:
        yield ranks
    finally:
        for each in ranks:
            each.kill()
            each.join()


def wait(ranks: Sequence[BaseProcess], seconds: float = 180) -> list[int | None]:
    """Return the exit statuses of ranks that end by themselves; None for one that does not."""
    deadline = time.monotonic() + seconds
    for each in ranks:
        each.join(max(0.0, deadline - time.monotonic()))
    return [each.exitcode for each in ranks]


def answers(program: Callable[..., Any], folder: Path, **given: Any) -> list[Any]:
    """Run a program in both ranks and return what each one returned."""
    with started(program, folder, **given) as ranks:
        statuses = wait(ranks)
    assert statuses == [0, 0], [said(folder, rank) for rank in range(WORLD)]
    return [json.loads((folder / str(rank) / "answer.json").read_text()) for rank in range(WORLD)]


def said(folder: Path, rank: int) -> str:
    """Return what a rank wrote to stderr."""
    return (folder / str(rank) / "stderr").read_text()
