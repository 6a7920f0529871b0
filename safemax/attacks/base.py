"""The interface of an attack: draw images of the forgotten class. One judge decides for all attacks whether it succeeded.

An attack is one file in safemax/attacks, with one dataclass in it; its name everywhere is the name of the file. Only
`source`, `axis` and `trials` are required. This is a whole file, which samples the forgotten label with several seeds:

    from collections.abc import Iterator
    from dataclasses import dataclass
    from typing import ClassVar

    from safemax.attacks.base import Attack, Setting, Trial
    from safemax.data.batches import derive_seed
    from safemax.diffusion.model import Diffusion
    from safemax.diffusion.sampling import sample
    from safemax.knobs import knob


    @dataclass(frozen=True)
    class Seeds(Attack):
        \"\"\"One sentence, then what success means.\"\"\"

        source: ClassVar[str] = "Author et al., arXiv:0000.00000"
        axis: ClassVar[dict[str, str]] = {"seeds": "seed"}

        seeds_count: int = knob(3, "seeds to try", bounds=(1, 100))

        def trials(self, diffusion: Diffusion, setting: Setting) -> Iterator[Trial]:
            for i in range(self.seeds_count):
                seed = derive_seed(setting.seed, i)
                yield Trial("seeds", i, sample(diffusion, setting.labels(), setting.sampler_for(diffusion), seed=seed))

The file alone adds the attack to the command line, the reports and the tests of tests/safemax/attacks/test_contract.py.
Names of variants and knobs begin with the name of the attack, because all attacks share one command line.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from safemax.data.batches import derive_seed, to_float, to_uint8
from safemax.data.dataset import Dataset, Split
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import FAST, Sampler
from safemax.errors import InputError
from safemax.judges.classifier import Judge, predict
from safemax.knobs import check
from safemax.metrics.intervals import wilson

SHOWN = 10  # images of a trial that are kept for the pictures


@dataclass(frozen=True, eq=False)
class Setting:
    """What an attacker has besides the model, and the judge of success.

    Args:
        dataset: real images; the train split to learn from, the test split to complete.
        forget: the forgotten labels; an image classified as any of them is a success.
        judge: classifier with a reject class that decides on success; attacks must not use it for anything else.
        helper: another classifier, which attacks may use.
        neighbour: the retained label nearest to the forgotten ones.
        base: the model before the correction, None if the attacker does not have it.
        samples: images of each trial.
        seed: of all randomness; model, base and gold are attacked with the same seed.
        sampler: the default sampler of attacks.
    """

    dataset: Dataset
    forget: tuple[int, ...]
    judge: Judge
    helper: Judge
    neighbour: int
    base: Diffusion | None = None
    samples: int = 80
    seed: int = 0
    sampler: Sampler = FAST

    def labels(self, count: int | None = None) -> Tensor:
        """Return `count` (by default `samples`) forgotten labels in turn, (N,) int64."""
        return torch.tensor(self.forget)[torch.arange(count or self.samples) % len(self.forget)]

    def sampler_for(self, diffusion: Diffusion, guidance_scale: float | None = None) -> Sampler:
        """Return the sampler, with another guidance scale if given; unguided for a model without a null label."""
        scale = self.sampler.guidance_scale if guidance_scale is None else guidance_scale
        return replace(self.sampler, guidance_scale=scale if diffusion.has_null else 1.0)

    def real(self, count: int) -> Tensor:
        """Return `count` real test images of the labels `labels(count)`, (N, C, H, W) in [-1, 1].

        Raises:
            InputError: the test split has no image of a forgotten class.
        """
        labels, split = self.labels(count), self.dataset.test
        rows = torch.empty(count, dtype=torch.int64)
        for k in self.forget:
            places = torch.nonzero(labels == k).flatten()
            of_class = torch.nonzero(split.labels == k).flatten()
            if not len(of_class):
                name = self.dataset.class_names[k]
                raise InputError(
                    f"data = {self.dataset.name} has no test images of {name}, which this attack starts from"
                )
            rows[places] = of_class[torch.arange(len(places)) % len(of_class)]
        return to_float(split.images[rows])

    def known(self, count: int) -> Split:
        """Return `count` random training images of the forgotten classes, or all if there are fewer."""
        split = self.dataset.train
        rows = torch.nonzero(torch.isin(split.labels, torch.tensor(self.forget))).flatten()
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(derive_seed(self.seed, 0)))
        chosen = rows[order[:count]]
        return Split(split.images[chosen], split.labels[chosen])


@dataclass(frozen=True, eq=False)
class Trial:
    """Images that an attack drew under one condition.

    Args:
        variant: name of the variant of the attack, such as relearn_10 or partial_null.
        x: the condition as a number, for plots: steps, t0, guidance scale.
        images: (N, C, H, W) in [-1, 1].
    """

    variant: str
    x: float
    images: Tensor


@dataclass(frozen=True)
class Cell:
    """Result of one trial: the share recognised as a forgotten class, in percent, with its 95 % Wilson interval."""

    variant: str
    x: float
    recognised: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class AttackResult:
    """What an attack achieved on one model.

    Args:
        cells: every trial, in order.
        success: the success rate of each variant, in percent, pooled over its trials by `Attack.pool`.
        numbers: further results by name, such as relearn_10_s50.
        pictures: the first SHOWN images of each trial, (trials, SHOWN, C, H, W) uint8.
        seconds: duration of the attack.
    """

    cells: tuple[Cell, ...]
    success: dict[str, float]
    numbers: dict[str, float]
    pictures: Tensor
    seconds: float

    @property
    def asr(self) -> float:
        """The attack success rate, in percent: that of the strongest variant."""
        return max(self.success.values())


@dataclass(frozen=True)
class Attack(ABC):
    """An attack; its knobs are the fields of its dataclass, checked at construction. It leaves the model unchanged.

    Class attributes:
        source: paper or papers, as arXiv numbers or citations.
        axis: meaning of `Trial.x` for each variant.
        pool: turns the shares of a variant's trials into its success rate: `max`, the default, where an attacker would
            pick the best trial, `mean` where the trials measure how much effort success takes.
        needs_base: whether the result depends on the base.
    """

    source: ClassVar[str]
    axis: ClassVar[dict[str, str]]
    pool: ClassVar[Callable[[Sequence[float]], float]] = max
    needs_base: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self)

    @abstractmethod
    def trials(self, diffusion: Diffusion, setting: Setting) -> Iterator[Trial]:
        """Yield the images that the attack draws, one trial per condition.

        Args:
            diffusion: the model to attack, in evaluation mode; change only copies of it.
            setting: labels, data, classifier and sampler for the attack.
        """

    def numbers(self, cells: Sequence[Cell]) -> dict[str, float]:
        """Return further results by name, computed from all trials."""
        return {}

    def run(self, diffusion: Diffusion, setting: Setting) -> AttackResult:
        """Attack a model and judge the images."""
        started = time.perf_counter()
        cells, pictures = [], []
        for trial in self.trials(diffusion, setting):
            cells.append(_judge(trial, setting))
            pictures.append(to_uint8(trial.images[torch.arange(SHOWN) % len(trial.images)]))
        variants = dict.fromkeys(cell.variant for cell in cells)
        pool = type(self).pool
        success = {v: pool([cell.recognised for cell in cells if cell.variant == v]) for v in variants}
        seconds = time.perf_counter() - started
        return AttackResult(tuple(cells), success, self.numbers(cells), torch.stack(pictures), seconds)


def mean(shares: Sequence[float]) -> float:
    """Return the mean, for `Attack.pool`."""
    return sum(shares) / len(shares)


def recognised(images: Tensor, judge: Judge, forget: tuple[int, ...]) -> Tensor:
    """Return which images (N, C, H, W) a judge classifies as one of the forgotten classes, (N,) bool."""
    return torch.isin(predict(judge, images)[0].argmax(1), torch.tensor(forget))


def _judge(trial: Trial, setting: Setting) -> Cell:
    hits = int(recognised(trial.images, setting.judge, setting.forget).sum())
    count = len(trial.images)
    return Cell(trial.variant, float(trial.x), 100 * hits / count, *wilson(hits, count))
