"""Metrics on disk survive the process, and a step that was done twice counts once."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric

from pipelines import tracking
from pipelines.tracking.metric_journal import MetricJournal
from safemax import metric_keys as keys
from safemax.errors import Stopped


def facts(metrics: list[Metric]) -> list[tuple[str, float, int]]:
    return [(each.key, each.value, each.step) for each in metrics]


def test_what_was_appended_is_read_in_the_order_of_the_steps_the_last_of_two(tmp_path: Path) -> None:
    spool = MetricJournal(tmp_path / "job")
    assert spool.read() == []
    spool.append([Metric("loss/a", 1.0, 5, 10), Metric("loss/b", 2.0, 5, 10)])
    spool.append([Metric("loss/a", 0.5, 6, 20)])
    spool.append([Metric("loss/a", 0.9, 7, 10)])
    assert facts(MetricJournal(tmp_path / "job").read()) == [
        ("loss/a", 0.9, 10),
        ("loss/b", 2.0, 10),
        ("loss/a", 0.5, 20),
    ]


def test_a_line_that_a_kill_tore_is_passed_over_and_spoils_no_other(tmp_path: Path) -> None:
    spool = MetricJournal(tmp_path)
    spool.append([Metric("loss/a", 1.0, 5, 10), Metric("loss/a", 2.0, 5, 20)])
    whole = spool.path.read_bytes()
    second = whole.index(b"\n") + 1
    for length in range(second, len(whole)):
        spool.path.write_bytes(whole[:length])
        again = MetricJournal(tmp_path)
        again.append([Metric("loss/a", 3.0, 5, 30)])
        # Without its line break alone, the torn line is whole.
        kept = [("loss/a", 2.0, 20)] if length == len(whole) - 1 else []
        assert facts(again.read()) == [("loss/a", 1.0, 10), *kept, ("loss/a", 3.0, 30)]


@pytest.mark.parametrize(
    "damage",
    [
        *("5", "null", '"text"', "{}", "[]", "[1, 2, 3, 4]", '["loss/a", "x", 5, 10]', '["loss/a", 1.0, 5, "10"]'),
        *('["loss/a", 1.0, 5, 1e300]', '["loss/a", true, 5, 10]', '["loss/a", null, 5, 10]', "[" * 9999, "\0\0"),
        *(
            '["a", 1.0, 5]',
            '["loss/a", 1.0, 5, 99999999999999999999]',
            '[["a"], 1.0, 5, 10]',
            '{"a":1,"b":2,"c":3,"d":4}',
        ),
    ],
)
def test_a_damaged_line_is_passed_over(tmp_path: Path, damage: str) -> None:
    journal = MetricJournal(tmp_path)
    journal.append([Metric("loss/a", 1.0, 5, 10)])
    with journal.path.open("a") as file:
        file.write(f"{damage}\n")
    journal.append([Metric("loss/a", 2.0, 5, 20)])
    assert facts(MetricJournal(tmp_path).read()) == [("loss/a", 1.0, 10), ("loss/a", 2.0, 20)]


def test_numbers_that_are_not_finite_come_back(tmp_path: Path) -> None:
    spool = MetricJournal(tmp_path)
    spool.append([Metric("loss/a", float("inf"), 5, 1), Metric("loss/b", float("nan"), 5, 1)])
    values = [each.value for each in spool.read()]
    assert values[0] == float("inf")
    assert values[1] != values[1]


def test_a_run_that_goes_on_from_a_killed_one_has_the_metrics_of_both_each_step_once(
    mlflow_store: MlflowClient, tmp_path: Path
) -> None:
    first = tracking.Run(mlflow_store, mlflow_store.create_run("0").info.run_id, "0")
    first.start_journal(tmp_path / "job")
    for step in (10, 20, 30):  # its process dies here, before it told the store anything; the checkpoint is of step 20
        first.log({"loss/a": float(step)}, step)
    with tracking.run("job", experiment="tiny-ddpm", params={}, tags={}) as second:
        second.start_journal(tmp_path / "job")
        for step in (30, 40):
            second.log({"loss/a": float(step)}, step)
        second.log({keys.UA: 99.0})
    history = mlflow_store.get_metric_history(second.id, "loss/a")
    assert [(each.step, each.value) for each in history] == [(10, 10.0), (20, 20.0), (30, 30.0), (40, 40.0)]
    assert mlflow_store.get_metric_history(first.id, "loss/a") == []


def test_a_run_that_goes_on_after_the_last_step_has_all_of_them(mlflow_store: MlflowClient, tmp_path: Path) -> None:
    MetricJournal(tmp_path).append([Metric("loss/a", 1.0, 5, 10), Metric("loss/a", 2.0, 5, 20)])
    with tracking.run("job", experiment="tiny-ddpm", params={}, tags={}) as run:
        run.start_journal(tmp_path)
        run.log({keys.UA: 99.0})
        run.delete_journal()
    assert [each.step for each in mlflow_store.get_metric_history(run.id, "loss/a")] == [10, 20]
    assert list(tmp_path.glob("*.jsonl")) == []


def test_a_run_that_is_stopped_keeps_the_file(mlflow_store: MlflowClient, tmp_path: Path) -> None:
    def job() -> None:
        with tracking.run("job", experiment="tiny-ddpm", params={}, tags={}) as run:
            run.start_journal(tmp_path)
            run.log({"loss/a": 1.0}, 10)
            raise Stopped

    with pytest.raises(Stopped):
        job()
    assert facts(MetricJournal(tmp_path).read()) == [("loss/a", 1.0, 10)]
