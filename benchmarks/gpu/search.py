"""Optuna over lambda and the learning rate of SAFEMax on CIFAR-10: short trials, the front, and its winner as a version."""

from __future__ import annotations

from benchmarks.gpu import cifar10
from benchmarks.gpu.exports import file, newest_run, pictures, table
from benchmarks.gpu.stage import Stage
from hpo.search import search
from pipelines.registry import model_versions

KNOBS = ("--trials=8", "--steps=60", "--forget_samples=60", "--retain_samples=15", "--workers=2", "--final_samples=2")
TINY = ("--trials=2", "--steps=2", "--batch_size=8", "--final_samples=1", "--accuracy_drop=100")


def run(stage: Stage) -> None:
    """Search in one task: a study that was stopped resumes with the same call."""
    stage.enter_work()
    stage.attempt("search", lambda: searched(stage))


def searched(stage: Stage) -> None:
    """Search, and bring the front along."""
    given = (*TINY, *cifar10.TINY_KNOBS) if stage.rehearse else KNOBS
    search(
        [
            "--data=cifar10",
            "--forget=airplane",
            "--space=lr=1e-5:1e-3:log,lambda=0:5",
            *cifar10.judge_knobs(stage),
            *given,
        ]
    )
    found = newest_run("search")
    winner = model_versions.find(cifar10.NAME, "candidate")
    for name, title in (("front", "The front and the defaults (trial 0), on fresh seeds"), ("trials", "Trials")):
        frame = table(found, name)
        stage.table(name, title, frame.set_index(frame.columns[0]), f"Registered: {winner}.", digits=4)
    file(found, "front.html", stage.folder / "front.html")
    pictures(found, stage.folder)
