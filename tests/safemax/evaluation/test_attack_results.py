from __future__ import annotations

import math

import pytest
import torch

from safemax import metric_keys as keys
from safemax.attacks.base import AttackResult, Cell
from safemax.attacks.relearn import Relearn
from safemax.attacks.weights import Weights
from safemax.evaluation import metric_info
from safemax.evaluation.attack_results import AttackComparison, attack_metrics, attack_table, cached_attack
from safemax.reports.attack_figures import attack_figure
from tests.support import tiny_models
from tests.support.attack_settings import setting


def outcome(shares: dict[str, float], **numbers: float) -> AttackResult:
    cells = tuple(Cell(variant, 1.0, share, share, share) for variant, share in shares.items())
    return AttackResult(cells, shares, numbers, torch.zeros(len(cells), 10, 1, 8, 8, dtype=torch.uint8), seconds=2.0)


TRIOS = {
    "relearn": AttackComparison(
        model=outcome({"relearn_10": 80, "relearn_retain": 60}, relearn_10_s50=5),
        base=outcome({"relearn_10": 95, "relearn_retain": 99}),
        gold=outcome({"relearn_10": 70, "relearn_retain": 0}, relearn_10_s50=15),
    ),
    "invert": AttackComparison(outcome({"invert": 10}), None, outcome({"invert": 30})),
}


def test_each_attack_reports_its_rate_on_the_three_models_and_the_difference_to_gold():
    result = attack_metrics(TRIOS)
    assert result["attack/relearn_asr"] == 80
    assert result["attack/relearn_asr_base"] == 99
    assert result["attack/relearn_asr_gold"] == 70
    assert result["attack/relearn_delta_gold"] == 10
    assert result["attack/relearn_seconds"] == 2
    assert (result["attack/relearn_10_s50"], result["attack/relearn_10_s50_gold"]) == (5, 15)


def test_the_worst_difference_is_looked_for_in_every_variant():
    # The strongest variant, relearn_10, hides that retain-only brings back 60 points more than out of gold.
    result = attack_metrics(TRIOS)
    assert result[keys.WORST_DELTA] == result["attack/relearn_retain_delta_gold"] == 60
    assert result[keys.WORST_ASR] == 80


def test_resilience_counts_what_goes_beyond_gold():
    # relearn +10, invert -20 counted as 0: 1 - (0.10 + 0) / 2
    assert attack_metrics(TRIOS)[keys.RESILIENCE] == pytest.approx(0.95)


def test_without_gold_there_is_no_difference_to_report():
    result = attack_metrics({"invert": AttackComparison(outcome({"invert": 10}))})
    assert not any("delta" in key or "resilience" in key for key in result)


def test_every_key_has_a_meaning():
    for key in attack_metrics(TRIOS):
        assert metric_info.meaning(key).text


def test_the_table_has_a_row_a_variant_and_gaps_where_a_model_is_missing():
    frame = attack_table(TRIOS)
    assert list(frame.index) == ["relearn_10", "relearn_retain", "invert"]
    assert frame.loc["relearn_retain", "beyond gold"] == 60
    assert math.isnan(frame.loc["invert", "base"])


def test_an_attack_on_the_same_model_is_taken_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path))
    first = cached_attack("weights", Weights(), tiny_models.diffusion(), setting(), judges="j")
    again = cached_attack("weights", Weights(), tiny_models.diffusion(), setting(), judges="j")
    assert (again.cells, again.success, again.seconds) == (first.cells, first.success, first.seconds)
    assert torch.equal(again.pictures, first.pictures)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    cached_attack("weights", Weights(), tiny_models.diffusion(5), setting(), judges="j")
    cached_attack("weights", Weights(), tiny_models.diffusion(), setting(), judges="another")
    cached_attack("weights", Weights(), tiny_models.diffusion(), setting(base=tiny_models.diffusion(7)), judges="j")
    assert len(list(tmp_path.rglob("*.safetensors"))) == 4


def test_a_figure_has_a_curve_panel_a_variant_and_a_block_a_model():
    drawn = attack_figure(Relearn(), TRIOS["relearn"])
    assert [axis.get_title() for axis in drawn.get_axes()] == ["relearn_10", "relearn_retain", "model", "base", "gold"]
