"""The paper's tables on CIFAR-10: a base trained by time, and corrections of it by `compare`, in growing comparisons.

Each comparison adds to the one before it, whose children are not run again, and writes its tables anew.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.gpu import cifar10_judges
from benchmarks.gpu.exports import newest_run, pictures
from benchmarks.gpu.stage import Stage, use_tf32
from pipelines.compare import compare
from pipelines.comparison import child_runs
from pipelines.correction.base_model import NetworkOptions
from pipelines.pretrain import pretrain
from pipelines.registry import model_versions
from safemax.data.dataset import Dataset
from safemax.data.sources import load
from safemax.methods import create
from safemax.training.method import Method
from safemax.training.settings import Training
from safemax.training.trainer import Trainer

NAME = "cifar10-ddpm"
METHODS = ("safemax", "expected_targets", "salun", "selective_amnesia")
FIRST = ("airplane", "bird")
LATER = ("automobile", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# Selective Amnesia's prior at a tenth of its cost: fewer replayed images, and fewer images in the Fisher information.
OVERRIDES = "selective_amnesia.replay_images=100,selective_amnesia.fisher_images=200,selective_amnesia.fisher_times=16"
BASE_SHARE, CHILD_SHARE = 0.4, 0.03  # of the budget: the base's training, and each correction's
# Nothing of it is measured yet. The preset's warm-up would be half of so short a run.
BASE: dict[str, Any] = {"preset": "gpu", "warmup": 200, "checkpoint_every": 0}
MOST_STEPS = 1000  # of a correction, as in the paper
TINY: dict[str, Any] = {"child": 2}
TINY_BASE: dict[str, Any] = {"batch_size": 16, "precision": "fp32", "steps": 4, "warmup": 1}
TINY_KNOBS = (
    "--protocol=custom",
    "--sampler_steps=2",
    "--forget_samples=8",
    "--retain_samples=4",
    "--second_samples=4",
)
TINY_OVERRIDES = OVERRIDES.replace("=100", "=2").replace("=200", "=2").replace("=16", "=2")
REMARK = """\
What differs from the paper: the base, trained for minutes where the paper's had 800,000 steps (its samples are in base/samples);
the judges, third-party CIFAR ResNets where the paper fine-tuned a ResNet-34, and beside them two heads that answer "none of
these"; FID in the ResNet-56's features, not Inception's; the sampler, DDIM-20 where the paper takes 1,000 ancestral steps; the
steps of a correction, {child} for every method, where the paper takes 1,000, and 20,000 for Selective Amnesia, whose prior is
made at a tenth of its cost here; TF32, where the paper has float32. The panel is the fast protocol's with half its images of
each retained class, 50. So no number of ours is to be read as better or worse than the paper's beside it."""
PANEL = {
    "forget/ua": "UA %", "forget/ua_reject": "UA_reject %", "forget/ua_reject_low": "low", "forget/ua_reject_high": "high",
    "forget/rejected": "rejected %", "forget/second_ua_reject": "UA_reject, 2nd sampler %", "forget/entropy": "H",
    "retain/fid_judge": "FID", "retain/fid_judge_se": "FID se", "retain/accuracy": "accuracy %",
    "cost/runtime_minutes": "RTE min", "cost/setup_minutes": "prior min", "cost/evaluation_minutes": "panel min",
    "cost/peak_memory_gb": "memory GB",
}  # fmt: skip


def run(stage: Stage) -> None:
    """Train the base, then compare as much as the time allows."""
    stage.enter_work()
    use_tf32()
    dataset = load("cifar10")
    stage.attempt("base", lambda: base(stage))
    if model_versions.find(NAME, "base") is None:
        return
    remark = REMARK.format(**steps_by_time(stage, dataset))
    (stage.folder / "differences.md").write_text(f"# What differs from the paper\n\n{remark}\n")
    jury = cifar10_judges.Jury.of(dataset, stage.rehearse)
    own = 2 if stage.rehearse else 1500
    stage.attempt("third judge", lambda: jury.train_own(dataset, own), needs=0.2 * stage.minutes)
    _grow(stage, jury)
    for classes in (FIRST, FIRST[:1]):
        methods = finished_methods(classes)
        if methods and stage.tasks[-1]["outcome"] != "done":
            task = f"tables of what has finished: {'+'.join(methods)} on {'+'.join(classes)}"
            stage.attempt(task, partial(compared, stage, jury, methods, classes, ()), late=True)


