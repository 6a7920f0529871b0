from __future__ import annotations

import pytest
import torch

from safemax.training import devices
from safemax.training.settings import Training


@pytest.mark.parametrize(("precision", "expected"), [("auto", "no"), ("fp32", "no"), ("bf16", "bf16")])
def test_auto_is_fp32_on_a_cpu(precision, expected):
    assert devices.accelerator_for(Training(device="cpu", precision=precision)).mixed_precision == expected


def test_a_cpu_keeps_its_arithmetic():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    devices.accelerator_for(Training(device="cpu", precision="bf16"))
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark) == before


@pytest.mark.parametrize(("precision", "expected"), [("fp32", "highest"), ("bf16", "high"), ("auto", "high")])
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_gpu_multiplies_in_tf32_unless_fp32_is_chosen(precision, expected, deterministic, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    torch.use_deterministic_algorithms(deterministic)
    try:
        devices.use_fast_gpu_kernels(precision)
        assert torch.get_float32_matmul_precision() == expected
        assert torch.backends.cudnn.benchmark != deterministic
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_float32_matmul_precision("highest")
