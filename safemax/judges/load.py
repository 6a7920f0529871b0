"""The judges of a data set: one as in the paper, an ensemble that also knows "none of these", and their features of real images."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from safemax.data.batches import to_float
from safemax.data.dataset import Dataset
from safemax.errors import InputError
from safemax.judges import none_head, zero_shot
from safemax.judges.classifier import PROMPT, Ensemble, Judge, is_path, load_judge, predict, save
from safemax.judges.fitness import examine
from safemax.judges.inception import Inception, Moments, by_class, find_inception
from safemax.judges.recipes import is_smoothed, planned_steps, recipe_of
from safemax.judges.train import train_judge
from safemax.knobs import check, knob
from safemax.storage import atomic, cache, checkpoint, hub

NOISE = 500  # images of pure noise, the far end of the normalised KID
# Part of every cached judge's key, by Dataset.natural: a change of how judges are trained must change it.
RECIPE = {False: 2, True: 3}
# Of a hub's repository of transformers, timm or CLIP.
_DOWNLOADED = ("*.json", "model*.safetensors", "merges.txt", "vocab.txt")
# Part of the key of what a judge was examined for, by whether its labels were smoothed: a change of `examine` must change it.
EXAMINED = {False: 2, True: 3}


@dataclass(frozen=True)
class JudgeConfig:
    """Which classifiers judge. A judge that is not given by path is trained once on the same data and cached."""

    judge: str = knob(
        "auto",
        "small, whitened, whitened_wide, resnet20 (32, 44, 56, 110), resnet34, a path (weights of a CIFAR ResNet, or a folder of "
        "transformers, timm or CLIP), or the hub id of one; auto fits the image size, and takes the wide one on a GPU",
    )
    judge_steps: int = knob(
        0, "training steps of a judge; 0 takes as many as its architecture needs", bounds=(0, 1_000_000)
    )
    judge_pretrained: str = knob(
        "none", "ImageNet weights for resnet34, by path or hub id; none starts from random weights"
    )
    reject_judges: int = knob(3, "judges of the ensemble with a reject class", bounds=(1, 10))
    reject_judge: str = knob(
        "auto",
        "none_head (small heads on the plain judge), none_head:PATH,PATH (on other judges, which vote more independently), an "
        "architecture of the ensemble, a path to a saved one, or CLIP by path or hub id, with prompts for none of these; "
        "auto is none_head above 16 pixels, else small",
    )
    judge_prompt: str = knob(PROMPT, "what CLIP compares an image with, where {} is a class", added=True)
    judge_seed: int = knob(0, "fixes the judges' training", bounds=(0, 2**31))
    inception: str = knob(
        "auto",
        "adds retain/fid_inception, the standard FID: auto (for natural images of 32 pixels or more, where torch-fidelity is "
        "installed and its weights lie in torch's cache), none, fetch (downloads them) or the path of a safetensors file",
    )

    def __post_init__(self) -> None:
        check(self)
        if "{}" not in self.judge_prompt:
            raise InputError(
                f"judge_prompt = {self.judge_prompt!r} is not allowed; it must contain {{}}, in place of a class"
            )


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


@dataclass(frozen=True)
class Reference:
    """Features of real images, by class.

    Args:
        features: in the plain judge's space, (N, D).
        labels: (N,).
        rejecting: in the space of the ensemble with a reject class, (N, E).
        inception: moments of all real training images in the space of the standard FID, one a class; empty without its weights.
    """

    features: Tensor
    labels: Tensor
    rejecting: Tensor
    inception: tuple[Moments, ...] = ()

    def of(self, classes: tuple[int, ...]) -> Tensor:
        """Return the plain judge's features of some classes' real images."""
        return self.features[self._rows(classes)]

    def rejecting_of(self, classes: tuple[int, ...]) -> Tensor:
        """Return the ensemble's features of the same images."""
        return self.rejecting[self._rows(classes)]

    def without(self, classes: tuple[int, ...]) -> Reference:
        """Return the features of all other classes: those that a model forgot earlier are neither forgotten now nor retained."""
        rows = ~self._rows(classes)
        inception = tuple(each.none() if k in classes else each for k, each in enumerate(self.inception))
        return Reference(self.features[rows], self.labels[rows], self.rejecting[rows], inception)

    def _rows(self, classes: tuple[int, ...]) -> Tensor:
        return torch.isin(self.labels, torch.tensor(classes, dtype=torch.int64))


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
    config = _resolved(config, dataset)
    if progress and (costs := _untrained(dataset, config)):
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
    config = _resolved(config, dataset)
    if is_path(config.judge):
        return _loaded(config.judge, dataset, config, reject=False)
    return _cached(dataset, config, reject=False, seed=config.judge_seed, device=device, progress=progress)


