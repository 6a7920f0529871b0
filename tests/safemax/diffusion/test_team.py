"""Two processes that draw together over gloo: the leader, or all of them, get what one process alone draws."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import rank_program, ranks


@pytest.mark.parametrize("together", [False, True])
def test_two_processes_draw_what_one_draws(tmp_path: Path, together: bool) -> None:
    alone = rank_program.draws()
    first, second = ranks.answers(rank_program.draw, tmp_path, together=together)
    assert len(first) == len(alone) == 4
    for mine, theirs in zip(alone, first, strict=True):
        assert theirs == pytest.approx(mine, abs=1e-5)
    assert second == (first if together else [])
