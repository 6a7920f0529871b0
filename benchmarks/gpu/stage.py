"""A stage as a process: its clock, its folder of tables and pictures, and tasks whose failure takes nothing else along.

`python -m benchmarks.gpu.stage` is started by benchmarks.gpu, which says in the environment what to run.
"""

from __future__ import annotations

import gc
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import NoReturn

import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image

from benchmarks import tables
from safemax.errors import Stopped, chain
from safemax.reports.images_and_tables import as_markdown, as_text

COMPILING = 0.7  # minutes that must be left to compile a denoiser
_LIBRARIES = ("diffusers", "accelerate", "transformers", "mlflow", "optuna")


@dataclass
class Stage:
    """What a stage knows and writes.

    Args:
        name: of the stage.
        minutes: its budget.
        folder: where its tables and pictures go.
        work: folder of the MLflow store and the caches, shared by the stages.
        rehearse: whether all sizes are tiny.
        command: that the tables name.
        started: time.monotonic(), which all processes share, when the budget began: before this process's imports.
    """

    name: str
    minutes: float
    folder: Path
    work: Path
    rehearse: bool
    command: str
    started: float = field(default_factory=time.monotonic)
    tasks: list[dict[str, object]] = field(default_factory=list)

    @property
    def left(self) -> float:
        """Minutes until the budget is spent."""
        return self.minutes - (time.monotonic() - self.started) / 60

    def attempt(self, task: str, work: Callable[[], object], *, needs: float = 0.0, late: bool = False) -> bool:
        """Do a task, or skip it for lack of time; its failure or its stop is a row of the table of tasks, no more.

        Args:
            task: what it is called.
            work: does it.
            needs: minutes that must be left.
            late: whether it may still be done when the budget is spent: a last table.

        Returns:
            whether it was done.
        """
        if not late and self.left <= needs:
            return self._record(task, 0.0, f"no time: {max(self.left, 0):.1f} minutes left, it needs {needs:.1f}")
        signal.signal(signal.SIGTERM, _stop)  # the product's entry points put handlers of their own in its place
        started, outcome = time.monotonic(), "done"
        print(f"[{self.name}] {task}, {self.left:.1f} minutes left", flush=True)
        try:
            work()
        except Stopped:
            outcome = "out of time"
        except Exception as error:
            traceback.print_exc()
            outcome = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            if any(isinstance(each, Stopped) for each in chain(error)):  # a compiler wraps what it meets
                outcome = "out of time"
        gc.collect()  # or the next peak of memory counts this task's models
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        return self._record(task, (time.monotonic() - started) / 60, outcome)

    def _record(self, task: str, minutes: float, outcome: str) -> bool:
        self.tasks.append({"task": task, "minutes": minutes, "outcome": outcome})
        self.table("tasks", f"Tasks of the stage {self.name}", pd.DataFrame(self.tasks).set_index("task"), digits=2)
        return outcome == "done"

    def table(self, name: str, title: str, frame: pd.DataFrame, remark: str = "", digits: int = 3) -> None:
        """Write NAME.md and NAME.csv, with command, date, card and versions."""
        about = f"{date.today()}, `{self.command}`, {tables.hardware()}, {versions()}."
        about += " **Rehearsal: tiny sizes and made-up data, the numbers mean nothing.**" if self.rehearse else ""
        parts = [f"# {title}", about, as_markdown(frame, digits), remark]
        (self.folder / f"{name}.md").write_text("\n\n".join(filter(None, parts)) + "\n")
        frame.to_csv(self.folder / f"{name}.csv")
        print(f"{title}\n\n{as_text(frame, digits)}\n", flush=True)

    def picture(self, name: str, picture: Figure | Image.Image) -> None:
        """Write NAME.png."""
        path = self.folder / f"{name}.png"
        if isinstance(picture, Figure):
            picture.savefig(path, bbox_inches="tight")
        else:
            picture.save(path)

    def enter_work(self) -> None:
        """Work in the shared folder: its MLflow store, its caches, and in a rehearsal its made-up data."""
        self.work.mkdir(parents=True, exist_ok=True)
        os.chdir(self.work)
        os.environ["SAFEMAX_CACHE"] = str(self.work / "cache")
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{self.work / 'mlflow.db'}"
        if self.rehearse:
            from benchmarks.gpu import made_up

            os.environ["SAFEMAX_DATA"] = str(made_up.data(self.work / "data"))


def use_tf32() -> None:
    """Turn on what PyTorch leaves off: TF32 in matrix products, and cudnn's choice of the fastest convolution."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True


def versions() -> str:
    """Return the versions that decide speed and numbers, in a line."""
    found = [f"Python {platform.python_version()}", f"CUDA {torch.version.cuda}"]
    for name in _LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


def _stop(signum: int, frame: FrameType | None) -> NoReturn:
    raise Stopped


def main() -> None:
    """Run the stage that the environment names."""
    facts = {
        name: os.environ[f"SAFEMAX_GPU_{name.upper()}"] for name in ("name", "minutes", "results", "work", "command")
    }
    stage = Stage(
        facts["name"], float(facts["minutes"]), Path(facts["results"]), Path(facts["work"]),
        os.environ["SAFEMAX_GPU_REHEARSE"] == "1", facts["command"], float(os.environ["SAFEMAX_GPU_STARTED"]),
    )  # fmt: skip
    if stage.rehearse:
        torch.set_num_threads(1)
    work = import_module(f"benchmarks.gpu.{stage.name}")
    work.run(stage)
    sys.exit(any(str(task["outcome"]).startswith("failed") for task in stage.tasks))


if __name__ == "__main__":
    main()
