"""`python -m pipelines.engine.ray_janitor FOLDER`: when the driver has died, end what is left of its Ray cluster, and its files.

Ray's own agents look for their dead cluster for a minute and more before they end. The driver's death, however it came, closes
the pipe that this process reads.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from pipelines import ROOT

GRACE_SECONDS = 5.0  # in which Ray ends what it ends by itself


def start(folder: str) -> subprocess.Popen[bytes]:
    """Start a janitor for the cluster whose files are in a folder; it begins when its input is closed."""
    words = [sys.executable, "-m", "pipelines.engine.ray_janitor", folder]
    return subprocess.Popen(words, stdin=subprocess.PIPE, cwd=ROOT, start_new_session=True)


def end(janitor: subprocess.Popen[bytes]) -> None:
    """Let a janitor look whether anything is left, and end."""
    assert janitor.stdin
    janitor.stdin.close()
    janitor.wait()


def clean(folder: Path) -> None:
    """Kill the processes that have a file of the folder open, such as their log, and delete it."""
    deadline = time.monotonic() + GRACE_SECONDS
    while folder.exists() and any(_users(folder)) and time.monotonic() < deadline:
        time.sleep(0.2)
    for each in _users(folder):
        with contextlib.suppress(psutil.Error):
            each.kill()
    shutil.rmtree(folder, ignore_errors=True)


def _users(folder: Path) -> Iterator[psutil.Process]:
    for each in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if any(Path(file.path).is_relative_to(folder) for file in each.open_files()):
                yield each


if __name__ == "__main__":
    sys.stdin.buffer.read()
    clean(Path(sys.argv[1]))
