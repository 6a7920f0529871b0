"""A pipeline stops when it is told to, and does not outlive the process that launched it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines import ROOT
from pipelines.cli.mlproject import Entry, mlproject

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")

WAITS_TO_BE_STOPPED = """
import os, sys, time
from pathlib import Path
from pipelines.engine.signals import die_with_parent, stop_on_signals

here = Path(sys.argv[1])
while (here / "hold").exists():
    time.sleep(0.01)
stop = stop_on_signals()
die_with_parent()
(here / "ready").write_text(f"{os.getpid()} {os.environ.get('SAFEMAX_LAUNCHER', '')}")
for _ in range(6000):
    if stop():
        (here / "stopped").write_text("143")
        sys.exit(143)
    time.sleep(0.01)
"""


def _until(path: Path, seconds: float = 60) -> None:
    """Wait for a file to be there with its text."""
    deadline = time.monotonic() + seconds
    while not (path.exists() and path.stat().st_size):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _program(folder: Path) -> Path:
    program = folder / "waits.py"
    program.write_text(WAITS_TO_BE_STOPPED)
    return program


def _launcher(folder: Path, assignment: str) -> subprocess.Popen[bytes]:
    """Start a process that starts the program as mlflow does: bash, which replaces itself by Python."""
    line = f"{assignment} exec {sys.executable} {_program(folder)} {folder}"
    launcher = f"import subprocess; subprocess.Popen(['bash', '-c', {line!r}]).wait()"
    return subprocess.Popen([sys.executable, "-c", launcher], env={**os.environ, "PYTHONPATH": str(ROOT)})


ENDS_BY_A_SIGNAL = """
import sys, time
from pathlib import Path
from pipelines.cli.parser import main
from pipelines.engine.signals import stop_on_signals
from safemax.errors import Stopped

def entry(argv):
    kind, ready = argv
    stop = stop_on_signals() if kind != "short" else lambda: False
    Path(ready).write_text("ready")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if kind == "reads the flag" and stop():
            raise Stopped
        time.sleep(0.01)

main(entry)
"""


def ended(folder: Path, kind: str, *signals: signal.Signals, ignored: str = "") -> tuple[int, str]:
    """Return the exit status and stderr of a pipeline that gets signals when it is ready.

    Args:
        folder: of the program and its files.
        kind: "reads the flag" between steps, is "busy" and does not, or is "short" and has no checkpoint.
        signals: sent one after the other.
        ignored: what a shell makes the pipeline ignore from the start, such as HUP.
    """
    (folder / "program.py").write_text(ENDS_BY_A_SIGNAL)
    line = f"trap '' {ignored or 'USR1'}; exec {sys.executable} program.py '{kind}' ready"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(["bash", "-c", line], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    _until(folder / "ready")
    for each in signals:
        child.send_signal(each)
        time.sleep(0.1)
    _, stderr = child.communicate(timeout=20)
    return child.returncode, stderr


@pytest.mark.parametrize("kind", ["reads the flag", "short"])
@pytest.mark.parametrize(
    ("sent", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)], ids=str
)
def test_a_signal_ends_a_pipeline_with_its_own_status(
    tmp_path: Path, kind: str, sent: signal.Signals, status: int
) -> None:
    code, stderr = ended(tmp_path, kind, sent)
    assert code == status
    assert "the same command resumes" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr


def test_ctrl_c_says_how_to_end_at_once_and_a_second_one_does(tmp_path: Path) -> None:
    code, stderr = ended(tmp_path, "busy", signal.SIGINT, signal.SIGINT)
    assert code == 130
    assert "Ctrl-C again ends at once" in stderr


def test_a_second_signal_of_another_kind_changes_neither_the_end_nor_the_status(tmp_path: Path) -> None:
    code, _ = ended(tmp_path, "reads the flag", signal.SIGHUP, signal.SIGTERM, signal.SIGTERM)
    assert code == 129


def test_a_signal_that_the_shell_made_the_pipeline_ignore_stays_ignored(tmp_path: Path) -> None:
    code, stderr = ended(tmp_path, "reads the flag", signal.SIGHUP, signal.SIGTERM, ignored="HUP")  # as nohup does
    assert (code, stderr) == (143, "stopped: the same command resumes\n")


@linux
@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_a_pipeline_stops_when_its_launcher_dies(tmp_path: Path, by: signal.Signals) -> None:
    launcher = _launcher(tmp_path, "SAFEMAX_LAUNCHER=$PPID")
    _until(tmp_path / "ready")
    launcher.send_signal(by)
    _until(tmp_path / "stopped", seconds=10)


@linux
def test_a_launcher_that_died_while_the_pipeline_was_starting_counts_too(tmp_path: Path) -> None:
    (tmp_path / "hold").touch()
    launcher = _launcher(tmp_path, "SAFEMAX_LAUNCHER=$PPID")
    time.sleep(0.5)
    launcher.kill()
    launcher.wait()
    (tmp_path / "hold").unlink()
    _until(tmp_path / "stopped", seconds=10)


@linux
def test_a_pipeline_started_by_hand_outlives_the_shell_it_was_started_from(tmp_path: Path) -> None:
    launcher = _launcher(tmp_path, "")
    _until(tmp_path / "ready")
    launcher.kill()
    launcher.wait()
    time.sleep(0.5)
    assert not (tmp_path / "stopped").exists()
    os.kill(int((tmp_path / "ready").read_text()), signal.SIGTERM)
    _until(tmp_path / "stopped", seconds=10)


@linux
def test_a_child_of_the_pipeline_does_not_take_the_launcher_for_its_own(tmp_path: Path) -> None:
    launcher = _launcher(tmp_path, "SAFEMAX_LAUNCHER=$PPID")
    _until(tmp_path / "ready")
    assert (tmp_path / "ready").read_text().split()[1:] == []
    launcher.kill()


@linux
def test_killing_mlflow_run_stops_the_pipeline_that_it_started(tmp_path: Path) -> None:
    _program(tmp_path)
    project = mlproject((Entry("main", "waits", {}),)).replace("-m waits", f"-m waits {tmp_path}")
    (tmp_path / "MLproject").write_text(project.replace("    parameters:\n", ""))
    (tmp_path / "conda.yaml").write_text("name: waits\n")
    mlflow = [sys.executable, "-m", "mlflow", "run", ".", "--env-manager", "local"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "PATH": path}
    launcher = subprocess.Popen(mlflow, cwd=tmp_path, env=environment)
    _until(tmp_path / "ready")
    launcher.terminate()
    launcher.wait(20)
    _until(tmp_path / "stopped", seconds=10)
