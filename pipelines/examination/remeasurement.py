"""A version measured again before a promotion: fresh samples from its own weights, compared with the evidence that it came with.

Evidence is what the machine that registered a version says of it. These samples are drawn where the promotion runs.
"""

from __future__ import annotations

import contextlib
import math
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from pipelines import tracking
from pipelines.cli.options import DataOptions
from pipelines.registry import model_versions
from pipelines.registry.gates import FAIL, MISSING, OFF, PASS, Case, Gate
from safemax import metric_keys as keys
from safemax.data.batches import to_uint8
from safemax.data.dataset import Dataset
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import Sampler, sample
from safemax.errors import InputError
from safemax.evaluation import panel_classes, shared_judging
from safemax.evaluation.verdict import number
from safemax.judges.config import JudgeConfig
from safemax.judges.fitness import recall
from safemax.judges.load import Judges, judges
from safemax.knobs import check, knob
from safemax.metrics.intervals import wilson
from safemax.reports.numbers import counted

# Of one model: images of the classes forgotten last and of each class forgotten earlier, and of each retained class; all of
# them together at most so many times the first number.
FORGET_IMAGES, RETAIN_IMAGES, MOST = 100, 20, 2
BUDGET = 50_000  # denoiser steps, one an image and step and two if guided; the fast panel of ten classes takes 70,500
_SAMPLER = re.compile(r"(ddim|ddpm|dpmpp)-(\d{1,4})(?:-eta([\d.e+-]{1,12}))?-g([\d.e+-]{1,12})-(clip|noclip)")
_BUILT_IN = ("digits", "cifar10", "fashion_mnist", "mnist")
TRUSTED = (
    "Not measured again, but taken from the evidence: the base's numbers, FID, precision, the second sampler, attacks, and "
    "which sampler, judges and retained classes were chosen."
)
_WITHOUT = "remeasure=false promotes on the evidence alone, and the record says so"


@dataclass(frozen=True)
class RemeasureOptions:
    """Whether and with which real images a version is measured again before its alias moves."""

    remeasure: bool = knob(True, "measure again, on fresh samples, and compare with the evidence; false is recorded")
    data: str = knob(
        "auto", "real images for the judges, as in the correction; auto is the built-in set that the evidence names"
    )
    size: int = knob(0, "side in pixels that images are resized to; 0 keeps their size", bounds=(0, 1024))

    def __post_init__(self) -> None:
        check(self)

    def load(self, evidence: Mapping[str, Any]) -> Dataset:
        """Return the data that a version was corrected with; InputError where they are not at hand."""
        name = _parameter(evidence, "data.name") if self.data == "auto" else self.data
        if self.data == "auto" and name not in _BUILT_IN:
            raise InputError(
                f"data = auto: the evidence names data {name!r}; give data=FOLDER or a hub id, or {_WITHOUT}"
            )
        try:
            dataset = DataOptions(name, self.size).load()
        except InputError as error:
            raise InputError(f"the data to measure again are not available: {error}; {_WITHOUT}") from None
        stated = str(evidence.get("data_digest"))
        if stated != dataset.digest:
            digests = f"digest {dataset.digest[:12]}, not {stated[:12]}"
            raise InputError(
                f"data = {name} is not the data that the version was corrected with: {digests}; {_WITHOUT}"
            )
        return dataset


