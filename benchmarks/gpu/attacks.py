"""The panel's attacks on corrections of CIFAR-10, each registered as a version first; the gold model where one was trained."""

from __future__ import annotations

from functools import partial

import pandas as pd

from benchmarks.gpu import cifar10
from benchmarks.gpu.exports import newest_run, pictures, table
from benchmarks.gpu.stage import Stage, use_tf32
from pipelines.attack import attack
from pipelines.registry import model_versions
from pipelines.unlearn import unlearn
from safemax.data.sources import load

SMALL = ("--forget_samples=100", "--retain_samples=10", "--second_samples=20")  # the comparison has the whole panel
ATTACKS = ("partial", "guidance", "weights", "invert", "guided", "relearn")  # the cheap ones first
TINY = ("--attack_samples=10",)


def run(stage: Stage) -> None:
    """Correct and attack, a method and a class at a time."""
    stage.enter_work()
    use_tf32()
    methods = cifar10.METHODS[:1] if stage.rehearse else cifar10.METHODS
    for name in cifar10.FIRST[:1] if stage.rehearse else cifar10.FIRST:
        for method in methods:
            needs = 0.15 * stage.minutes
            if stage.attempt(f"{method} forgets {name}", partial(corrected, stage, method, name), needs=needs):
                _attack(stage, method, name)


def corrected(stage: Stage, method: str, forget: str) -> None:
    """Register a correction like the comparison's."""
    steps = cifar10.steps_by_time(stage, load("cifar10"))["child"]
    chosen = cifar10.TINY_OVERRIDES if stage.rehearse else cifar10.OVERRIDES
    own = [word.replace(f"{method}.", "--") for word in chosen.split(",") if word.startswith(f"{method}.")]
    words = [f"--method={method}", "--data=cifar10", f"--forget={forget}", f"--steps={steps}", "--previews=0", *own]
    words += [*cifar10.judge_knobs(stage), *(cifar10.TINY_KNOBS if stage.rehearse else SMALL), "--checkpoint_every=0"]
    unlearn([*words, *(["--batch_size=8"] if stage.rehearse else [])])


def _attack(stage: Stage, method: str, forget: str) -> None:
    """Attack the newest version, an attack at a time, each adding its rows to the table."""
    address = model_versions.find(cifar10.NAME, "candidate")
    made: list[pd.DataFrame] = []
    title = f"Attacks on {method}, forgotten: {forget}"
    remark = f"Success in percent of the samples, by the ensemble that may answer none of these; model {address}."

    def attacked(name: str) -> None:
        words = [
            f"--model={address}",
            f"--attacks={name}",
            "--data=cifar10",
            "--gold=kept",
            *cifar10.judge_knobs(stage),
        ]
        attack([*words, *(TINY if stage.rehearse else ())])
        found = newest_run("attack")
        made.append(table(found, "attacks"))
        frame = pd.concat(made)
        stage.table(f"{method}-{forget}", title, frame.set_index(frame.columns[0]), remark, digits=1)
        pictures(found, stage.folder / f"{method}-{forget}")

    for name in ATTACKS[1:2] if stage.rehearse else ATTACKS:
        stage.attempt(f"{name} on {method}, {forget}", partial(attacked, name))
