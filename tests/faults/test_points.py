"""An operation that is broken off at any point leaves the old state or the new one, and the same command finishes it."""

from __future__ import annotations

import os
import random
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipelines import tracking
from tests.faults.operations import OPERATIONS, QUICK, Operation, settle, whole
from tests.faults.points import Failure, Points
from tests.faults.processes import Ending, in_child, warm

SEED = int(os.environ.get("SAFEMAX_FAULTS_SEED", "0"))
SHARE = 10  # the fast suite runs one case in so many
# What fell before it was mended, by operation: the fast suite runs these too.
MENDED = {
    "reap": [("tracking.create_run", Failure.KILLED_AFTER), ("tracking.update_run_info", Failure.KILLED_AFTER)],
}


class Bench:
    """A folder that is brought back to the state before an operation as often as needed."""

    def __init__(self, folder: Path, schema: Path, operation: Operation) -> None:
        self.folder, self.start, self.operation = folder / "now", folder / "before", operation
        self.folder.mkdir(parents=True)
        shutil.copy(schema, self.folder / "mlflow.db")
        made = in_child(self.folder, partial(_prepare, operation))
        assert made.status == 0, made.text
        self.folder.rename(self.start)

    def points(self) -> list[str]:
        """Return the points that the operation passes if none fails."""
        counted = self._broken_off(Points())
        assert counted.result["status"] == 0, counted.text
        return list(counted.result["passed"])

    def faults(self, fatal: int, failure: Failure) -> list[str]:
        """Let one point fail and return what went wrong then, a line each."""
        broken = self._broken_off(Points(fatal, failure))
        lines = _of_ending(broken, failure)
        after = in_child(self.folder, partial(_look_and_repeat, self.operation))
        return lines + (after.result if after.status == 0 else [f"what it left is not whole: {after.text}"])

    def mended(self) -> list[tuple[int, Failure]]:
        """Return the cases that fell before they were mended."""
        names = self.points()
        cases = [
            (label, kind) for of, each in MENDED.items() if OPERATIONS[of] is self.operation for label, kind in each
        ]
        return [(k, kind) for label, kind in cases for k, name in enumerate(names) if name == label]

    def _broken_off(self, points: Points) -> Ending:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.start, self.folder)
        return in_child(self.folder, partial(_act, self.operation, points))


def _prepare(operation: Operation) -> None:
    operation.prepare(tracking.store())


def _act(operation: Operation, points: Points) -> dict[str, Any]:
    points.install()
    return {"status": operation.run(), "passed": points.passed}


def _look_and_repeat(operation: Operation) -> list[str]:
    client = tracking.store()
    lines, was_done = whole(client), operation.is_done(client)
    status = operation.run()
    lines += [] if was_done or status == 0 else [f"the same command ends with status {status}"]
    lines += [] if operation.is_done(client) else ["the same command does not bring the new state"]
    return lines + settle(client) + whole(client)


def _of_ending(broken: Ending, failure: Failure) -> list[str]:
    if failure in (Failure.KILLED_BEFORE, Failure.KILLED_AFTER):
        return [] if broken.status == -9 else [f"it was not killed: {broken.status} {broken.text}"]
    if broken.status != 0:
        return [f"it ends in a traceback: {broken.text.strip().splitlines()[-1]}"]
    return []


def _cases(bench: Bench) -> list[tuple[int, Failure]]:
    """Return every point with every failure; the two errors of a store take turns."""
    errors = [Failure.REFUSED, Failure.UNREACHABLE]
    kinds = [Failure.FULL, Failure.KILLED_BEFORE, Failure.KILLED_AFTER]
    return [(k, kind) for k in range(len(bench.points())) for kind in (errors[(k + SEED) % 2], *kinds)]


def _assert_whole(bench: Bench, cases: list[tuple[int, Failure]]) -> None:
    names = bench.points()
    fell = []
    for k, kind in cases:
        lines = [f"point {k} ({names[k]}), {kind}: {line}" for line in bench.faults(k, kind)]
        print(f"{k} {names[k]}, {kind}: {lines or 'whole'}", flush=True)
        fell += lines
    print(f"\nseed {SEED}: {len(names)} points, {len(cases)} failures of them, {len(fell)} lines of what fell")
    assert not fell, "\n".join(fell)


@pytest.fixture
def bench(schema: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Bench:
    warm()
    return Bench(tmp_path, schema, OPERATIONS[request.param])


@pytest.mark.parametrize("bench", QUICK, indirect=True)
def test_a_seeded_tenth_of_all_points_of_failure(bench: Bench) -> None:
    cases = _cases(bench)
    _assert_whole(bench, random.Random(SEED).sample(cases, len(cases) // SHARE) + bench.mended())


@pytest.mark.slow
@pytest.mark.parametrize("bench", OPERATIONS, indirect=True)
def test_every_point_of_failure(bench: Bench) -> None:
    _assert_whole(bench, _cases(bench))
