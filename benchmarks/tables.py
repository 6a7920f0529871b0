"""Writes the tables of benchmarks as Markdown and CSV, with the date, the command and the hardware."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from datetime import date
from pathlib import Path

import pandas as pd
import torch

from safemax.reports.images_and_tables import as_markdown, as_text

FOLDER = Path(__file__).parent / "results"


def write(name: str, title: str, frame: pd.DataFrame, remark: str = "", digits: int = 3) -> None:
    """Print a table and write it to benchmarks/results/NAME.md and .csv."""
    FOLDER.mkdir(exist_ok=True)
    command = shlex.join(["python", *sys.orig_argv[1:]])
    about = f"{date.today()}, `{command}`, {hardware()}."
    text = f"# {title}\n\n{about}\n\n{as_markdown(frame, digits)}\n"
    (FOLDER / f"{name}.md").write_text(text + (f"\n{remark}\n" if remark else ""))
    frame.to_csv(FOLDER / f"{name}.csv")
    print(f"{title}\n{about}\n\n{as_text(frame, digits)}\n{remark}", flush=True)


def hardware() -> str:
    """Return a description of the machine."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"{os.cpu_count()} cores of {_cpu()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _cpu() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