@dataclass(frozen=True)
class Draw:
    """What is drawn from a version.

    Args:
        sampler: the one that the evidence records.
        groups: of the classes forgotten last, and of each one forgotten earlier: the name and the labels.
        retained: labels of the retained classes.
        counts: images of each group and of each retained class.
        seed: a fresh one, which nobody could know when the version was made.
    """

    sampler: Sampler
    groups: Mapping[str, tuple[int, ...]]
    retained: tuple[int, ...]
    counts: tuple[int, int]
    seed: int

    @classmethod
    def of(cls, diffusion: Diffusion, evidence: Mapping[str, Any]) -> Draw:
        """Return what to draw to check a version's evidence, within BUDGET.

        Raises:
            InputError: the evidence does not record the sampler, or names a class that the model does not have.
        """
        sampler, names = _sampler(evidence), diffusion.class_names
        forgotten = evidence["forgotten"]
        own = _parameter(evidence, "data.forget").split(",")
        if unknown := [name for name in (*own, *forgotten) if name not in names]:
            raise InputError(f"the evidence names the class {unknown[0]!r}; the model has {', '.join(names)}")
        groups = {",".join(own): tuple(map(names.index, own))}
        groups |= {f"{name} (earlier)": (names.index(name),) for name in forgotten if name not in own}
        gone = [names.index(name) for name in (*forgotten, *own)]
        asked = evidence["parameters"].get("eval.retain_classes", panel_classes.AUTO)
        retained = panel_classes.labels(str(asked), names, gone)
        counts = _counts(len(groups), len(retained), sampler.steps * (2 if sampler.guidance_scale != 1 else 1))
        return cls(sampler, groups, retained, counts, secrets.randbelow(2**31))

    @property
    def labels(self) -> Tensor:
        """One label an image."""
        per_group, per_class = self.counts
        of_groups = [torch.tensor(each).repeat(per_group)[:per_group] for each in self.groups.values()]
        return torch.cat([*of_groups, torch.tensor(self.retained, dtype=torch.int64).repeat_interleave(per_class)])

    @property
    def cost(self) -> int:
        """Denoiser steps: one an image and step, two if guided."""
        return len(self.labels) * self.sampler.steps * (2 if self.sampler.guidance_scale != 1 else 1)

    def __str__(self) -> str:
        """Return what is drawn and what it costs, in a line."""
        per_group, per_class = self.counts
        forgotten = f"{per_group} images each of {'; '.join(self.groups)}"
        retained = f"{per_class} of each of {counted(len(self.retained), 'retained class')}"
        return f"{forgotten} and {retained}, {self.sampler}, seed {self.seed}: {self.cost:,} denoiser steps"


def remeasure(
    case: Case, diffusion: Diffusion, options: RemeasureOptions, judge_recall: float | None = None
) -> tuple[list[Gate], str]:
    """Draw from a version, judge the samples, and return the gates on what its evidence says of them, and what was trusted.

    Args:
        case: the version's evidence.
        diffusion: the version.
        options: the real images.
        judge_recall: percent of a class's real test images that the judges must recognise, else not recognising samples says
            nothing; None asks for nothing.

    Raises:
        InputError: the evidence does not record how it was measured, or the data are not at hand.
    """
    if not options.remeasure:
        return [Gate("measured again", "no: remeasure=false", "-", OFF)], f"Nothing was measured again. {TRUSTED}"
    draw, dataset = Draw.of(diffusion, case.evidence), options.load(case.evidence)
    print(f"measuring again: {draw}", flush=True)
    loaded = judges(dataset, _judge_config(case.evidence), device=str(diffusion.device))
    labels = draw.labels
    images = to_uint8(sample(diffusion, labels, draw.sampler, seed=draw.seed, progress=True))
    ((probs, _),) = shared_judging.predict(loaded, images, ("reject",))
    answers = probs.argmax(1)
    applied = [
        *_forgotten(case, draw, answers),
        *_retained(case, draw, labels, answers, diffusion.class_names),
        *_judges_know(draw, loaded, judge_recall),
    ]
    same = loaded.digest == case.evidence.get("judges_digest")
    trained = (
        "those of the evidence, with the same weights"
        if same
        else "trained here with the evidence's settings, so their weights differ"
    )
    return applied, f"Measured again: {draw}. The judges are {trained}. {TRUSTED}"


def differs_from_parent(case: Case, address: str) -> Gate:
    """Return the gate on the weights themselves: a version with the weights of one that forgot other classes unlearned nothing."""
    name, threshold = "weights differ from parent's", "no version that forgot other classes has them"
    if case.weights == case.evidence.get("parent_digest"):
        return Gate(name, "the parent's", threshold, FAIL)
    version, client = model_versions.version_of(address), tracking.store()
    others = tracking.search_all(client.search_model_versions, f"name='{version.name}'")
    parent = case.evidence.get("parent")
    if isinstance(parent, str) and model_versions.is_registry_address(parent):
        with contextlib.suppress(InputError):  # deleted since
            others.append(model_versions.version_of(parent))
    for other in others:
        tags = model_versions.tags_of(other)
        forgot = set(filter(None, tags.get("forgotten", "").split(",")))
        if tags.get(model_versions.WEIGHTS) == case.weights and forgot != set(case.forgotten):
            return Gate(name, f"those of {other.name} version {other.version}", threshold, FAIL)
    return Gate(name, case.weights[:12], threshold, PASS)


def _forgotten(case: Case, draw: Draw, answers: Tensor) -> Iterator[Gate]:
    per_group = draw.counts[0]
    for i, (name, labels) in enumerate(draw.groups.items()):
        rows = answers[i * per_group : (i + 1) * per_group]
        hits = int(torch.isin(rows, torch.tensor(labels)).sum())
        stated = number(case.metrics, keys.RECOGNISED + keys.HIGH) if i == 0 else _earlier(case, name)
        low, _ = wilson(hits, per_group)
        shown = f"{hits} of {per_group} recognised, at least {low:.3g} %"
        yield _compared(f"measured again, {name}", shown, "<=", stated, stated is not None and low <= stated)


