"""What lies in the cache: how large each piece is, when it was last used, what it is for, and how to free it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from safemax.storage import atomic, cache

DATA = "data"  # its files lie in the cache itself
PURPOSES = {
    "attacks": "results of attacks on a model",
    "bases": "base models that machines of a cluster share",
    "checkpoints": "trainings under way: they resume from these",
    "concepts": "sets of prompts, written as data",
    "contest": "bases, gold models and results of contests",
    DATA: "decoded images of a data set",
    "sources": "decoded data that a worker's machine was sent",
    "clusters": "marks by which workers see that they share this folder",
    "gold": "models retrained without a class, which attacks and comparisons are measured against",
    "judges": "trained judges",
    "latents": "latents of a data set's images",
    "models": "models of others, completed by a schedule or class names",
    "priors": "what methods prepare: Fisher information, masks, replay images",
    "rates": "measured speed of this machine, for plans",
    "references": "judges' features of real images",
    "samples": "images that a model drew, a base's among them",
    "studies": "searches: trials and the journal that resumes them",
}
UNFINISHED = ("checkpoints", "studies")  # the others are made again where they are missing
UNKNOWN = "not written by this version"


@dataclass(frozen=True)
class Piece:
    """A file or folder of the cache that is used as a whole.

    Args:
        kind: the folder that it lies in.
        path: where it is.
        size: in bytes.
        used: when it was last written or read, in seconds since 1970; most file systems note a reading once a day.
    """

    kind: str
    path: Path
    size: int
    used: float

    @property
    def days(self) -> float:
        """Days since it was last used."""
        return max(0.0, time.time() - self.used) / 86400

    @property
    def is_leftover(self) -> bool:
        """Whether a process was killed, or is at work, while it wrote it."""
        return fnmatch(self.path.name, atomic.TEMPORARY)


def pieces() -> list[Piece]:
    """Return everything in the cache, kind by kind."""
    top = sorted(_children(cache.root()))
    decoded = [_piece(DATA, each) for each in top if each.is_file()]
    return decoded + [_piece(kind.name, path) for kind in top if kind.is_dir() for path in sorted(_children(kind))]


def unused(every: list[Piece], days: float) -> list[Piece]:
    """Return what nobody needs: what can be made again, and what a killed process left, not used for so many days."""
    return [each for each in every if each.days >= days and (each.is_leftover or each.kind not in UNFINISHED)]


def free(piece: Piece) -> None:
    """Delete a piece; nothing happens where it is gone already."""
    if piece.path.is_dir():
        shutil.rmtree(piece.path, ignore_errors=True)
    else:
        piece.path.unlink(missing_ok=True)


def _children(folder: Path) -> Iterator[Path]:
    return folder.iterdir() if folder.is_dir() else iter(())


def _piece(kind: str, path: Path) -> Piece:
    files = [each for each in (path.rglob("*") if path.is_dir() else [path]) if each.is_file()]
    facts = [_stat(each) for each in files]
    sizes, times = (
        [each.st_size for each in facts if each],
        [max(each.st_atime, each.st_mtime) for each in facts if each],
    )
    return Piece(kind, path, sum(sizes), max(times, default=time.time()))


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:  # another process removed it
        return None
