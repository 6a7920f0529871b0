"""Attacks get a classifier that shares no network with the judges that decide."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from safemax.judges.attack_helper import attack_helper, shares_network
from safemax.judges.config import JudgeConfig
from safemax.judges.load import judges
from tests.support import tiny_models


def test_heads_on_the_plain_judge_give_attacks_another_one_and_an_ensemble_of_its_own_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path))
    data = tiny_models.dataset()
    shared = JudgeConfig(reject_judge="none_head", reject_judges=1, judge_steps=2)
    judge_set = judges(data, shared, progress=False)
    assert shares_network(judge_set.plain, judge_set.reject)
    helper = attack_helper(data, shared, judge_set, progress=False)
    assert not shares_network(helper, judge_set.reject)
    assert not torch.equal(helper.network.linear.weight, judge_set.plain.network.linear.weight)
    own = JudgeConfig(reject_judges=1, judge_steps=2)
    judge_set = judges(data, own, progress=False)
    assert attack_helper(data, own, judge_set, progress=False) is judge_set.plain
