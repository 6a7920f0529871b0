"""What the two ranks of tests.support.ranks do in a promotion; apart from rank_program, which imports no MLflow."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from pipelines.promote import promote as promote_by


def promote(rank: int, folder: Path, *, argv: list[str], environment: dict[str, str], place: str) -> None:
    """Promote by a command line, on the CPU, in the environment and the working directory of the test."""
    torch.set_num_threads(1)
    os.environ |= environment | {"CUDA_VISIBLE_DEVICES": ""}
    os.chdir(place)
    promote_by(argv)
