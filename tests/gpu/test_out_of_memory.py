"""A GPU that is too small ends a command with one line that says what to turn."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from pipelines.cli.parser import main
from safemax.training import peak_memory


def status_of(entry, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["program"])
        with pytest.raises(SystemExit) as ended:
            main(entry)
    return ended.value.code, capsys.readouterr().err


def test_out_of_memory_is_one_line_with_the_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    def entry(argv: Sequence[str]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.00 GiB.\nMore lines.")

    code, said = status_of(entry, capsys)
    assert code == 1
    assert said.count("\n") == 1
    assert "4.00 GiB" in said
    assert "batch_size" in said
    assert "accumulate" in said


@pytest.mark.gpu
def test_a_gpu_that_is_full_gives_that_line(capsys: pytest.CaptureFixture[str]) -> None:
    def entry(argv: Sequence[str]) -> None:
        torch.empty(2**50, dtype=torch.uint8, device="cuda")

    code, said = status_of(entry, capsys)
    assert code == 1
    assert "out of memory" in said
    assert said.count("\n") == 1


@pytest.mark.gpu
def test_peak_memory_is_the_allocators() -> None:
    device = torch.device("cuda")
    peak_memory.reset_peak(device)
    block = torch.empty(10**8, dtype=torch.uint8, device=device)
    del block
    assert peak_memory.peak_gb(device) >= 0.1
