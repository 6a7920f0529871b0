"""Files and folders that are whole or absent, whatever kills the process while it writes them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from safemax.errors import InputError

TEMPORARY = "*.tmp"  # what a kill may leave beside the target


def write_bytes(path: Path, payload: bytes) -> None:
    """Write a file atomically and durably: it appears under its name only once its bytes are on disk.

    An error, such as OSError on a full disk, leaves the former file of that name as it was.

    Raises:
        InputError: a folder has that name.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder, but a file is to be written there; delete it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def create_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """Create a folder atomically; if another process creates it first, that one stays.

    Args:
        folder: the final path.
        fill: writes the content into the temporary folder whose path it receives.
    """
    temporary = _temporary(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    fill(temporary)
    try:
        temporary.rename(folder)
    except OSError:  # another process was first
        if not folder.exists():
            raise
        shutil.rmtree(temporary)


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}.tmp")


def _sync(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
