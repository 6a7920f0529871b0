"""What is computed once for the judges of a data set."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from safemax.judges.reference import noise_features
from tests.support import real_data


def test_noise_features_are_cached_by_the_judges_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judges = real_data.judges()  # before the cache is another one, since they are cached too
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path))
    first = noise_features(judges)
    (path,) = tmp_path.rglob("*.safetensors")
    written = os.stat(path).st_mtime_ns
    assert torch.equal(noise_features(judges), first)
    assert os.stat(path).st_mtime_ns == written
    noise_features(replace(judges, digest="another"))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
