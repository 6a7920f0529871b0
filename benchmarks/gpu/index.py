"""The overview of all stages, written anew after each of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path


def write(folder: Path, command: str, states: Mapping[str, str]) -> Path:
    """Write FOLDER/index.md with the state, the tables and the pictures of every stage that has a folder there.

    Args:
        folder: of the results.
        command: that runs now.
        states: how each stage of this command ended so far; others keep what their own page says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["# What a GPU gave", "", f"{datetime.now():%Y-%m-%d %H:%M}, `{command}`", ""]
    for stage in sorted(each for each in folder.iterdir() if each.is_dir()):
        state = stage / "state.txt"
        if stage.name in states:
            state.write_text(f"{states[stage.name]}; `{command}`\n")
        lines += [f"## {stage.name}", "", state.read_text().strip() if state.exists() else "no record", ""]
        lines += [
            f"- [{each.relative_to(stage)}]({each.relative_to(folder)}): {_title(each)}" for each in _pages(stage)
        ]
        lines += [
            "",
            *(f"![{each.stem}]({each.relative_to(folder)})" for each in sorted(stage.rglob("*.png"))[:12]),
            "",
        ]
    path = folder / "index.md"
    path.write_text("\n".join(lines))
    if os.environ.get("OUT"):
        shutil.copy(path, os.environ["OUT"])
    return path


def _pages(stage: Path) -> list[Path]:
    return sorted(stage.rglob("*.md"))


def _title(page: Path) -> str:
    first = page.read_text().lstrip("# *").partition("\n")[0]
    return first.strip("* ")[:100]
