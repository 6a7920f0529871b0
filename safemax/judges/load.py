"""The judges of a data set: one as in the paper, and an ensemble that also knows "none of these"."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from safemax.data.dataset import Dataset
from safemax.errors import InputError
from safemax.judges import none_head, zero_shot
from safemax.judges.classifier import Ensemble, Judge
from safemax.judges.config import JudgeConfig, reject_seeds, resolved
from safemax.judges.files import is_path, load_judge
from safemax.judges.fitness import examine
from safemax.judges.inception import Inception, find_inception
from safemax.judges.own import cached_judge, own_folder, training_facts, untrained
from safemax.judges.recipes import is_smoothed
from safemax.storage import cache

# Part of the key of what a judge was examined for, by whether its labels were smoothed: a change of `examine` must change it.
EXAMINED = {False: 2, True: 3}


@dataclass(frozen=True)
class Judges:
    """The classifiers of one data set.

    Args:
        plain: judges as the paper does, one of K classes for every image, noise included; its features feed FID and KID.
        reject: an ensemble that also knows "none of these"; its verdict counts.
        about: of each, what real test images and pure noise show of it (safemax.judges.fitness.examine).
        digest: of the weights of both, and of their temperatures.
        inception: the network of the standard FID, None where no weights were given.
    """

    plain: Judge
    reject: Judge
    about: dict[str, Any]
    digest: str
    inception: Inception | None = None

    def noise_attractor(self, forget: tuple[int, ...]) -> float:
        """Return the largest share, in percent, of pure noise that the plain judge classifies as the forgotten classes."""
        names = {self.plain.class_names[k] for k in forget}
        laws = self.about["plain"]["noise"].values()
        return max(sum(share for name, share in law.items() if name in names) for law in laws)


def judges(dataset: Dataset, config: JudgeConfig, *, device: str = "cpu", progress: bool = True) -> Judges:
    """Return the judges of a data set, from the cache where they were trained before.

    Args:
        dataset: trains them where they are not given by path.
        config: which they are.
        device: where they are trained and stay.
        progress: whether to show bars.

    Raises:
        InputError: an unknown architecture, a missing or damaged file, or a judge of other classes.
    """
    config = resolved(config, dataset)
    if progress and (costs := untrained(dataset, config)):
        print(f"judges for {dataset.name}, trained once, then reused: {'; '.join(costs)}", file=sys.stderr, flush=True)
    found = find_inception(config.inception, dataset)
    inception = None if found is None else found.to(device)
    plain = plain_judge(dataset, config, device=device, progress=progress).to(device)
    reject = _reject(dataset, config, plain, device, progress).to(device)
    about = {"plain": _about(plain, dataset), "reject": _about(reject, dataset)}
    facts: dict[str, Any] = {
        "plain": cache.tensors_digest(plain.state_dict()),
        "reject": cache.tensors_digest(reject.state_dict()),
    }
    for role, judge in {"plain": plain, "reject": reject}.items():
        if "temperature" in about[role]:
            judge.temperature = facts[f"{role}_temperature"] = about[role]["temperature"]
    return Judges(plain, reject, about, cache.key(facts), inception)


def plain_judge(dataset: Dataset, config: JudgeConfig, *, device: str = "cpu", progress: bool = True) -> Judge:
    """Return the plain judge alone; arguments and errors as of `judges`."""
    config = resolved(config, dataset)
    if is_path(config.judge):
        return _loaded(config.judge, dataset, config, reject=False)
    return cached_judge(dataset, config, reject=False, seed=config.judge_seed, device=device, progress=progress)


def identity(dataset: Dataset, config: JudgeConfig) -> str:
    """Return what identifies the judges of a data set before they exist: how each is trained, or the bytes it is read from."""
    config = resolved(config, dataset)
    sources = {"plain": (config.judge, [config.judge_seed]), "reject": (config.reject_judge, reject_seeds(config))}
    facts: dict[str, Any] = {}
    for role, (name, seeds) in sources.items():
        if none_head.is_named(name):
            files = [_file_digest(str(path)) for path in none_head.backbones(name)]
            facts[role] = [none_head.RECIPE, torch.__version__, dataset.digest, files, list(seeds), config.judge_steps]
        elif is_path(name):
            facts[role] = [_file_digest(name), config.judge_prompt] if _is_clip(name) else _file_digest(name)
        else:
            facts[role] = [training_facts(dataset, name, config, role == "reject", seed) for seed in seeds]
    return cache.key(facts)


def _reject(dataset: Dataset, config: JudgeConfig, plain: Judge, device: str, progress: bool) -> Judge:
    seeds = reject_seeds(config)
    if none_head.is_named(config.reject_judge):
        return none_head.ensemble(
            config.reject_judge, plain, dataset, seeds, draws=config.judge_steps, device=device, progress=progress
        )
    if is_path(config.reject_judge):
        if (judge := _loaded(config.reject_judge, dataset, config, reject=True)).reject:
            return judge
        raise InputError(f"reject_judge = {config.reject_judge} has no reject class")
    return Ensemble(
        [cached_judge(dataset, config, reject=True, seed=s, device=device, progress=progress) for s in seeds]
    )


def _loaded(path: str, dataset: Dataset, config: JudgeConfig, *, reject: bool) -> Judge:
    return load_judge(
        path,
        class_names=dataset.class_names,
        image_shape=dataset.image_shape,
        prompt=config.judge_prompt,
        reject=reject,
    )


def _is_clip(path: str) -> bool:
    return zero_shot.is_folder(Path(path))


def _about(judge: Judge, dataset: Dataset) -> dict[str, Any]:
    facts: dict[str, Any] = {"judge": cache.tensors_digest(judge.state_dict()), "data": dataset.digest}
    facts["examined"] = EXAMINED[is_smoothed(judge.arch)]
    path = cache.folder("judges") / f"about-{cache.key(facts)}.safetensors"
    cached = cache.load_or_create(path, lambda: {"about": cache.json_to_tensor(examine(judge, dataset))})
    return cache.tensor_to_json(cached["about"])


class NoneHeads(NamedTuple):
    """None heads that `judges` trains on other judges, once.

    Args:
        arch: architecture of the judge that gets them.
        body: that judge, the first of several; None where it is not trained yet.
        heads: how many.
        draws: batches that each of them learns from.
        cached: whether they were trained before.
    """

    arch: str
    body: Judge | None
    heads: int
    draws: int
    cached: bool = False


def none_heads(dataset: Dataset, config: JudgeConfig) -> NoneHeads | None:
    """Return the none heads that a config asks for, None where it asks for none."""
    config = resolved(config, dataset)
    if not none_head.is_named(config.reject_judge):
        return None
    seeds, draws = reject_seeds(config), config.judge_steps or none_head.DRAWS
    if not (
        none_head.backbones(config.reject_judge)
        or is_path(config.judge)
        or own_folder(dataset, config, False, config.judge_seed).exists()
    ):
        return NoneHeads(config.judge, None, len(seeds), draws)
    bodies = none_head.loaded_backbones(config.reject_judge, dataset)
    bodies = bodies or [plain_judge(dataset, config, progress=False)]
    cached = all(none_head.is_kept(body, dataset, own, draws) for body, own in none_head.spread(bodies, seeds))
    return NoneHeads(bodies[0].arch, bodies[0], len(seeds), draws, cached)


def _file_digest(path: str) -> str:
    """Return the sha256 (hex) of a judge's file, or of the files of its folder."""
    place, sha = Path(path), hashlib.sha256()
    for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
        if file.is_file():
            sha.update(file.read_bytes())
    return sha.hexdigest()
