"""One trial: the calls that pipelines/correction.py makes, on what a worker loads once, and the scores that are searched."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.cli.options import DataOptions
from safemax.data.batches import derive_seed, to_float
from safemax.data.dataset import Dataset
from safemax.diffusion.model import Diffusion
from safemax.evaluation.measure import SHOWN, Evaluation, Samples, cached_samples, draw, measure
from safemax.judges.load import JudgeConfig, judges, reference
from safemax.methods import create
from safemax.reports.images_and_tables import grid
from safemax.storage import cache, checkpoint
from safemax.storage.checkpoint import Checkpoint
from safemax.training.trainer import Log, Training, accelerate, fit

QUALITIES = {"fid": "retain/fid_judge", "kid": "retain/kid"}
# A smaller probability says more of the tails of the judges' softmax than of the images. Without a floor the front fills with
# trials that differ in the tenth digit after the point, each of them to be measured again.
FLOOR = 1e-6
_LEAST = 1e-9  # of a base that is the real images
CHECKS = (50, 75)  # percent of a trial's steps at which it may be given up; earlier, a large lr has not settled
_PROBED = 64  # forget rows, and as many retained ones, of the probe

Report = Callable[[int, float, float], bool]


class Pruned(Exception):
    """The trial was given up on the way."""


@dataclass(frozen=True)
class TrialConfig:
    """What all trials of a search share: plain JSON, since it reaches a worker as text.

    Args:
        data: source of the real images, and the side they are resized to (0 keeps theirs).
        size: see data.
        base: folder of the model to correct.
        forget: labels to forget.
        earlier: labels that the model to correct has forgotten before: neither trained on nor measured.
        method: name of the method.
        knobs: the values of the method's knobs, by field; a trial changes those that are searched.
        training: likewise, of safemax.training.trainer.Training.
        evaluation: of safemax.evaluation.Evaluation; the same seeds for every trial (common random numbers).
        judging: of safemax.judges.load.JudgeConfig.
        quality: fid or kid.
        folder: where trials keep their checkpoints, weights and pictures.
        prune: whether trials report on the way and may be given up.
    """

    data: str
    size: int
    base: str
    forget: list[int]
    earlier: list[int]
    method: str
    knobs: dict[str, Any]
    training: dict[str, Any]
    evaluation: dict[str, Any]
    judging: dict[str, Any]
    quality: str
    folder: str
    prune: bool = True

    def place(self, number: int, values: Mapping[str, Any]) -> Path:
        """Return a trial's folder: its number for the eye, its values because a study of the same name may be begun anew."""
        return Path(self.folder) / f"trial-{number:04d}-{cache.key(values)[:8]}"


def scores(metrics: Mapping[str, float], base: Mapping[str, float], quality: str) -> dict[str, float]:
    """Return what is searched, each the lower the better.

    Returns:
        forgetting: probability of the forgotten classes under the judges with a reject class, in [FLOOR, 1].
        quality: FID or KID of the retained classes minus the base's.
        joint: (100 - UA_reject) / 100 + max(0, FID / FID_base - 1), the terms joint_forgetting and joint_quality. With KID
            the second is max(0, KID - KID_base) / `unit`: the base's KID may be 0 or below.
        accuracy_drop: retained accuracy lost, in points; the constraint.
        minutes: preparing and unlearning.
    """
    key = QUALITIES[quality]
    unforgotten = (100 - metrics["forget/ua_reject"]) / 100
    damage = max(0.0, metrics[key] - base[key]) / unit(base, quality)
    return {
        "forgetting": max(metrics["forget/probability"], FLOOR),
        "quality": metrics[key] - base[key],
        "joint": unforgotten + damage,
        "joint_forgetting": unforgotten,
        "joint_quality": damage,
        "accuracy_drop": base["retain/accuracy"] - metrics["retain/accuracy"],
        "minutes": metrics.get("cost/setup_minutes", 0.0) + metrics.get("cost/runtime_minutes", 0.0),
    }


def unit(base: Mapping[str, float], quality: str) -> float:
    """Return what counts as one unit of quality lost: the base's own distance from real images, and at least its error.

    KID is unbiased, so that a good base's may be 0 or below; what is lost within its standard error is nothing.
    """
    key = QUALITIES[quality]
    return max(base[key], base.get(f"{key}_se", 0.0), _LEAST)


