from __future__ import annotations

from importlib import import_module

import pandas as pd
import pytest
import torch

from benchmarks import ours
from benchmarks.saved import SavedBytes
from safemax.methods import create
from safemax.training.settings import Training
from safemax.training.trainer import Trainer
from tests.support import tiny_models


def test_a_storage_that_is_saved_twice_counts_once() -> None:
    # exp saves its result y, 1,000 floats; sin saves the same y: 4,000 bytes
    x = torch.ones(1000, requires_grad=True)
    assert SavedBytes([]).during(lambda: x.exp().sin().sum().backward()) == 4000


def test_graphs_that_are_alive_together_add_up_and_one_after_the_other_do_not() -> None:
    x = torch.ones(1000, requires_grad=True)

    def together() -> None:
        (x.exp().sum() + x.sin().exp().sum()).backward()

    def apart() -> None:
        x.exp().sum().backward()
        x.exp().sum().backward()

    # exp's result, and sin's: sin itself saves x, which is known
    assert SavedBytes([x]).during(together) == 8000
    meter = SavedBytes([x])
    assert meter.during(apart) == 4000
    assert meter.now == 0


def test_a_benchmarked_step_is_a_training_step() -> None:
    model = tiny_models.diffusion()
    before = model.digest()
    trainer = Trainer(model, create("safemax"), tiny_models.split(), (0,), Training(batch_size=8, device="cpu"))
    trainer.prepare()
    assert model.training
    trainer.step()
    assert model.digest() != before


@pytest.mark.parametrize("name", ["SalUn", "SA"])
def test_ours_keeps_at_most_six_tenths_of_what_the_official_order_keeps_for_backward(name: str) -> None:
    official = import_module("benchmarks.official")
    entries = official.entries(official.BenchmarkOptions(rows=8))
    ours, theirs = (official.memory_of(entries[each][0])[0] for each in (name, f"{name}, official order"))
    assert 0 < ours <= 0.6 * theirs


def test_our_table_pairs_each_run_with_safemaxs_of_the_same_class_and_seed():
    # FID differences -1 and -3: mean -2, s = sqrt(2), half-width t(0.975, 1) sqrt(2) / sqrt(2) = 12.706
    common = {"steps": 75, "accuracy": 99.0, "minutes": 0.1, "seed": 0}
    values = [("safemax", "0", 0.0, 5.0), ("safemax", "1", 0.2, 9.0), ("ours", "1", 0.4, 6.0), ("ours", "0", 0.1, 4.0)]
    frame = pd.DataFrame([{"variant": v, "class": c, "recognised %": r, "FID": f, **common} for v, c, r, f in values])
    line = ours.paired(frame).loc["ours"]
    assert line["FID difference"] == pytest.approx(-2)
    assert line["FID low"] == pytest.approx(-2 - 12.706, abs=1e-3)
    assert line["largest recognised %"] == 0.4
    assert line["pairs"] == 2


def test_our_benchmark_removes_each_ingredient_on_its_own():
    options = ours.BenchmarkOptions(seeds=1)
    corrections = [each for each in ours.corrections_of(options, (3,)) if each.method == "expected_targets"]
    whole, *less = corrections
    assert len(less) == len(ours.ABLATIONS)
    for each in less:
        changed = {**each.knobs, **each.training}.items() ^ {**whole.knobs, **whole.training}.items()
        assert len({key for key, _ in changed}) == 1
