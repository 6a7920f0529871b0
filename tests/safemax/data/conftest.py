"""Every test has caches of its own and no network."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _own_caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every cache of a test apart and the network out."""
    import datasets
    import huggingface_hub

    caches = tmp_path_factory.mktemp("caches")
    monkeypatch.setenv("SAFEMAX_CACHE", str(caches / "safemax"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", caches / "hf")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
