"""The cache is listed with sizes, ages and purposes, and only what nobody needs is freed."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

from pipelines import ROOT
from pipelines.cache import cache
from safemax.errors import InputError
from safemax.storage.cache_contents import PURPOSES


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with an old and a new judge, old samples, an old checkpoint and what a killed process left."""
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path))
    ages = {"judges/old/weights": 40, "judges/new/weights": 1, "samples/a.safetensors": 40, "checkpoints/b/step-1": 40}
    for name, days in (ages | {"checkpoints/c.123.tmp": 40}).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 500_000)
        then = time.time() - days * 86400
        os.utime(path, (then, then))
    return tmp_path


def left(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_list_says_what_is_kept_and_changes_nothing(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = left(kept)
    cache([])
    out = capsys.readouterr().out
    assert out.startswith(f"{kept}: 2.5 MB in 5 pieces\n")
    assert re.search(r"judges +2 +1\.0 +1 to 40 +trained judges", out)
    assert re.search(r"checkpoints +2 +1\.0 +40 +trainings under way", out)
    assert left(kept) == before


def test_what_can_be_made_again_and_was_not_used_is_freed_and_a_dry_run_comes_first(
    kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = left(kept)
    cache(["--free=unused"])
    assert "would free 1.5 MB in 3 pieces not used for 30 days; dry_run=false frees them" in capsys.readouterr().out
    assert left(kept) == before
    cache(["--free=unused", "--dry_run=false"])
    assert "freed 1.5 MB in 3 pieces" in capsys.readouterr().out
    assert left(kept) == {"judges/new/weights", "checkpoints/b/step-1"}


def test_a_kind_is_freed_by_its_name(kept: Path) -> None:
    cache(["--free=checkpoints, judges", "--days=0", "--dry_run=false"])
    assert left(kept) == {"samples/a.safetensors"}
    with pytest.raises(InputError, match="unknown kind 'judge' .did you mean 'judges'"):
        cache(["--free=judge"])


def test_an_empty_cache_is_listed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path / "none"))
    cache(["--free=unused", "--dry_run=false"])
    assert "0.0 MB in 0 pieces" in capsys.readouterr().out


def test_every_kind_that_the_code_writes_has_a_purpose() -> None:
    paths = [path for floor in ("safemax", "pipelines", "hpo") for path in (ROOT / floor).rglob("*.py")]
    written = set(re.findall(r"cache\.folder\(\"(\w+)\"\)", "".join(path.read_text() for path in paths)))
    assert "judges" in written
    assert written <= PURPOSES.keys()
