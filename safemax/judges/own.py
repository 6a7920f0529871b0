"""The judges that are trained here, once: which they are, what they cost, and where they are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from safemax.data.dataset import Dataset
from safemax.judges import none_head
from safemax.judges.classifier import Judge
from safemax.judges.config import JudgeConfig, reject_seeds, resolved
from safemax.judges.files import is_path, load_judge, save
from safemax.judges.recipes import planned_steps, recipe_of
from safemax.judges.train import train_judge
from safemax.storage import atomic, cache, checkpoint

# Part of every cached judge's key, by Dataset.natural: a change of how judges are trained must change it.
RECIPE = {False: 2, True: 3}


class OwnJudge(NamedTuple):
    """A judge that `judges` trains, once.

    Args:
        arch: its architecture.
        reject: whether it knows "none of these".
        seed: of its training.
        steps: of its training.
        cached: whether it was trained before.
    """

    arch: str
    reject: bool
    seed: int
    steps: int
    cached: bool


def own_judges(dataset: Dataset, config: JudgeConfig) -> list[OwnJudge]:
    """Return the judges that a config trains, in order: neither those given by path nor heads on other judges."""
    config = resolved(config, dataset)
    roles = [(config.judge, False, [config.judge_seed]), (config.reject_judge, True, list(reject_seeds(config)))]
    return [
        OwnJudge(
            name,
            reject,
            seed,
            _steps(dataset, config, name, reject),
            own_folder(dataset, config, reject, seed).exists(),
        )
        for name, reject, seeds in roles
        if not (is_path(name) or none_head.is_named(name))
        for seed in seeds
    ]


def train_own(dataset: Dataset, config: JudgeConfig, seed: int, *, device: str = "cpu", progress: bool = True) -> None:
    """Train one judge of `own_judges`, by its seed, unless it is cached; other arguments and errors as of `judges`."""
    config = resolved(config, dataset)
    reject = next(each.reject for each in own_judges(dataset, config) if each.seed == seed)
    cached_judge(dataset, config, reject=reject, seed=seed, device=device, progress=progress)


def _steps(dataset: Dataset, config: JudgeConfig, arch: str, reject: bool) -> int:
    return config.judge_steps or planned_steps(recipe_of(arch, None, None, None), len(dataset.train), reject)


def own_folder(dataset: Dataset, config: JudgeConfig, reject: bool, seed: int) -> Path:
    """Return where a judge is kept once it is trained."""
    arch = config.reject_judge if reject else config.judge
    return cache.folder("judges") / cache.key(training_facts(dataset, arch, config, reject, seed))


def cached_judge(
    dataset: Dataset, config: JudgeConfig, *, reject: bool, seed: int, device: str, progress: bool
) -> Judge:
    """Return a judge, trained if it is not kept; a training that was stopped goes on from its checkpoint."""
    folder = own_folder(dataset, config, reject, seed)
    if cache.has(folder):
        return load_judge(folder, class_names=dataset.class_names)
    arch = config.reject_judge if reject else config.judge
    pretrained = config.judge_pretrained if arch == "resnet34" and config.judge_pretrained != "none" else None
    number = seed - config.judge_seed + (not is_path(config.judge))  # seeds follow the order
    title = f"judge {number} of {len(own_judges(dataset, config))}"
    unfinished = folder.with_name(f"{folder.name}-unfinished")
    judge = train_judge(
        dataset, arch, reject=reject, steps=config.judge_steps or None, seed=seed, device=device, progress=progress,
        pretrained=pretrained, checkpoints=unfinished, title=title,
    )  # fmt: skip
    atomic.create_folder(folder, lambda place: save(judge, place))
    checkpoint.clear(unfinished)
    return judge


def training_facts(dataset: Dataset, arch: str, config: JudgeConfig, reject: bool, seed: int) -> dict[str, Any]:
    """Return all that decides how a judge is trained."""
    return {"data": dataset.digest, "arch": arch, "reject": reject, "seed": seed, "steps": config.judge_steps,
            "pretrained": config.judge_pretrained, "recipe": RECIPE[dataset.natural], "torch": torch.__version__}  # fmt: skip


def untrained(dataset: Dataset, config: JudgeConfig) -> list[str]:
    """Return what has to be trained, a phrase each."""
    costs: list[str] = []
    for role, seeds in (("judge", [config.judge_seed]), ("reject_judge", list(reject_seeds(config)))):
        name, reject = getattr(config, role), role == "reject_judge"
        if none_head.is_named(name):  # on a judge that is there, they say it themselves
            costs += [none_head.cost(len(seeds), config.judge_steps)] * bool(costs)
        elif not is_path(name):
            absent = [seed for seed in seeds if not own_folder(dataset, config, reject, seed).exists()]
            recipe = recipe_of(name, None, None, None)
            steps = config.judge_steps or planned_steps(recipe, len(dataset.train), reject)
            costs += [f"{len(absent)} {name}, {steps:,} steps of {recipe.batch_size} images each"] * bool(absent)
    return costs