def _grow(stage: Stage, jury: cifar10_judges.Jury) -> None:
    """Compare one method on one class, all on two, then Figure 3's lambdas, then a class more at a time, until time is over."""
    lambdas = ("--ablation=true", "--lambdas=0,1" if stage.rehearse else "--lambdas=0,1,2,5")
    later = () if stage.rehearse else LATER
    parts: list[tuple[Sequence[str], Sequence[str]]] = [(FIRST[:1], ()), (FIRST, ()), (FIRST, lambdas)]
    parts += [((*FIRST, *later[:n]), lambdas) for n in range(1, len(later) + 1)]
    methods: Sequence[str] = METHODS[:1]
    if stage.rehearse:  # the first comparison is part of the second, and shows nothing that it does not
        parts, methods = parts[1:], METHODS
    for classes, more in parts:
        task = f"{'+'.join(methods)} on {'+'.join(classes)} {' '.join(more)}".strip()
        done = stage.attempt(task, partial(compared, stage, jury, methods, classes, more), needs=0.05 * stage.minutes)
        if stage.left <= 0:
            return
        if more and classes == FIRST:
            _gold(stage, methods)
        # a method that fails is not tried again: the others go on
        methods = METHODS if methods == METHODS[:1] or done else finished_methods(FIRST)


def _gold(stage: Stage, methods: Sequence[str]) -> None:
    """Compare with a model that was trained without the first class, as long as the base: the attacks find it then."""
    words = [
        *_words(stage, methods[:1] if stage.rehearse else methods, FIRST[:1]),
        "--gold=true",
        f"--output={stage.folder / 'gold'}",
    ]
    needs = 0.0 if stage.rehearse else (BASE_SHARE + 0.1) * stage.minutes
    stage.attempt(f"gold, trained without {FIRST[0]}", partial(compare, words), needs=needs)


def settings(stage: Stage) -> Path:
    """Return the file with the numbers of steps, which a later call must not choose anew: results are named by them."""
    return stage.work / "cifar10-steps.json"


def steps_by_time(stage: Stage, dataset: Dataset) -> dict[str, int]:
    """Return the steps of a correction, measured once so that all fit the budget."""
    path = settings(stage)
    if not path.exists():
        found = dict(TINY) if stage.rehearse else _calibrated(stage, dataset)
        path.write_text(json.dumps(found))
    return json.loads(path.read_text())


def _calibrated(stage: Stage, dataset: Dataset) -> dict[str, int]:
    child_step = seconds_a_step(dataset, create("safemax"), (0,), Training())
    print(f"a step of SAFEMax takes {1000 * child_step:.0f} ms", flush=True)
    return {"child": min(MOST_STEPS, max(50, 10 * int(CHILD_SHARE * 60 * stage.minutes / child_step / 10)))}


def seconds_a_step(
    dataset: Dataset, method: Method, forget: tuple[int, ...], training: Training, count: int = 20
) -> float:
    """Return the seconds of a step of training a network for a data set, mean of `count` after three."""
    trainer = Trainer(NetworkOptions().create(dataset, 0), method, dataset.train, forget, training)
    trainer.prepare()
    for turn in range(count + 3):
        if turn == 3:
            _wait()
            started = time.perf_counter()
        trainer.step()
    _wait()
    return (time.perf_counter() - started) / count


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def base(stage: Stage) -> None:
    """Train and register the base, unless an earlier call did; bring its samples along."""
    if model_versions.find(NAME, "base") is None:
        how = BASE | (TINY_BASE if stage.rehearse else {"minutes": round(BASE_SHARE * stage.minutes, 2)})
        pretrain(["--data=cifar10", *(f"--{key}={value}" for key, value in how.items())])
    found = newest_run("base")
    facts = {**found.data.params, **{key: f"{value:.3f}" for key, value in found.data.metrics.items()}}
    wanted = [key for key in sorted(facts) if key.startswith(("train.", "cost/", "loss/"))]
    stage.table("base", "The base", pd.DataFrame({"value": {key: facts[key] for key in wanted}}).rename_axis("what"))
    pictures(found, stage.folder / "base")


