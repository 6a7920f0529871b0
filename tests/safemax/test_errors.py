"""An error is followed to its causes, and a disk that fails is told from a fault of ours."""

from __future__ import annotations

import errno

import pytest

from safemax.errors import chain, disk_failure


def test_causes_that_run_in_a_circle_are_each_met_once() -> None:
    first, second = OSError("first"), ValueError("second")
    first.__context__, second.__cause__ = second, first
    assert list(chain(first)) == [first, second]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full ("),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full ("),
        (PermissionError(errno.EACCES, "Permission denied", "/cache"), "/cache cannot be written: Permission denied"),
    ],
)
def test_a_disk_that_fails_is_said_in_one_line(error: Exception, line: str) -> None:
    said = disk_failure(error)
    assert said is not None
    assert said.startswith(line)
    assert "\n" not in said


def test_a_full_disk_behind_another_error_is_found() -> None:
    error = RuntimeError("the weights were not written")
    error.__cause__ = OSError(errno.EDQUOT, "Disk quota exceeded")
    assert str(disk_failure(error)).startswith("the disk is full")


@pytest.mark.parametrize("error", [ValueError("lr"), FileNotFoundError(errno.ENOENT, "No such file", "a")])
def test_another_error_is_none_of_the_disk(error: Exception) -> None:
    assert disk_failure(error) is None
