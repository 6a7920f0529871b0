"""Two processes share the rows of priors, of training without a class and of attacks, and get what one process gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from safemax.data.row_share import RowShare, joined
from tests.support import rank_program, ranks

FEW: dict[str, dict[str, Any]] = {
    "salun": {"mask_batches": 3, "mask_guidance_scale": 3.0},
    "sfron": {"fisher_batches": 3},
    "scissorhands": {"trim_batches": 3, "trim": 0.05},
    "ssd": {"importance_batches": 3, "importance_draws": 2},
    "selective_amnesia": {"replay_images": 3, "replay_steps": 4, "fisher_times": 8, "fisher_null_drop": 0.5},
    "fisher_forgetting": {"fisher_images": 7, "fisher_times": 8},
    "ablating_concepts": {"anchor_images": 5},
}
NO_GRADIENT = "to_k.bias"  # softmax cancels it: what is left is rounding, and ssd divides it by rounding
FLIPPED = 1e-3  # of a mask's bits, at weights whose rank rounding decides


@pytest.mark.parametrize("method", FEW)
def test_two_processes_prepare_what_one_prepares(tmp_path: Path, method: str) -> None:
    (tmp_path / "alone").mkdir()
    rank_program.prepare(0, tmp_path / "alone", method=method, knobs=FEW[method])
    ranks.answers(rank_program.prepare, tmp_path, method=method, knobs=FEW[method])
    alone, *both = (load_file(tmp_path / place / rank_program.PREPARED) for place in ("alone", "0", "1"))
    for found in both:
        assert found.keys() == alone.keys()
        for name, mine in alone.items():
            if not name.endswith(NO_GRADIENT):
                _assert_alike(name, mine, found[name])


def _assert_alike(name: str, mine: Tensor, theirs: Tensor) -> None:
    if name == "mask":
        bits = np.unpackbits(mine.numpy()) != np.unpackbits(theirs.numpy())
        assert bits.mean() <= FLIPPED
    elif mine.dtype == torch.uint8:
        assert (mine.int() - theirs.int()).abs().max() <= 1  # a pixel that is rounded
    else:
        scale = mine.abs().max().clamp_min(1e-12).item()
        torch.testing.assert_close(theirs, mine, atol=1e-5 * scale, rtol=1e-4)


@pytest.mark.parametrize("method", ["finetune", "retrain"])
def test_two_processes_fine_tune_to_the_weights_of_one(tmp_path: Path, method: str) -> None:
    alone = rank_program.finetune(0, tmp_path, method=method)
    for found in ranks.answers(rank_program.finetune, tmp_path, method=method):
        assert found == pytest.approx(alone, abs=1e-4)


def test_two_processes_attack_as_one_does(tmp_path: Path) -> None:
    alone = rank_program.attacked()
    first, second = ranks.answers(rank_program.attack, tmp_path)
    assert second == {}
    assert first.keys() == alone.keys()
    for name, pictures in alone.items():
        difference = torch.tensor(first[name]) - torch.tensor(pictures)
        assert difference.abs().max() <= 2, name  # of 255; pixels are rounded


def test_the_rows_of_all_processes_make_the_batch() -> None:
    batch, shares = torch.arange(14).view(7, 2), [RowShare(rank, 3) for rank in range(3)]
    parts = [batch[share.rows] for share in shares]
    assert [len(part) for part in parts] == shares[0].counts(7) == [3, 2, 2]
    assert torch.equal(joined(parts), batch)


def test_tensors_that_lie_in_another_order_in_memory_add_up(tmp_path: Path) -> None:
    assert ranks.answers(rank_program.add_up, tmp_path) == [[[0.0, 2.0, 4.0], [6.0, 8.0, 10.0]]] * 2
