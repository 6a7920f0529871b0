from __future__ import annotations

import pytest
import torch

from benchmarks import relearning
from tests.support import tiny_models

LOOKS = len(relearning.LOOKS) + 1


def test_the_area_is_the_mean_share_over_the_attackers_steps():
    # 0 from step 0 to 2, then a straight line to 100 at step 4: (0 * 2 + 50 * 2) / 4
    assert relearning.area([0, 0, 100], (2, 4)) == 25
    # by steps, not by looks: 100 from step 2 to 10
    assert relearning.area([0, 100, 100], (2, 10)) == (50 * 2 + 100 * 8) / 10


def test_an_attacker_takes_the_rate_of_the_largest_area():
    assert relearning.best({"0.001": [0.0] * LOOKS, "0.003": [50.0] * LOOKS}) == ("0.003", 50.0)


def row(variant, label, share, fid):
    attacked = {who: {"0.001": [share] * LOOKS} for who in (relearning.PLAIN, relearning.RESET)}
    return {"variant": variant, "base": 1, "class": label, "FID": fid, "seconds": 1.0, "curves": attacked}


def test_a_variant_is_paired_with_each_rival_of_the_same_base_and_class():
    # differences of areas 40 - 80 and 50 - 60: mean -25, half-width t(0.975, 1) * 15 = 190.6; of FID -1 and -1
    ours = relearning.FAR
    rows = [
        row("safemax", 1, 80.0, 5.0),
        row("safemax", 6, 60.0, 9.0),
        row(ours, 6, 50.0, 8.0),
        row(ours, 1, 40.0, 4.0),
    ]
    line = relearning.summary(rows).loc[ours]
    assert line["area - safemax's"] == "-25.0 (-215.6 to +165.6; 2)"
    assert line["FID - safemax's"] == "-1.0 (-1.0 to -1.0; 2)"
    assert line[relearning.PLAIN] == 45
    assert line["pairs"] == 2


def test_only_pairs_that_both_have_are_compared():
    rows = [row("safemax", 1, 80.0, 5.0), row(relearning.FAR, 6, 50.0, 8.0)]
    assert not [name for name in relearning.summary(rows).columns if "safemax" in name]
    rows.append(row(relearning.FAR, 1, 70.0, 5.0))
    assert relearning.summary(rows).loc[relearning.FAR, "area - safemax's"] == "-10.0 (1)"


def test_a_reset_label_has_the_mean_of_the_others_and_nothing_else_moves():
    model = tiny_models.diffusion()
    reset = relearning.label_reset(model, 0)
    for before, after in zip(model.label_tables(), reset.label_tables(), strict=True):
        torch.testing.assert_close(after[0], before[1 : model.num_classes].mean(0))
        assert torch.equal(after[1:], before[1:])
    tables = {id(each) for each in reset.label_tables()}
    pairs = zip(model.parameters(), reset.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs if id(b) not in tables)


def test_what_is_compared_comes_first_and_the_rest_is_of_the_first_pairs():
    options = relearning.BenchmarkOptions(classes="1,6", bases="1", ablated=1)
    names = [name for name, _, _ in options.work]
    compared = 2 * len(relearning.COMPARED)
    assert set(names[:compared]) == set(relearning.COMPARED)
    assert len(names) == compared + len(relearning.VARIANTS) - len(relearning.COMPARED)
    assert {(base, label) for _, base, label in options.work[compared:]} == {(1, 1)}


def test_unknown_variants_are_refused():
    with pytest.raises(relearning.InputError, match="variants are base, gold, safemax"):
        relearning.BenchmarkOptions(only="safemaxx")
