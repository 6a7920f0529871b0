"""What only looks like a checkpoint is neither loaded nor deleted."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

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


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no safetensors at all",
        save({"w": torch.ones(2)}),
        save({"w": torch.ones(2)}, {"about": "no JSON"}),
        save({"w": torch.ones(2)}, {"about": "[1]"}),
        save({"w": torch.ones(2)}, {"about": "{}"})[:-1],
    ],
    ids=["empty", "text", "no description", "a description that is no JSON", "nor an object", "cut"],
)
def test_what_another_program_wrote_under_a_right_digest_is_passed_over(tmp_path: Path, content: bytes) -> None:
    checkpoint.write(tmp_path, Checkpoint(3, {"w": torch.ones(2)}, {"run": "r"}))
    (tmp_path / f"step-{9:08d}-{hashlib.sha256(content).hexdigest()}.safetensors").write_bytes(content)
    loaded = checkpoint.newest(tmp_path)
    assert loaded is not None
    assert loaded.step == 3
