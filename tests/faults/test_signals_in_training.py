"""A signal in the middle of a training, sent to its process: the run ends KILLED, the checkpoint stays, the status says which."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from pipelines import tracking
from pipelines.cli.parser import _status
from pipelines.engine import signals
from pipelines.unlearn import unlearn
from tests.faults.long_operations import prepare_base
from tests.faults.processes import in_child, warm
from tests.support.registered_versions import NAME

_TRAINING = [
    *("--data=data", f"--model=models:/{NAME}/1", f"--name={NAME}", "--forget=a", "--steps=1000000", "--batch-size=8"),
    *("--checkpoint-every=1", "--previews=0", "--device=cpu", "--judge-steps=5", "--reject-judges=1"),
]


@pytest.fixture(scope="module")
def start(schema: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder whose store has a base."""
    warm()
    folder = tmp_path_factory.mktemp("signals") / "now"
    folder.mkdir()
    shutil.copy(schema, folder / "mlflow.db")
    made = in_child(folder, lambda: prepare_base(tracking.store()))
    assert made.status == 0, made.text
    return folder.rename(folder.with_name("before"))


@pytest.mark.parametrize(
    ("signum", "status"),
    [(signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGTERM, 143)],
    ids=lambda each: str(each),
)
def test_a_signal_in_a_training_leaves_a_killed_run_and_its_checkpoint(
    start: Path, signum: signal.Signals, status: int
) -> None:
    folder = start.with_name("now")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(start, folder)
    sender = threading.Thread(target=_send_in_training, args=(folder, signum))
    sender.start()
    trained = in_child(folder, _train)
    sender.join()
    assert trained.result == status, trained.text
    assert "error" not in trained.text
    assert in_child(folder, _statuses).result == ["KILLED"]
    assert list((folder / "cache" / "checkpoints").rglob("step-*.safetensors"))


def _train() -> int:
    for each in (signal.SIGHUP, signal.SIGINT):  # who started the tests in the background had them ignored
        signal.signal(each, signal.SIG_DFL)
    signals._First.signum = None  # nor what earlier tests of this process were sent
    (Path.cwd() / "pid").write_text(str(os.getpid()))
    signals.end_on_signals()
    return _status(unlearn, _TRAINING)


def _statuses() -> list[str]:
    return [each.info.status for each in tracking.store().search_runs(["1"])]


def _send_in_training(folder: Path, signum: signal.Signals) -> None:
    """Send a signal to the process as soon as it has written a checkpoint."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if list((folder / "cache" / "checkpoints").rglob("step-*.safetensors")):
            os.kill(int((folder / "pid").read_text()), signum)
            return
        time.sleep(0.02)
