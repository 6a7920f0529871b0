"""A lock keeps the processes of a user apart, ends with its process, and leaves no file behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines import ROOT
from pipelines.registry.locks import lock, lock_file

HOLDER = """
import time
from pipelines.registry.locks import lock
with lock("tiny-ddpm"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of the test's own, for this process and its children."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_one_of_many_is_inside_and_no_file_is_left(temporary_folder: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        with lock("tiny-ddpm"):
            inside.append(number)
            time.sleep(0.01)
            most.append(len(inside))
            inside.remove(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(24)))
    assert most == [1] * 24
    assert list(temporary_folder.iterdir()) == []


def test_the_file_is_for_this_user_only() -> None:
    with lock("tiny-ddpm"):
        assert lock_file("tiny-ddpm").stat().st_mode & 0o777 == 0o600
        assert not lock_file("other-ddpm").exists()


def test_a_link_in_the_place_of_the_file_is_not_followed(temporary_folder: Path) -> None:
    target = temporary_folder / "target"
    lock_file("tiny-ddpm").symlink_to(target)
    with pytest.raises(OSError, match="symbolic link"), lock("tiny-ddpm"):
        pass
    assert not target.exists()


def test_a_lock_ends_with_the_process_that_holds_it() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", HOLDER], env=environment, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(_take)
            time.sleep(0.5)
            assert not waiting.done()
            holder.send_signal(signal.SIGKILL)
            assert waiting.result(timeout=30)


def _take() -> bool:
    with lock("tiny-ddpm"):
        return True
