"""Does it run on this GPU at all: the tests marked gpu, and the demo through `mlflow run`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from benchmarks.gpu.exports import newest_run, pictures
from benchmarks.gpu.stage import Stage
from pipelines import ROOT
from safemax.errors import Stopped

# As small as the demo can be, which shows that it runs and nothing else.
TINY = ("base_steps=2", "steps=2", "previews=0", "forget_samples=10", "retain_samples=2", "second_samples=4", "judge_steps=1",
        "reject_judges=1", "protocol=custom", "sampler_steps=2", "device=cpu")  # fmt: skip
DEMO = ("device=cuda", "precision=bf16")


def run(stage: Stage) -> None:
    """Run both, the tests first."""
    stage.enter_work()
    stage.attempt("tests marked gpu", lambda: _tests(stage))
    stage.attempt("demo by mlflow run", lambda: _demo(stage))


def _tests(stage: Stage) -> None:
    """Run the tests and write a row a test; raise where one failed."""
    report = stage.folder / "tests.xml"
    words = [
        "-m",
        "pytest",
        "-m",
        "gpu",
        "-q",
        "-p",
        "no:cacheprovider",
        "-o",
        "minversion=7",
        f"--junitxml={report}",
        "tests/gpu",
    ]
    status = _call(words, ROOT, {}, stage)
    frame = pd.DataFrame([_row(case) for case in ElementTree.parse(report).iter("testcase")]).set_index("test")
    counts = ", ".join(f"{n} {outcome}" for outcome, n in frame["outcome"].value_counts().items())
    stage.table("tests", "Tests marked gpu", frame, f"{counts}.")
    report.unlink()
    if status:
        raise RuntimeError(f"pytest ended with status {status}: {counts}")


def _row(case: ElementTree.Element) -> dict[str, object]:
    kinds = {"failure": "failed", "error": "failed", "skipped": "skipped"}
    ended = next((each for each in case if each.tag in kinds), None)
    about = " ".join((ended.get("message") or "").split())[:200] if ended is not None else ""
    return {
        "test": case.get("name"),
        "outcome": kinds[ended.tag] if ended is not None else "passed",
        "seconds": float(case.get("time") or 0),
        "about": about.replace("|", "/"),
    }


def _demo(stage: Stage) -> None:
    """Run the demo as a user does, and bring its table and pictures along."""
    given = [word for each in (TINY if stage.rehearse else DEMO) for word in ("-P", each)]
    words = ["-m", "mlflow", "run", str(ROOT), "--env-manager", "local", "--experiment-name", "digits-ddpm", *given]
    status = _call(words, stage.work, {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}, stage)
    if status:
        raise RuntimeError(f"mlflow run ended with status {status}")
    found = newest_run("correction")
    keys = [key for key in found.data.metrics if key.startswith(("forget/", "retain/", "cost/")) and "_low" not in key]
    frame = pd.DataFrame({"value": {key: found.data.metrics[key] for key in sorted(keys)}}).rename_axis("metric")
    stage.table("demo", "The demo through mlflow run", frame)
    pictures(found, stage.folder / "demo")


def _call(words: Sequence[str], folder: Path, changed: Mapping[str, str], stage: Stage) -> int:
    """Run a Python program in a folder and return its status; end it and raise Stopped where the budget is spent."""
    child = subprocess.Popen(
        [sys.executable, *words], cwd=folder, env={**os.environ, **changed}, start_new_session=True
    )
    try:
        return child.wait(max(1.0, 60 * stage.left))
    except (subprocess.TimeoutExpired, Stopped):
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        raise Stopped from None
