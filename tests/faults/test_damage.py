"""Whatever happened to a file or tag that the product reads: it is read as it was, or refused in one line, soon, in little memory.

SAFEMAX_FAULTS_SEED chooses other damage, SAFEMAX_FAULTS_CASES how much of it for each kind of input.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import resource
import shutil
import signal
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli.parser import _status
from tests.faults.damage import restore
from tests.faults.processes import in_child
from tests.faults.readers import READERS, Reader

SEED = int(os.environ.get("SAFEMAX_FAULTS_SEED", "0"))
CASES = int(os.environ.get("SAFEMAX_FAULTS_CASES", "20"))
SECONDS = 20  # of the processor, a case
GIGABYTES = 1.5  # of address space, beyond what the process has at its start


@pytest.mark.parametrize("name", READERS)
def test_damage_is_refused_in_one_line(name: str, schema: Path, tmp_path: Path) -> None:
    print(f"\n{name}: seed {SEED}, {CASES} cases")
    (tmp_path / "now").mkdir()
    shutil.copy(schema, tmp_path / "now" / "mlflow.db")
    swept = in_child(tmp_path / "now", partial(_sweep, READERS[name]))
    assert swept.status == 0, f"case {swept.text.splitlines()[-1:]} ended the process: {swept.status}"
    assert not swept.result, "\n".join([f"{len(swept.result)} of {CASES}", *swept.result])


def _sweep(reader: Reader) -> list[str]:
    """Damage an input in CASES ways and return what was neither read as before nor refused in one line."""
    reader.make()
    here, whole = Path.cwd(), Path.cwd().with_name("whole")
    shutil.copytree(here, whole, ignore=shutil.ignore_patterns("out"))
    before = reader.read()
    _limit_memory()
    fell = []
    for case in range(CASES):
        print(case, flush=True)
        chance = random.Random(f"{SEED} {case}")
        undo = reader.spoil(chance)
        fell += [f"case {case}: {line}" for line in _faults(reader, before)]
        _restore(whole, here) if undo is None else undo()
    return fell


def _restore(whole: Path, here: Path) -> None:
    restore(here / "input", whole / "input")


def _faults(reader: Reader, before: Any) -> list[str]:
    answers: list[Any] = []
    printed = io.StringIO()
    try:
        with _deadline(), contextlib.redirect_stderr(printed):
            status = _status(lambda _: answers.append(reader.read()), [])
    except BaseException as error:
        return [f"{type(error).__name__}: {str(error)[:200]} {_where(error)}"]
    if status not in (0, 1, 2):
        return [f"status {status}"]
    if status and not printed.getvalue().rstrip().splitlines()[-1].startswith("error: "):
        return [f"no line: {printed.getvalue()[-200:]}"]
    if reader.guarded and answers and answers[0] not in (None, before):
        return ["it was read as something else"]
    return []


def _where(error: BaseException) -> str:
    last = [
        each
        for each in traceback.extract_tb(error.__traceback__)
        if "/wt/" in each.filename or "/safemax/" in each.filename
    ]
    return f"at {Path(last[-1].filename).name}:{last[-1].lineno}" if last else ""


@contextlib.contextmanager
def _deadline() -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError(f"it takes more than {SECONDS} seconds of the processor")

    signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + int(GIGABYTES * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
