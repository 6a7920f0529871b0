"""The panel as torchmetrics' metrics against the numbers that were recorded of it before it streamed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from safemax import metrics
from safemax.metrics.measurement import JudgedImages
from tests.support import made_up_measurements, rank_program, ranks

RECORDED = json.loads((Path(__file__).parent / "recorded.json").read_text())


def cut(size: int) -> Iterator[JudgedImages]:
    for draw in made_up_measurements.draws():
        yield from (draw[begin : begin + size] for begin in range(0, len(draw), size))


def measured(size: int) -> dict[str, float]:
    panel = metrics.panel(made_up_measurements.setting())
    for batch in cut(size):
        panel.update(batch)
    return panel.compute()


@pytest.mark.parametrize("size", [7, 500])
def test_the_panel_gives_the_recorded_numbers_whatever_the_batch(size: int) -> None:
    found = measured(size)
    assert found.keys() == RECORDED.keys()
    assert {
        key: value for key, value in found.items() if value != pytest.approx(RECORDED[key], rel=1e-6, abs=1e-9)
    } == {}


def test_two_processes_with_a_part_of_the_batches_each_give_the_recorded_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path))
    for found in ranks.answers(rank_program.measure, tmp_path):
        assert found == pytest.approx(RECORDED, rel=1e-6, abs=1e-9)