def identity(dataset: Dataset, config: JudgeConfig) -> str:
    """Return what identifies the judges of a data set before they exist: how each is trained, or the bytes it is read from."""
    config = _resolved(config, dataset)
    sources = {"plain": (config.judge, [config.judge_seed]), "reject": (config.reject_judge, _reject_seeds(config))}
    facts: dict[str, Any] = {}
    for role, (name, seeds) in sources.items():
        if none_head.is_named(name):
            files = [_file_digest(str(path)) for path in none_head.backbones(name)]
            facts[role] = [none_head.RECIPE, torch.__version__, dataset.digest, files, list(seeds), config.judge_steps]
        elif is_path(name):
            facts[role] = [_file_digest(name), config.judge_prompt] if _is_clip(name) else _file_digest(name)
        else:
            facts[role] = [_facts(dataset, name, config, role == "reject", seed) for seed in seeds]
    return cache.key(facts)


def reference(dataset: Dataset, judges: Judges, per_class: int = 1000) -> Reference:
    """Return features of real training images, computed once, then cached: of `per_class` a class, Inception's of all.

    Args:
        dataset: the real images.
        judges: their networks give the features.
        per_class: images of each class, fewer where there are fewer.
    """
    tensors = _reference(dataset, judges, per_class)
    real = Reference(tensors["features"], tensors["labels"], tensors["rejecting"])
    if judges.inception is None:
        return real
    return replace(real, inception=by_class(judges.inception, dataset.train, dataset.digest, dataset.class_names))


def noise_features(judges: Judges) -> Tensor:
    """Return the plain judge's features of NOISE images of N(0, 1) clamped to [-1, 1], (NOISE, D); computed once, then cached."""
    path = cache.folder("references") / f"{cache.key({'judges': judges.digest, 'noise': NOISE})}.safetensors"

    def make() -> dict[str, Tensor]:
        shape = (NOISE, *judges.plain.image_shape)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
        return {"features": predict(judges.plain, noise)[1]}

    return cache.load_or_create(path, make)["features"]


def _reference(dataset: Dataset, judges: Judges, per_class: int) -> dict[str, Tensor]:
    facts = {"data": dataset.digest, "judges": judges.digest, "per_class": per_class, "spaces": 2}
    path = cache.folder("references") / f"{cache.key(facts)}.safetensors"

    def make() -> dict[str, Tensor]:
        rows = torch.cat(
            [torch.nonzero(dataset.train.labels == k).flatten()[:per_class] for k in range(dataset.num_classes)]
        )
        images = to_float(dataset.train.images[rows])
        features, rejecting = (predict(judge, images)[1] for judge in (judges.plain, judges.reject))
        return {"features": features, "labels": dataset.train.labels[rows], "rejecting": rejecting}

    return cache.load_or_create(path, make)


def _reject(dataset: Dataset, config: JudgeConfig, plain: Judge, device: str, progress: bool) -> Judge:
    seeds = _reject_seeds(config)
    if none_head.is_named(config.reject_judge):
        return none_head.ensemble(
            config.reject_judge, plain, dataset, seeds, draws=config.judge_steps, device=device, progress=progress
        )
    if is_path(config.reject_judge):
        if (judge := _loaded(config.reject_judge, dataset, config, reject=True)).reject:
            return judge
        raise InputError(f"reject_judge = {config.reject_judge} has no reject class")
    return Ensemble([_cached(dataset, config, reject=True, seed=s, device=device, progress=progress) for s in seeds])


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


