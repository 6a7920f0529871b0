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
from pipelines.engine.relay import Relay, path_below
from pipelines.engine.signals import StopSignal
from pipelines.engine.source_tree import tree_digest
from pipelines.engine.worker import REPORT, Load, Message, WorkerContext, attempt
from safemax.errors import InputError, Stopped
from safemax.storage import cache

_LONGEST_LOG = 1 << 16  # bytes of what a job printed


class RayWorker:
    """What `ray.remote` makes an actor of.

    Args:
        start: JSON: load (MODULE:FUNCTION), config, folder (the driver's), threads, code (its digest), cache (the driver's),
            marker (a file that shows whether this machine sees that cache; "" where it must).
    """

    def __init__(self, start: str) -> None:
        self._start: Message = json.loads(start)
        self._to_driver: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._from_driver: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._stop = StopSignal()
        self._relay: Relay | None = None
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

    def bring(self, digests: str, *contents: bytes) -> None:
        """Give files of the driver's cache, with their digests by name in the same order; none say that its own are kept."""
        named = json.loads(digests)
        self._from_driver.put({"digests": named, "contents": dict(zip(named, contents, strict=True))})

    def read(self, name: str) -> bytes | None:
        """Return the bytes of a file of this machine's cache, None where it has just been thrown away."""
        try:
            return path_below(cache.root(), name).read_bytes()
        except FileNotFoundError:
            return None

    def stop(self) -> None:
        """Stop after this step, with a checkpoint."""
        self._stop.request()
        self._from_driver.put({"kind": "stop"})

    def _work(self) -> None:
        try:
            context = self._load()
            while (job := self._from_driver.get()).get("kind") != "stop":
                began = self._log_size()
                message = attempt(context, self._relay.moved(job) if self._relay else job, self._send)
                self._give_back()
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
        config = self._relay.moved(start["config"]) if self._relay else start["config"]
        with self._stop.interruptible():
            context = load(config, self._stop)
        self._give_back()
        self._to_driver.put({"kind": "ready", "worker": self._name(), **context.greeting})
        return context

    def _validate(self) -> None:
        start, host = self._start, socket.gethostname()
        if tree_digest() != start["code"]:
            raise InputError(
                f"{host} has different code or another version of torch than the driver; install the driver's there"
            )
        with contextlib.suppress(OSError):  # paths of the command line may be relative
            os.chdir(start["folder"])
        if start["marker"]:
            self._choose_cache(Path(start["marker"]), Path(start["cache"]))

    def _choose_cache(self, marker: Path, drivers: Path) -> None:
        """Use the driver's cache where this machine sees it and has no other; else its own, and exchange files."""
        own = Path(os.environ.get("SAFEMAX_CACHE") or drivers).absolute()
        is_shared = marker.exists() and (own / marker.relative_to(drivers)).exists()
        os.environ["SAFEMAX_CACHE"] = str(drivers if is_shared else own)
        if not is_shared:
            self._relay = Relay(own, drivers, self._ask)

    def _give_back(self) -> None:
        if self._relay:
            self._relay.give_back()

    def _send(self, message: Message) -> bool:
        if message["kind"] != REPORT:
            self._to_driver.put(message)
            return False
        return bool(self._ask(message)["answer"])

    def _ask(self, message: Message) -> Message:
        self._to_driver.put(message)
        answer = self._from_driver.get()
        if answer.get("kind") == "stop":
            raise Stopped
        return answer

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
