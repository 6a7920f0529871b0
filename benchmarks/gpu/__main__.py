"""Run the stages of a lent GPU: each writes its tables at once, within its minutes, whatever becomes of the others.

    python -m benchmarks.gpu --plan                  the exact calls for a machine that is lent for a quarter of an hour
    python -m benchmarks.gpu --rehearse              all stages at tiny size on a CPU, with made-up data, into a folder of its own
    python -m benchmarks.gpu --stages=step,cifar10 --minutes=step=2,cifar10=6

smoke: the tests marked gpu, and the demo through `mlflow run`. step: a step of each method beside a bare one, memory, draws, and
what bf16, compilation and channels_last gain in each. cifar10: a base by time, corrections of it, the paper's tables and figures,
a gold model where the minutes allow. attacks: on those corrections. search: Optuna over
lambda and the learning rate. Tables, CSV and pictures go to RESULTS/STAGE, an overview to RESULTS/index.md; where $OUT is set,
each stage is zipped into it as it goes.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu import archive, index
from benchmarks.gpu.plan import PLAN, budgets
from pipelines.cli.parser import main, parse
from safemax.knobs import check, knob

GRACE = 60  # seconds that a stage has for its last table once its minutes are over
BEAT = 5  # seconds between two looks at a stage


@dataclass(frozen=True)
class Options:
    """What to run."""

    stages: str = knob("all", "stages separated by commas, or all")
    minutes: str = knob("auto", "budgets that differ from the usual ones, as STAGE=MINUTES separated by commas")
    results: str = knob(
        "auto", "folder of tables and pictures; auto is benchmarks/results/gpu, gpu-rehearsal in work to rehearse"
    )
    work: str = knob(
        ".safemax/gpu", "folder of the MLflow store, base, judges and samples, which a later call uses again"
    )
    rehearse: bool = knob(
        False, "tiny sizes and made-up data, on a CPU too: shows that all of it runs, measures nothing"
    )
    plan: bool = knob(False, "print the calls for a lent machine and run nothing")

    def __post_init__(self) -> None:
        check(self)

    @property
    def folder(self) -> Path:
        """Where results go."""
        usual = Path(self.work) / "rehearsal" if self.rehearse else Path(__file__).parents[1] / "results" / "gpu"
        return Path(self.results).absolute() if self.results != "auto" else usual.absolute()


def gpu(argv: Sequence[str]) -> None:
    """Run the chosen stages, each in a process of its own."""
    words = [f"{word}=true" if word in ("--rehearse", "--plan") else word for word in argv]
    options: Options = parse("python -m benchmarks.gpu", __doc__ or "", {"options": Options}, words)["options"]
    if options.plan:
        print(PLAN)
        return
    minutes = budgets(options.stages, options.minutes)
    command = shlex.join(["python", "-m", "benchmarks.gpu", *argv])
    states: dict[str, str] = {}
    for name, budget in minutes.items():
        (options.folder / name).mkdir(parents=True, exist_ok=True)
        states[name] = "running"
        index.write(options.folder, command, states)
        states[name] = _run(name, budget, options, command)
        index.write(options.folder, command, states)
        print(f"{name}: {states[name]}", flush=True)
    print(f"{options.folder / 'index.md'}", flush=True)


def _run(name: str, minutes: float, options: Options, command: str) -> str:
    """Run a stage in a process of its own and return how it ended; its output goes to log.txt as well."""
    folder, started = options.folder / name, time.monotonic()
    facts = {"name": name, "minutes": str(minutes), "results": str(folder), "command": command}
    facts |= {"work": str(Path(options.work).absolute()), "rehearse": str(int(options.rehearse))}
    facts |= {"started": str(started)}
    with (folder / "log.txt").open("w") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu.stage"], env={**os.environ, **_environment(facts)},
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        how = _wait(child, folder, started + 60 * minutes)
    archive.pack(folder)
    return f"{how} after {(time.monotonic() - started) / 60:.1f} of {minutes:g} minutes"


def _environment(facts: Mapping[str, str]) -> dict[str, str]:
    return {f"SAFEMAX_GPU_{key.upper()}": value for key, value in facts.items()}


def _wait(child: subprocess.Popen[bytes], folder: Path, deadline: float) -> str:
    """Wait for a stage; stop it when its time is over, and end it when it does not stop."""
    stopped = False
    while True:
        try:
            status = child.wait(BEAT)
            return "out of time" if stopped else "done" if status == 0 else f"failed with status {status}"
        except subprocess.TimeoutExpired:
            archive.pack(folder)
        if time.monotonic() > deadline + GRACE:
            os.killpg(child.pid, signal.SIGKILL)
        elif time.monotonic() > deadline and not stopped:
            stopped = True
            child.send_signal(signal.SIGTERM)


if __name__ == "__main__":
    main(gpu)