class Probe:
    """Denoising losses on fixed real images, steps and noise: what a model still knows and what it lost, without sampling."""

    def __init__(self, diffusion: Diffusion, dataset: Dataset, forget: list[int], seed: int) -> None:
        """Fix the rows and measure the model to correct on them."""
        generator = torch.Generator().manual_seed(derive_seed(seed, 0))
        train, wanted = dataset.train, torch.isin(dataset.train.labels, torch.tensor(forget))
        rows = torch.cat([_some(wanted, generator), _some(~wanted, generator)])
        eps = torch.randn(len(rows), *dataset.image_shape, generator=generator)
        # Evenly spread steps, each half of the rows from low to high: a loss at a few random steps says little.
        t = torch.cat([_spread(n, diffusion.T) for n in (int(wanted[rows].sum()), int((~wanted[rows]).sum()))])
        x0, self._t = to_float(train.images[rows]).to(diffusion.device), t.to(diffusion.device)
        self._c, self._eps = train.labels[rows].to(diffusion.device), eps.to(diffusion.device)
        self._x_t = diffusion.diffuse(x0, self._t, self._eps)
        self._forget = wanted[rows].to(diffusion.device)
        self._base_margin, self._base_retain = self._losses(diffusion)

    def __call__(self, diffusion: Diffusion) -> tuple[float, float]:
        """Return knowledge and damage, both 0 at best and compared with the base.

        Knowledge is the share left of the margin by which the label helps to denoise forget images, 1 for the base; damage is
        the relative rise of the retained classes' loss, 0 for the base.
        """
        margin, retain = self._losses(diffusion)
        knowledge = max(0.0, margin / self._base_margin) if self._base_margin > 0 else 0.0
        return knowledge, max(0.0, retain / self._base_retain - 1)

    @torch.no_grad()
    def _losses(self, diffusion: Diffusion) -> tuple[float, float]:
        was_training = diffusion.training
        diffusion.eval()
        f = self._forget
        other = diffusion.null(self._c[f]) if diffusion.has_null else (self._c[f] + 1) % diffusion.num_classes
        known = self._errors(diffusion, self._c)
        blind = (diffusion(self._x_t[f], self._t[f], other) - self._eps[f]).square().mean()
        diffusion.train(was_training)
        return (blind - known[f].mean()).item(), known[~f].mean().item()

    def _errors(self, diffusion: Diffusion, c: Tensor) -> Tensor:
        return (diffusion(self._x_t, self._t, c) - self._eps).square().mean((1, 2, 3))


