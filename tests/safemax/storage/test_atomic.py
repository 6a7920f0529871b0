"""What is written atomically is whole or absent, also where writing fails half-way or a process is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from safemax.storage import atomic


def full_disk(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


def test_a_written_file_holds_its_bytes_and_nothing_else_is_left(tmp_path: Path) -> None:
    atomic.write_bytes(tmp_path / "new" / "file", b"old")
    atomic.write_bytes(tmp_path / "new" / "file", b"new")
    assert {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()} == {"file": b"new"}


def test_a_full_disk_leaves_the_former_file_and_no_half_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atomic.write_bytes(tmp_path / "file", b"old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        atomic.write_bytes(tmp_path / "file", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"old"}


WRITER = """
import sys
from pathlib import Path
from safemax.storage import atomic
print("ready", flush=True)
for number in range(10**9):
    atomic.write_bytes(Path(sys.argv[1]), bytes([number % 256]) * 100_000)
"""


def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    for delay in (0.0, 0.011, 0.023, 0.037):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path / "file"], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        while not (tmp_path / "file").exists():
            time.sleep(0.001)
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        content = (tmp_path / "file").read_bytes()
        assert len(content) == 100_000
        assert len(set(content)) == 1


def test_a_folder_that_could_not_be_filled_does_not_appear(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        folder.mkdir()
        (folder / "half").write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        atomic.create_folder(tmp_path / "model", fill)
    assert not (tmp_path / "model").exists()


def test_a_folder_that_another_process_created_meanwhile_stays(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        folder.mkdir()
        (folder / "ours").write_text("")
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "theirs").write_text("")

    atomic.create_folder(tmp_path / "model", fill)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["model", "model/theirs"]


def test_a_folder_left_half_filled_is_filled_anew(tmp_path: Path) -> None:
    (tmp_path / f"model.{os.getpid()}.tmp").mkdir()
    (tmp_path / f"model.{os.getpid()}.tmp" / "half").write_text("")

    def fill(folder: Path) -> None:
        folder.mkdir()
        (folder / "whole").write_text("")

    atomic.create_folder(tmp_path / "model", fill)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["whole"]
