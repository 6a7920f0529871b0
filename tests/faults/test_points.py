"""An operation that is broken off at any point leaves the old state or the new one, and the same command finishes it.

SAFEMAX_FAULTS_SEED chooses other cases. SAFEMAX_FAULTS_HELD is a folder where the whole sweep writes down each case that held:
the same command goes on where it was broken off.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pytest

from pipelines import tracking
from pipelines.tracking import runs
from tests.faults.long_operations import LONG
from tests.faults.operations import SHORT, Operation, settle, whole
from tests.faults.points import Failure, Points
from tests.faults.processes import Ending, in_child, warm

SEED = int(os.environ.get("SAFEMAX_FAULTS_SEED", "0"))
HELD = os.environ.get("SAFEMAX_FAULTS_HELD", "")
OPERATIONS = {**SHORT, **LONG}
QUICK = ("register", "promote", "roll back", "attach", "reap")  # the fast suite runs a tenth of the cases of each
SHARE = 10
FEWEST = 40  # points that each of the long operations has at least; the fast suite runs one of them
# What fell before it was mended, by operation, with the point's first occurrence: the fast suite runs these too.
MENDED = {
    "reap": [("tracking.create_run", Failure.KILLED_AFTER), ("tracking.update_run_info", Failure.KILLED_AFTER)],
    "search": [
        ("tracking.set_tag", Failure.KILLED_AFTER),
        ("file.replace", Failure.FULL),  # of a trial's weights
        ("tracking.update_run_info", Failure.FULL),  # the end of a trial's run, behind its result
    ],
    "correct": [("model_registry.create_model_version", Failure.KILLED_AFTER)],
}


@dataclass(frozen=True)
class Case:
    """A point, by its number or by the name of its first occurrence, and how it fails."""

    point: int | str
    failure: Failure

    def __str__(self) -> str:
        return f"{self.point} {self.failure}"


class Bench:
    """A folder that is brought back to the state before an operation as often as needed."""

    def __init__(self, folder: Path, schema: Path, name: str) -> None:
        self.name, self.operation = name, OPERATIONS[name]
        self.folder, self.start = folder / "now", folder / "before"
        self.folder.mkdir(parents=True)
        shutil.copy(schema, self.folder / "mlflow.db")
        made = in_child(self.folder, partial(_prepare, self.operation))
        assert made.status == 0, made.text
        self.folder.rename(self.start)

    @cached_property
    def points(self) -> list[str]:
        """The points that the operation passes if none fails."""
        counted = self._broken_off(Points())
        assert counted.result["status"] == 0, counted.text
        return list(counted.result["passed"])

    def cases(self) -> list[Case]:
        """Return every point with every failure; the two errors of a store take turns."""
        errors = [Failure.REFUSED, Failure.UNREACHABLE]
        kinds = [Failure.FULL, Failure.KILLED_BEFORE, Failure.KILLED_AFTER]
        return [Case(k, kind) for k in range(len(self.points)) for kind in (errors[(k + SEED) % 2], *kinds)]

    def mended(self) -> list[Case]:
        """Return the cases that fell before they were mended."""
        return [Case(*each) for each in MENDED.get(self.name, ())]

    def faults(self, case: Case) -> list[str]:
        """Let one point fail and return what went wrong then, a line each."""
        broken = self._broken_off(Points(case.point, case.failure))
        lines = _of_ending(broken, case.failure)
        after = in_child(self.folder, partial(_look_and_repeat, self.operation))
        return lines + (after.result if after.status == 0 else [f"what it left is not whole: {after.text}"])

    def _broken_off(self, points: Points) -> Ending:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.start, self.folder)
        return in_child(self.folder, partial(_act, self.operation, points))


def _prepare(operation: Operation) -> None:
    operation.prepare(tracking.store())


def _act(operation: Operation, points: Points) -> dict[str, Any]:
    runs.FLUSH_SECONDS = 0  # else the speed of the machine decides how often metrics are sent
    points.install()
    return {"status": operation.run(), "passed": points.passed}


def _look_and_repeat(operation: Operation) -> list[str]:
    client = tracking.store()
    lines, was_done = whole(client), operation.is_done(client)
    status = 0 if was_done and operation.is_new_each_time else operation.run()
    lines += [] if was_done or status == 0 else [f"the same command ends with status {status}"]
    lines += [] if operation.is_done(client) else ["the same command does not bring the new state"]
    return lines + settle(client) + whole(client)


def _of_ending(broken: Ending, failure: Failure) -> list[str]:
    if failure in (Failure.KILLED_BEFORE, Failure.KILLED_AFTER):
        return [] if broken.status == -9 else [f"it was not killed: {broken.status} {broken.text}"]
    if broken.status != 0:
        return [f"it ends in a traceback: {broken.text.strip().splitlines()[-1]}"]
    return []


def _assert_whole(bench: Bench, cases: list[Case], held: Path | None = None) -> None:
    """Run the cases, but for those that a file says have held, and add to it those that hold."""
    known = held.read_text().splitlines() if held and held.exists() else []
    fell = []
    for case in (each for each in cases if str(each) not in known):
        lines = [f"{bench.name}, point {case}: {line}" for line in bench.faults(case)]
        print(f"{bench.name}, point {case}: {lines or 'whole'}", flush=True)
        fell += lines
        if held and not lines:
            with held.open("a") as file:
                file.write(f"{case}\n")
    assert not fell, "\n".join(fell)


@pytest.fixture
def bench(schema: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Bench:
    warm()
    return Bench(tmp_path, schema, request.param)


class _Store:
    """Answers a write with an error, as a registry does that has the model already."""

    def create(self) -> None:
        raise ValueError("exists")


def _create_what_exists(failure: Failure) -> None:
    points = Points(0, failure)
    points._wrap(_Store, "create", "store.create")
    with contextlib.suppress(ValueError):
        _Store().create()


@pytest.mark.parametrize("failure", [Failure.KILLED_BEFORE, Failure.KILLED_AFTER])
def test_a_point_whose_call_is_answered_with_an_error_kills_too(tmp_path: Path, schema: Path, failure: Failure) -> None:
    shutil.copy(schema, tmp_path / "mlflow.db")
    assert in_child(tmp_path, partial(_create_what_exists, failure)).status == -9


@pytest.mark.parametrize("bench", QUICK, indirect=True)
def test_a_seeded_tenth_of_all_points_of_failure(bench: Bench) -> None:
    cases = bench.cases()
    _assert_whole(bench, random.Random(SEED).sample(cases, len(cases) // SHARE) + bench.mended())


@pytest.mark.parametrize("bench", LONG, indirect=True)
def test_a_seeded_point_of_failure_of_what_takes_long(bench: Bench) -> None:
    point = random.Random(f"{SEED} {bench.name}").randrange(FEWEST)
    _assert_whole(bench, bench.mended() or [Case(point, Failure.KILLED_AFTER)])


@pytest.mark.slow
@pytest.mark.parametrize("bench", OPERATIONS, indirect=True)
def test_every_point_of_failure(bench: Bench) -> None:
    cases = bench.cases()
    print(f"\n| {bench.name} | {len(bench.points)} | {len(cases)} |", flush=True)  # a row of docs/faults.md
    if HELD:
        Path(HELD).mkdir(parents=True, exist_ok=True)
    _assert_whole(bench, cases, Path(HELD) / f"{bench.name}.txt" if HELD else None)
