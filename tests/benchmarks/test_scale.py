"""The simulation of many GPUs does what can be calculated by hand."""

from __future__ import annotations

import pytest

from benchmarks.scale import ScaleOptions, Workload, rows_of

FREE = ScaleOptions(load_seconds=0, driver_seconds=0)


def test_equal_jobs_take_as_many_rounds_as_there_are() -> None:
    work = Workload("ten jobs", ([3600.0] * 10,))
    assert [work.hours(n, FREE) for n in (1, 4, 10, 20)] == [10, 3, 1, 1]


def test_stages_wait_for_each_other_and_workers_load() -> None:
    work = Workload("two stages", ([3600.0], [3600.0] * 2))
    assert work.hours(2, FREE) == 2
    assert work.hours(2, ScaleOptions(load_seconds=1800, driver_seconds=0)) == 3


def test_the_driver_serves_one_job_at_a_time() -> None:
    work = Workload("short jobs", ([36.0] * 100,))
    assert work.hours(100, ScaleOptions(load_seconds=0, driver_seconds=36)) == pytest.approx((36 + 100 * 36) / 3600)


def test_more_gpus_never_take_longer_and_the_work_is_the_same() -> None:
    for row in rows_of(ScaleOptions()):
        hours = [float(str(row[f"hours on {n}"])) for n in (1, 8, 64, 512)]
        assert hours == sorted(hours, reverse=True)
        assert hours[0] >= float(str(row["GPU-hours"]))
