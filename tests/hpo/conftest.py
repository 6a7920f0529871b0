"""A whole search at the smallest size: three classes of 8x8 images in a folder, an untrained base, judges of a few steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpo import space
from hpo.config import SearchConfig, SearchOptions
from pipelines.cli.options import DataOptions
from safemax.evaluation.protocol import Evaluation
from safemax.judges.config import JudgeConfig
from safemax.methods import create
from safemax.training.settings import Training
from tests.support import tiny_models

BuildSearch = Callable[..., SearchConfig]


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of data, base and caches, made once."""
    root = tmp_path_factory.mktemp("hpo")
    tiny_models.write_images(root / "data")
    tiny_models.diffusion().save(root / "base")
    return root


@pytest.fixture(scope="session")
def tiny_search(shared_folder: Path) -> BuildSearch:
    """Build a search; keywords change its SearchOptions, `steps` and `forget_samples` its training and evaluation."""

    def build(*, steps: int = 4, forget_samples: int = 6, **search: Any) -> SearchConfig:
        given: dict[str, Any] = {"trials": 3, "accuracy_drop": 100.0, "final_samples": 2, "prune": False, **search}
        data = DataOptions(data=str(shared_folder / "data"))
        training = Training(steps=steps, batch_size=8, device="cpu")
        evaluation = Evaluation(
            protocol="custom", sampler_steps=2, forget_samples=forget_samples, retain_samples=6, second_samples=5,
            user_samples=0,
        )  # fmt: skip
        method, search_options = create("safemax"), replace(SearchOptions(), **given)
        ranges = space.read(search_options.space, method, training, ("steps", "retain_weight"))
        judging = JudgeConfig(judge_steps=5, reject_judges=1)
        names = (str(shared_folder / "base"), "tiny-ddpm", "safemax")
        return SearchConfig(
            search_options, data, data.load(), (0,), *names, method, training, evaluation, judging, ranges
        )

    return build


@pytest.fixture
def hpo_cache(shared_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache that tests of a search share: judges and base samples; each study has its own name."""
    monkeypatch.setenv("SAFEMAX_CACHE", str(shared_folder / "cache"))
    return shared_folder / "cache"