class TrialContext:
    """What a worker loads once: data, base model, judges, reference statistics; `trial` runs one trial on it."""

    def __init__(self, task: TrialConfig, stop: Callable[[], bool]) -> None:
        self.task, self.stop = task, stop
        dataset = DataOptions(task.data, task.size).load()
        self.forget, self.earlier = tuple(task.forget), tuple(task.earlier)
        self.dataset = replace(dataset, train=dataset.train.without(self.earlier))
        self.evaluation = Evaluation(**task.evaluation)
        device = accelerate(Training(**task.training)).device
        self.diffusion = Diffusion.load(task.base).to(device)
        self.start = {name: value.clone() for name, value in self.diffusion.denoiser.state_dict().items()}
        self.judges = judges(dataset, JudgeConfig(**task.judging), device=str(device), progress=False)
        self.reference = reference(dataset, self.judges).without(self.earlier)
        self.probe = (
            Probe(self.diffusion, self.dataset, task.forget, self.evaluation.evaluation_seed) if task.prune else None
        )
        self.base = self.measure_base(self.evaluation)

    def measure_base(self, evaluation: Evaluation) -> dict[str, float]:
        """Return the metrics of the model to correct; its samples are kept."""
        self._load(self.start)
        return self._measured(cached_samples(self.diffusion, self.forget, evaluation, progress=False))

    def trial(self, number: int, values: Mapping[str, Any], log: Log, report: Report) -> dict[str, float]:
        """Unlearn with a trial's values and measure; weights and a picture stay in its folder.

        Args:
            number: the trial's.
            values: the searched knobs, by field.
            log: gets the losses.
            report: gets percent of the steps, knowledge and damage; True gives the trial up.

        Raises:
            Pruned: `report` gave it up.
            InputError, NonFiniteError, Stopped: as safemax.training.trainer.fit.
        """
        place = self.task.place(number, values)
        cost = self._unlearn(place, values, log, report)
        started = time.perf_counter()
        samples = draw(self.diffusion, self.forget, self.evaluation, shown=1, progress=False)
        metrics = self._measured(samples) | cost
        _picture(samples, self.forget).save(place / "samples.png")
        metrics["cost/evaluation_minutes"] = (time.perf_counter() - started) / 60
        self._keep(place)
        return metrics

    def again(self, number: int, values: Mapping[str, Any], evaluation: Evaluation) -> dict[str, float]:
        """Measure a finished trial by another evaluation; its samples are kept. Without its weights, unlearn again."""
        place = self.task.place(number, values)
        found = checkpoint.newest(place / "weights")
        if found is None:
            self._unlearn(place, values, lambda metrics, step: None, None)
            self._keep(place)
        else:
            self._load({name: value.to(self.diffusion.device) for name, value in found.tensors.items()})
        return self._measured(cached_samples(self.diffusion, self.forget, evaluation, progress=False))

    def _unlearn(self, place: Path, values: Mapping[str, Any], log: Log, report: Report | None) -> dict[str, float]:
        task = self.task
        training = replace(Training(**task.training), **{k: v for k, v in values.items() if k in task.training})
        method = create(task.method, **task.knobs | {k: v for k, v in values.items() if k in task.knobs})
        self._load(self.start)
        result = fit(
            self.diffusion, method, self.dataset.train, self.forget, training,
            flip=self.dataset.natural, log=log, folder=place / "steps", priors=cache.folder("priors"), stop=self.stop,
            each=self._checks(training.steps, report) if report and self.probe else None, progress=False,
        )  # fmt: skip
        return result.cost.metrics() | {f"prior/{name}": value for name, value in method.facts().items()}

    def _checks(self, steps: int, report: Report) -> Callable[[int], None]:
        at = {round(steps * percent / 100): percent for percent in CHECKS}

        def each(done: int) -> None:
            if done in at and done < steps and self.probe and report(at[done], *self.probe(self.diffusion)):
                raise Pruned

        return each

    def _keep(self, place: Path) -> None:
        weights = {name: value.cpu().contiguous() for name, value in self.diffusion.denoiser.state_dict().items()}
        checkpoint.clear(place / "weights")  # a GPU may end at other bytes when a trial is run again
        checkpoint.write(place / "weights", Checkpoint(0, weights, {}))
        checkpoint.clear(place / "steps")

    def _load(self, weights: Mapping[str, Tensor]) -> None:
        self.diffusion.denoiser.load_state_dict(weights)

    def _measured(self, samples: Samples) -> dict[str, float]:
        return measure(samples.without(self.earlier), self.judges, self.reference, self.forget)


def weights_of(task: TrialConfig, number: int, values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights that a trial with these values, by field, ended with; KeyError where this machine keeps none."""
    found = checkpoint.newest(task.place(number, values) / "weights")
    if found is None:
        raise KeyError(number)
    return found.tensors


def settings(evaluation: Evaluation, times: int) -> dict[str, Any]:
    """Return an evaluation with so many times the samples, on seeds that no trial saw."""
    forget, retain = evaluation.counts
    more = replace(
        evaluation,
        forget_samples=forget * times,
        retain_samples=retain * times,
        evaluation_seed=derive_seed(evaluation.evaluation_seed, 1) >> 1,
    )
    return asdict(more)


def _some(mask: Tensor, generator: torch.Generator) -> Tensor:
    rows = torch.nonzero(mask).flatten()
    return rows[torch.randperm(len(rows), generator=generator)[:_PROBED]]


def _spread(n: int, steps: int) -> Tensor:
    return ((torch.arange(n) + 0.5) * steps / n).long()


def _picture(samples: Samples, forget: tuple[int, ...]) -> Any:
    """Return the forgotten classes' first images in the upper rows, a row of each retained class below."""
    order = [*forget, *(k for k in samples.labels.unique().tolist() if k not in forget)]
    return grid(to_float(torch.cat([samples.images[samples.labels == k][:SHOWN] for k in order])), SHOWN)
