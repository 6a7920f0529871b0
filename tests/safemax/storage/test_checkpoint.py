"""What only looks like a checkpoint is neither loaded nor deleted."""

from __future__ import annotations

from pathlib import Path

import torch

from safemax.storage import checkpoint
from safemax.storage.checkpoint import Checkpoint


def test_a_folder_that_is_named_like_a_checkpoint_is_passed_over(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, Checkpoint(3, {"w": torch.ones(2)}, {"run": "r"}))
    folders = [tmp_path / f"step-{step:08d}-{'0' * 64}.safetensors" for step in (1, 9)]
    for each in folders:
        each.mkdir()
    loaded = checkpoint.newest(tmp_path)
    assert loaded is not None
    assert (loaded.step, loaded.about) == (3, {"run": "r"})
    for step in (4, 5, 6):  # older files are deleted
        checkpoint.write(tmp_path, Checkpoint(step, {"w": torch.ones(2)}, {}))
    checkpoint.clear(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(folders)
