"""Two processes train a gold model together, and get what one gets; only the leader keeps it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import gold_program, ranks


def test_two_processes_train_the_gold_model_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path / "alone"))
    alone = gold_program.trained()
    first, second = ranks.answers(gold_program.train, tmp_path)
    assert second == []
    assert first == pytest.approx(alone, abs=1e-4)
