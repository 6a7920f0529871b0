from __future__ import annotations

from importlib import import_module

import pytest
import torch

from benchmarks.saved import SavedBytes
from safemax.methods import create
from safemax.trainer import Training, steps_of
from tests import tiny


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
    model = tiny.diffusion()
    before = model.digest()
    step = steps_of(model, create("safemax"), tiny.split(), (0,), Training(batch_size=8, device="cpu"))
    assert model.training
    step()
    assert model.digest() != before


@pytest.mark.parametrize("name", ["SalUn", "SA"])
def test_ours_keeps_at_most_six_tenths_of_what_the_official_order_keeps_for_backward(name: str) -> None:
    official = import_module("benchmarks.official")
    entries = official.entries(official.Extent(rows=8))
    ours, theirs = (official.memory_of(entries[each][0])[0] for each in (name, f"{name}, official order"))
    assert 0 < ours <= 0.6 * theirs