def judge_knobs(stage: Stage) -> tuple[str, ...]:
    """Return the knobs of judges and panel that all entry points are given."""
    resnet20, resnet56 = cifar10_judges.paths()
    heads = f"--reject_judge=none_head:{resnet20}" + ("" if stage.rehearse else f",{resnet56}")
    return (
        f"--judge={resnet56}",
        heads,
        *(("--reject_judges=1", "--judge_steps=2") if stage.rehearse else ("--reject_judges=2",)),
    )


def panel_knobs(stage: Stage) -> tuple[str, ...]:
    """Return the knobs of the panel: the fast protocol at half its retained images, or a tiny one."""
    return TINY_KNOBS if stage.rehearse else ("--retain_samples=50",)


def compared(
    stage: Stage, jury: cifar10_judges.Jury, methods: Sequence[str], classes: Sequence[str], more: Sequence[str]
) -> None:
    """Run one comparison and write what it brings beside the tables that it writes itself."""
    words = [*_words(stage, methods, classes), "--gold=false", f"--output={stage.folder}", *more]
    try:
        compare(words)
    finally:  # where one method failed, the others' results are there
        made = stage.folder / "compare-cifar10" / "children.csv"
        if made.exists():
            children = pd.read_csv(made)
            panel(stage, children)
            jury.write(stage, children)


def _words(stage: Stage, methods: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Return what all comparisons are given: a correction of one is a correction of another."""
    steps = steps_by_time(stage, load("cifar10"))["child"]
    words = ["--data=cifar10", f"--methods={','.join(methods)}", f"--classes={','.join(classes)}", f"--steps={steps}"]
    words += [*judge_knobs(stage), *panel_knobs(stage), *(["--batch_size=8"] if stage.rehearse else [])]
    if "selective_amnesia" in methods:
        words.append(f"--overrides={TINY_OVERRIDES if stage.rehearse else OVERRIDES}")
    return words


def panel(stage: Stage, children: pd.DataFrame) -> None:
    """Write the panel of every model of a comparison, with intervals and the change of FID from the base's."""
    known = {key: header for key, header in PANEL.items() if key in children}
    frame = children[["variant", "forget", *known]].rename(columns=known)
    before = children[children["variant"] == "base"].set_index("forget")[["retain/fid_judge", "retain/fid_judge_se"]]
    corrected = frame["variant"] != "base"
    fid = frame["forget"].map(before["retain/fid_judge"]).where(corrected)
    error = (frame["FID se"] ** 2 + frame["forget"].map(before["retain/fid_judge_se"]) ** 2) ** 0.5
    frame = frame.assign(**{"FID change": frame["FID"] - fid, "change low": frame["FID"] - fid - 1.96 * error})
    frame["change high"] = frame["FID change"] + 1.96 * error
    remark = (
        "low and high: 95 % intervals, Wilson's of UA_reject; of the change of FID by the standard errors of both, as if the two "
        "models' samples were independent: they share their noise, so the interval is too wide rather than too narrow."
    )
    stage.table("panel", "Panel", frame.set_index("variant"), remark, digits=2)


def finished_methods(classes: Sequence[str]) -> list[str]:
    """Return the methods whose corrections of all these classes have finished."""
    done = {
        (each.data.tags.get("comparison.variant"), each.data.tags.get("unlearning.forget"))
        for each in child_runs.finished().values()
    }
    return [method for method in METHODS if all((method, name) in done for name in classes)]
