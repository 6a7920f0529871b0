"""MLflow servers as a team runs them, which tests start, kill and start again; PostgreSQL without an installation."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import requests


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Server:
    """`mlflow server` on a port of its own."""

    def __init__(self, folder: Path, words: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> None:
        self.folder, self.port = folder, free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self._words = [f"--artifacts-destination={folder / 'artifacts'}", "--workers=1", *words]
        self._words += ["--host=127.0.0.1", f"--port={self.port}"]  # the last of two counts
        self._environment = {"MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder / 'server.db'}", **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Server:
        """Start the server and wait until it answers."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        environment = {**inherited, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **self._environment}
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *self._words],
                env=environment, cwd=self.folder, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        for _ in range(240):
            with contextlib.suppress(requests.ConnectionError):
                if requests.get(f"{self.address}/health", timeout=60).ok:
                    return self
            assert self._process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
            time.sleep(0.5)
        raise AssertionError("the server does not answer")

    def kill(self) -> None:
        """Kill it, as the machine's memory or an operator might."""
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def postgres() -> str:
    """Return the address of a new PostgreSQL database, which ends with this process; skip where there is no pgserver.

    Not below pytest's folder: root runs PostgreSQL as another user, and each pytest that starts closes that folder to others.
    """
    pgserver = pytest.importorskip("pgserver", reason="needs PostgreSQL: pip install pgserver")
    pytest.importorskip("psycopg", reason="needs PostgreSQL's client: pip install 'psycopg[binary]'")
    folder = Path(tempfile.mkdtemp(prefix="safemax-postgres-"))
    place = pgserver.get_server(folder, cleanup_mode="delete").get_uri().partition("?host=")[2]
    return f"postgresql+psycopg://postgres:@/postgres?host={place}"