def _earlier(case: Case, name: str) -> float | None:
    shares = (case.evidence.get("earlier") or {}).get(name.removesuffix(" (earlier)"))
    return number(shares, "recognised_high") if isinstance(shares, Mapping) else None


def _retained(case: Case, draw: Draw, labels: Tensor, answers: Tensor, class_names: tuple[str, ...]) -> Iterator[Gate]:
    if not draw.retained:
        return
    rows = torch.isin(labels, torch.tensor(draw.retained))
    right, stated = (answers == labels)[rows], number(case.metrics, keys.ACCURACY + keys.LOW)
    shown, high = _share(right)
    yield _compared("measured again, retained", shown, ">=", stated, stated is not None and high >= stated)
    measured = max(1.0, number(case.evidence["parameters"], "eval.retain_samples") or 100.0)
    gaps = []
    for k in draw.retained:
        shown, high = _share(right[labels[rows] == k])
        share = number(case.metrics, keys.of_class("accuracy", class_names[k]))
        low = None if share is None else wilson(round(min(max(share, 0), 100) * measured / 100), round(measured))[0]
        gaps.append((-math.inf if low is None else high - low, k, shown, low))
    gap, worst, shown, low = min(gaps)
    yield _compared(f"measured again, {class_names[worst]} (retained)", shown, ">=", low, gap >= 0)


def _share(right: Tensor) -> tuple[str, float]:
    hits, high = int(right.sum()), wilson(int(right.sum()), len(right))[1]
    return f"{hits} of {len(right)} right, at most {high:.3g} %", high


def _judges_know(draw: Draw, loaded: Judges, limit: float | None) -> Iterator[Gate]:
    for name, labels in draw.groups.items():
        known = recall(loaded.about["reject"], [loaded.plain.class_names[k] for k in labels])
        share = 100 * known.hits / max(known.total, 1)
        result = OFF if limit is None else PASS if share >= limit else FAIL
        threshold = "-" if limit is None else f">= {limit:g} %"
        yield Gate(f"judges know {name}", f"{share:.3g} % of real images", threshold, result)


def _compared(name: str, shown: str, sign: str, stated: float | None, agrees: bool) -> Gate:
    if stated is None:
        return Gate(name, shown, "not in the evidence", MISSING)
    return Gate(name, shown, f"{sign} {stated:.4g} % in the evidence", PASS if agrees else FAIL)


def _counts(groups: int, retained: int, steps: int) -> tuple[int, int]:
    """Return images of each group of forgotten classes and of each retained class, within BUDGET but at least 10 and 1."""
    per_group = min(FORGET_IMAGES, MOST * FORGET_IMAGES // groups)
    per_class = min(RETAIN_IMAGES, max(1, MOST * FORGET_IMAGES // max(retained, 1)))
    share = min(1.0, BUDGET / ((groups * per_group + retained * per_class) * steps))
    return max(10, int(per_group * share)), max(1, int(per_class * share))


def _sampler(evidence: Mapping[str, Any]) -> Sampler:
    text = _parameter(evidence, "eval.sampler")
    parts = _SAMPLER.fullmatch(text)
    if parts is None:
        raise InputError(f"the evidence records no known sampler (eval.sampler = {text[:60]!r}); {_WITHOUT}")
    name, steps, eta, guidance, clip = parts.groups()
    try:
        return Sampler(name, int(steps), float(guidance), float(eta or 0), clip == "clip")
    except ValueError as error:
        raise InputError(f"the evidence records no sampler that can be used: {error}; {_WITHOUT}") from None


def _judge_config(evidence: Mapping[str, Any]) -> JudgeConfig:
    """Return how the judges were chosen; the network of the standard FID is left out, since FID is not measured again."""
    stated = evidence.get("judging")
    if not isinstance(stated, Mapping):
        raise InputError(f"the evidence does not record its judges (judging); {_WITHOUT}")
    known = {each.name: type(each.default) for each in fields(JudgeConfig)}
    if any(type(value) is not known.get(key) for key, value in stated.items()):
        raise InputError(f"the evidence records judges that this version does not know: {stated}; {_WITHOUT}"[:300])
    return JudgeConfig(**{**stated, "inception": "none"})


def _parameter(evidence: Mapping[str, Any], key: str) -> str:
    parameters = evidence.get("parameters")
    value = parameters.get(key) if isinstance(parameters, Mapping) else None
    if not isinstance(value, str):
        raise InputError(f"the evidence does not record {key}; {_WITHOUT}")
    return value
