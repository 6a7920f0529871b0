"""A worker on Ray: an actor that does jobs in a thread of its own, and is asked for its messages.

The driver owns what is done and what is known: an actor is never restarted and no call of it is repeated. Only JSON text crosses.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import sys
import tempfile
import threading
import traceback
from importlib import import_module
from pathlib import Path

import torch

from pipelines.engine import notes
from pipelines.engine.signals import StopSignal
from pipelines.engine.source_tree import tree_digest
from pipelines.engine.worker import REPORT, Load, Message, WorkerContext, attempt
from safemax.errors import InputError, Stopped

_LONGEST_LOG = 1 << 16  # bytes of what a job printed


class RayWorker:
    """What `ray.remote` makes an actor of.

    Args:
        start: JSON: load (MODULE:FUNCTION), config, folder (the driver's), threads, code (its digest), marker (a file that
            shows whether the cache is the driver's; "" where it must be).
    """

    def __init__(self, start: str) -> None:
        self._start: Message = json.loads(start)
        self._to_driver: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._from_driver: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._stop = StopSignal()
        self._log = _captured_output()
        threading.Thread(target=self._work, daemon=True).start()

    def messages(self, seconds: float) -> str:
        """Return the messages since the last call, at once if there are any, else when the first one comes or time is up."""
        messages: list[Message] = []
        with contextlib.suppress(queue.Empty):
            messages.append(self._to_driver.get(timeout=seconds))
            while True:
                messages.append(self._to_driver.get_nowait())
        return json.dumps(messages)

    def give(self, message: str) -> None:
        """Give a job, or the answer to a report."""
        self._from_driver.put(json.loads(message))

    def stop(self) -> None:
        """Stop after this step, with a checkpoint."""
        self._stop.request()
        self._from_driver.put({"kind": "stop"})

    def _work(self) -> None:
        try:
            context = self._load()
            while (job := self._from_driver.get()).get("kind") != "stop":
                began = self._log_size()
                message = attempt(context, job, self._send)
                self._to_driver.put({**message, "log": self._logged_since(began)})
        except InputError as error:
            self._to_driver.put({"kind": "refused", "reason": str(error)})
        except Stopped:
            pass
        except BaseException as error:
            traceback.print_exc()
            self._to_driver.put({"kind": "broken", "reason": f"{type(error).__name__}: {error}"})
        self._to_driver.put({"kind": "stopped"})

    def _load(self) -> WorkerContext:
        start = self._start
        notes.show_as_lines()
        torch.set_num_threads(start["threads"])
        self._validate()
        module, _, name = start["load"].partition(":")
        load: Load = getattr(import_module(module), name)
        with self._stop.interruptible():
            context = load(start["config"], self._stop)
        self._to_driver.put({"kind": "ready", "worker": self._name(), **context.greeting})
        return context

    def _validate(self) -> None:
        start, host = self._start, socket.gethostname()
        if tree_digest() != start["code"]:
            raise InputError(f"{host} has other code or another torch than the driver; install the same version there")
        if start["marker"] and not Path(start["marker"]).exists():
            raise InputError(
                f"{Path(start['marker']).parent} on {host} is not the driver's; SAFEMAX_CACHE must be a folder that all "
                "machines share, under one path"
            )
        with contextlib.suppress(OSError):  # paths of the command line may be relative
            os.chdir(start["folder"])

    def _send(self, message: Message) -> bool:
        self._to_driver.put(message)
        if message["kind"] != REPORT:
            return False
        answer = self._from_driver.get()
        if answer.get("kind") == "stop":
            raise Stopped
        return bool(answer["answer"])

    def _name(self) -> str:
        gpu = f", GPU {os.environ['CUDA_VISIBLE_DEVICES']}" if torch.cuda.is_available() else ""
        return f"worker {os.getpid()} on {socket.gethostname()}{gpu}"

    def _log_size(self) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        return os.fstat(self._log).st_size

    def _logged_since(self, began: int) -> str:
        size = self._log_size()
        first = max(began, size - _LONGEST_LOG)
        return os.pread(self._log, size - first, first).decode(errors="replace")


def _captured_output() -> int:
    """Send what this process prints from now on to a file without a name, and return its descriptor."""
    with tempfile.TemporaryFile(buffering=0) as file:
        kept = os.dup(file.fileno())
    os.set_blocking(kept, True)
    for stream in (1, 2):
        os.dup2(kept, stream)
    return kept
