"""Every bar of the product is made by one function, which verbosity=quiet silences."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from safemax.progress import bar

ROOT = Path(__file__).parents[2]


def test_a_bar_is_shown_where_it_is_to_be_and_nobody_asked_for_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for quiet, shown, expected in (("0", True, True), ("", True, True), ("0", False, False), ("1", True, False)):
        monkeypatch.setenv("TQDM_DISABLE", quiet)
        assert list(bar(range(3), shown=shown, desc="counting")) == [0, 1, 2]
        assert ("counting" in capsys.readouterr().err) is expected


@pytest.mark.parametrize("floor", ["safemax", "pipelines", "hpo"])
def test_no_other_file_makes_a_bar(floor: str) -> None:
    files = [path for path in (ROOT / floor).rglob("*.py") if path != ROOT / "safemax" / "progress.py"]
    assert [str(path.relative_to(ROOT)) for path in files if "tqdm" in _imported(path)] == []


def _imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    plain = {name.name for each in nodes if isinstance(each, ast.Import) for name in each.names}
    return {
        name.split(".")[0] for name in plain | {str(each.module) for each in nodes if isinstance(each, ast.ImportFrom)}
    }


def test_a_quiet_entry_point_shows_no_bar(schema: Path, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(schema.read_bytes())
    words = ["--steps=2", "--batch-size=8", "--verbosity=quiet"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    command = [sys.executable, "-m", "pipelines.pretrain", *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "models:/digits-ddpm/1" in done.stdout
    assert "%|" not in done.stderr
    assert "it/s" not in done.stderr
