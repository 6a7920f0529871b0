"""Two processes that judge together over gloo say what one says, and the judges cross once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import rank_program, ranks


def test_two_processes_judge_and_measure_as_one_does(tmp_path: Path) -> None:
    alone = rank_program.judged()
    first, second = ranks.answers(rank_program.judge, tmp_path)
    assert len(first["found"]) == len(alone["found"]) == 14
    for mine, theirs in zip(alone["found"], first["found"], strict=True):
        assert theirs == pytest.approx(mine, abs=1e-6, rel=1e-6)
    assert first["metrics"].keys() == alone["metrics"].keys()
    assert first["metrics"] == pytest.approx(alone["metrics"], abs=1e-6, rel=1e-6, nan_ok=True)
    # judges cross with the first images alone: plain, an ensemble of two; CLIP twice; those of the metrics
    assert second["files"] == [7, 0, 4, 4, 0]
