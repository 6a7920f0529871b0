"""A folder's manifest: the sha256 and size of every file in it, so that a changed bit is noticed before it is loaded."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TypedDict

from safemax.errors import InputError
from safemax.storage import atomic

NAME = "manifest.json"
SUFFIXES = {".json", ".safetensors", ".py", ".pyi", ".txt", ".md", ".yaml", ".yml", ".png", ".html", ".csv"}
BARE_NAMES = {"MLmodel", "py.typed"}


class Entry(TypedDict):
    """What a manifest records of one file: sha256 in hex, size in bytes."""

    sha256: str
    size: int


def write(folder: str | Path) -> str:
    """Write manifest.json into a folder, atomically and durably, and return its digest.

    The manifest is canonical: a folder has exactly one, so the digest names the folder's content.

    Returns:
        sha256 of manifest.json, 64 hex digits.

    Raises:
        InputError: the folder holds a file that no version may hold (see `entries`).
    """
    folder = Path(folder)
    for leftover in folder.glob(f"{NAME}.{atomic.TEMPORARY}"):  # a kill may have left it; no version may hold it
        leftover.unlink()
    content = _canonical(entries(folder))
    atomic.write_bytes(folder / NAME, content)
    return hashlib.sha256(content).hexdigest()


def verify(folder: str | Path, *, tolerate: Collection[str] = ()) -> str:
    """Check every file of a folder against its manifest.json and return the manifest's digest.

    Args:
        folder: what `write` was called on, or a copy of it.
        tolerate: names of files and folders to ignore because other programs create them (`__pycache__`).

    Raises:
        InputError: a file is missing, not in the manifest or changed (the first by name), or the manifest itself is bad.
    """
    folder = Path(folder)
    listed, content = _read(folder)
    present = entries(folder, tolerate=tolerate)
    for name in sorted(listed.keys() | present.keys()):
        if name not in present:
            raise InputError(f"{folder}: {name} is missing; the manifest lists it")
        if name not in listed:
            raise InputError(f"{folder}: {name} is not in the manifest")
        if listed[name] != present[name]:
            raise InputError(f"{folder}: {name} has changed since the manifest was written")
    if content != _canonical(present):
        raise InputError(f"{folder}: {NAME} has changed since it was written")
    return hashlib.sha256(content).hexdigest()


def entries(folder: str | Path, *, tolerate: Collection[str] = ()) -> dict[str, Entry]:
    """Return the entry of every file under a folder, except its manifest.json, by path relative to the folder.

    Raises:
        InputError: not a folder, or it holds a symlink, a hidden or special file, or a suffix that is not in SUFFIXES.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    names = sorted(_walk(folder, folder, tolerate))
    return {name: _entry(folder / name) for name in names if name != NAME}


def _walk(folder: Path, top: Path, tolerate: Collection[str]) -> Iterator[str]:
    for each in os.scandir(folder):
        if each.name in tolerate:
            continue
        path = Path(each.path)
        if each.is_symlink() or each.name.startswith("."):
            raise InputError(f"{top}: {path.relative_to(top)} is a symlink or hidden; a version holds neither")
        if each.is_dir():
            yield from _walk(path, top, tolerate)
        elif not each.is_file() or not (path.suffix in SUFFIXES or each.name in BARE_NAMES):
            kinds = ", ".join(sorted(SUFFIXES | BARE_NAMES))
            raise InputError(f"{top}: {path.relative_to(top)} is not a file that a version may hold; allowed: {kinds}")
        else:
            yield path.relative_to(top).as_posix()


def _entry(path: Path) -> Entry:
    with open(path, "rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "size": os.fstat(file.fileno()).st_size}


def _read(folder: Path) -> tuple[dict[str, Entry], bytes]:
    try:
        content = (folder / NAME).read_bytes()
        manifest = json.loads(content)
    except FileNotFoundError:
        raise InputError(f"{folder}: {NAME} is missing") from None
    except (OSError, ValueError, RecursionError):
        raise InputError(f"{folder}: {NAME} is not a manifest") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise InputError(f"{folder}: {NAME} is not a manifest")
    return manifest["files"], content


def _canonical(files: dict[str, Entry]) -> bytes:
    return (json.dumps({"files": files}, indent=1, sort_keys=True) + "\n").encode()