def _untrained(dataset: Dataset, config: JudgeConfig) -> list[str]:
    """Return what has to be trained, a phrase each."""
    costs: list[str] = []
    for role, seeds in (("judge", [config.judge_seed]), ("reject_judge", list(_reject_seeds(config)))):
        name, reject = getattr(config, role), role == "reject_judge"
        if none_head.is_named(name):  # on a judge that is there, they say it themselves
            costs += [none_head.cost(len(seeds), config.judge_steps)] * bool(costs)
        elif not is_path(name):
            absent = [seed for seed in seeds if not _folder(dataset, config, reject, seed).exists()]
            recipe = recipe_of(name, None, None, None)
            steps = config.judge_steps or planned_steps(recipe, len(dataset.train), reject)
            costs += [f"{len(absent)} {name}, {steps:,} steps of {recipe.batch_size} images each"] * bool(absent)
    return costs


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
    config = _resolved(config, dataset)
    roles = [(config.judge, False, [config.judge_seed]), (config.reject_judge, True, list(_reject_seeds(config)))]
    return [
        OwnJudge(
            name, reject, seed, _steps(dataset, config, name, reject), _folder(dataset, config, reject, seed).exists()
        )
        for name, reject, seeds in roles
        if not (is_path(name) or none_head.is_named(name))
        for seed in seeds
    ]


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
    config = _resolved(config, dataset)
    if not none_head.is_named(config.reject_judge):
        return None
    seeds, draws = _reject_seeds(config), config.judge_steps or none_head.DRAWS
    if not (
        none_head.backbones(config.reject_judge)
        or is_path(config.judge)
        or _folder(dataset, config, False, config.judge_seed).exists()
    ):
        return NoneHeads(config.judge, None, len(seeds), draws)
    bodies = none_head.loaded_backbones(config.reject_judge, dataset)
    bodies = bodies or [plain_judge(dataset, config, progress=False)]
    cached = all(none_head.is_kept(body, dataset, own, draws) for body, own in none_head.spread(bodies, seeds))
    return NoneHeads(bodies[0].arch, bodies[0], len(seeds), draws, cached)


def train_own(dataset: Dataset, config: JudgeConfig, seed: int, *, device: str = "cpu", progress: bool = True) -> None:
    """Train one judge of `own_judges`, by its seed, unless it is cached; other arguments and errors as of `judges`."""
    config = _resolved(config, dataset)
    reject = next(each.reject for each in own_judges(dataset, config) if each.seed == seed)
    _cached(dataset, config, reject=reject, seed=seed, device=device, progress=progress)


def _steps(dataset: Dataset, config: JudgeConfig, arch: str, reject: bool) -> int:
    return config.judge_steps or planned_steps(recipe_of(arch, None, None, None), len(dataset.train), reject)


def _reject_seeds(config: JudgeConfig) -> range:
    return range(config.judge_seed + 1, config.judge_seed + 1 + config.reject_judges)


def _file_digest(path: str) -> str:
    """Return the sha256 (hex) of a judge's file, or of the files of its folder."""
    place, sha = Path(path), hashlib.sha256()
    for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
        if file.is_file():
            sha.update(file.read_bytes())
    return sha.hexdigest()


def _resolved(config: JudgeConfig, dataset: Dataset) -> JudgeConfig:
    """Return the config with what auto stands for: for these images, and on a machine with or without a GPU."""
    large = dataset.image_shape[-1] > 16
    wide = "whitened_wide" if torch.cuda.is_available() else "whitened"
    judge = config.judge if config.judge != "auto" else wide if large else "small"
    reject = config.reject_judge if config.reject_judge != "auto" else none_head.NAME if large else "small"
    return replace(config, judge=_local("judge", judge), reject_judge=_local("reject_judge", reject))


def _local(role: str, name: str) -> str:
    """Return a judge's name with the hub ids in it as folders of the hub's cache, downloaded where they are not there."""
    head, mark, listed = name.partition(":") if none_head.is_named(name) else ("", "", name)
    places = [str(hub.fetch(role, each, _DOWNLOADED)) if hub.is_id(each) else each for each in listed.split(",")]
    return head + mark + ",".join(places)


def _folder(dataset: Dataset, config: JudgeConfig, reject: bool, seed: int) -> Path:
    arch = config.reject_judge if reject else config.judge
    return cache.folder("judges") / cache.key(_facts(dataset, arch, config, reject, seed))


def _cached(dataset: Dataset, config: JudgeConfig, *, reject: bool, seed: int, device: str, progress: bool) -> Judge:
    folder = _folder(dataset, config, reject, seed)
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


def _facts(dataset: Dataset, arch: str, config: JudgeConfig, reject: bool, seed: int) -> dict[str, Any]:
    """Return all that decides how a judge is trained."""
    return {"data": dataset.digest, "arch": arch, "reject": reject, "seed": seed, "steps": config.judge_steps,
            "pretrained": config.judge_pretrained, "recipe": RECIPE[dataset.natural], "torch": torch.__version__}  # fmt: skip


def _about(judge: Judge, dataset: Dataset) -> dict[str, Any]:
    facts: dict[str, Any] = {"judge": cache.tensors_digest(judge.state_dict()), "data": dataset.digest}
    facts["examined"] = EXAMINED[is_smoothed(judge.arch)]
    path = cache.folder("judges") / f"about-{cache.key(facts)}.safetensors"
    cached = cache.load_or_create(path, lambda: {"about": cache.json_to_tensor(examine(judge, dataset))})
    return cache.tensor_to_json(cached["about"])
