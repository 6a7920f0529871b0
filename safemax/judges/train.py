"""How judges are trained: a recipe an architecture; a third of every batch are negative images where they may reject."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from safemax.data.batches import to_float
from safemax.data.dataset import Dataset
from safemax.errors import InputError, NonFiniteError
from safemax.judges.classifier import Judge
from safemax.judges.networks import ResNet34, Whitened
from safemax.judges.recipes import REJECT_SHARE, Recipe, planned_steps, rate, recipe_of
from safemax.judges.training_images import Passes, draw, negatives_of, on, varied
from safemax.progress import bar
from safemax.storage import checkpoint
from safemax.storage.checkpoint import Checkpoint

WHITENED_ON = 5000  # images whose patches set a whitening layer
SAVE_EVERY = 30.0  # seconds between checkpoints
TIMED_STEPS = 5  # after which the time left is said, the first one apart


def train_judge(
    dataset: Dataset,
    arch: str = "small",
    *,
    reject: bool = False,
    steps: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = True,
    pretrained: str | None = None,
    checkpoints: Path | None = None,
    title: str = "",
) -> Judge:
    """Train a judge on a data set's real training images; the same arguments give the same weights.

    Args:
        dataset: its train split, class names and image shape are used; flips where it is natural.
        arch: a name of networks.ARCHITECTURES.
        reject: add the class "none of these", trained on a third of every batch (see negative_images).
        steps: optimizer steps; None takes the recipe's epochs, at least 400 steps, and half as many more with reject, so
            that as many real images are seen.
        batch_size: rows a step, negative images among them; None takes the recipe's.
        lr: of the body, the head's in the recipe's proportion; None takes the recipe's.
        seed: of weights, batches and negative images.
        device: where it trains and stays.
        progress: whether to say what it costs, and show a bar.
        pretrained: folder or hub id of ImageNet weights, for resnet34 only.
        checkpoints: folder of this very training; what is in it is resumed, and a stop loses at most 30 seconds.
        title: what the bar is called; judge and the architecture where it is empty.

    Raises:
        InputError: unknown arch, or pretrained weights that do not fit it.
        NonFiniteError: training diverged.
    """
    recipe = recipe_of(arch, lr, pretrained, batch_size)
    judge = _untrained(dataset, arch, reject, seed, pretrained).to(device).train()
    total = steps or planned_steps(recipe, len(dataset.train), reject)
    training = _Training(judge, dataset, recipe, reject, seed, total)
    training.run(checkpoints, progress, title or f"judge {arch}")
    if not all(p.isfinite().all() for p in judge.parameters()):
        raise NonFiniteError(f"the judge {arch} diverged in {total} steps at lr = {recipe.lr:g}")
    return judge.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]  # as it is loaded again


class _Training:
    """A judge under training: what changes from step to step, and its checkpoints."""

    def __init__(self, judge: Judge, dataset: Dataset, recipe: Recipe, reject: bool, seed: int, total: int) -> None:
        self.judge, self.recipe, self.reject, self.total = judge, recipe, reject, total
        self.device = next(judge.parameters()).device
        self.optimizer = _optimizer(judge, recipe)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.weight = _weight(dataset, self.device) if reject and dataset.natural else None
        self.generator = torch.Generator(self.device if recipe.passes else "cpu").manual_seed(seed)
        self.passes: Passes | None = None
        if recipe.passes:
            judge.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            dataset = on(dataset, self.device)
            self.passes = Passes(dataset, seed)
        self.dataset = dataset

    def run(self, checkpoints: Path | None, progress: bool, title: str) -> None:
        """Take the steps that no checkpoint has taken."""
        done = self._resume(checkpoints)
        steps = bar(range(done, self.total), shown=progress, initial=done, total=self.total, desc=title)
        saved = started = time.monotonic()
        for step in steps:
            self._step(step)
            if step == done:  # the first step prepares kernels
                started = time.monotonic()
            if not steps.disable and step == done + TIMED_STEPS:
                steps.write(self._cost((time.monotonic() - started) / TIMED_STEPS, step), file=sys.stderr)
            if checkpoints and time.monotonic() - saved > SAVE_EVERY:
                self._save(checkpoints, step + 1)
                saved = time.monotonic()

    def _step(self, step: int) -> None:
        share = rate(self.recipe, step, self.total)
        for group, highest in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = highest * share
        x, y = self._draw(step)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.passes and _has_bf16(self.device)):
            logits = self.judge(x)
        self.optimizer.zero_grad()
        F.cross_entropy(logits.float(), y, self.weight, label_smoothing=self.recipe.smoothing).backward()
        self.optimizer.step()

    def _draw(self, step: int) -> tuple[Tensor, Tensor]:
        recipe = self.recipe
        if self.passes is None:
            x, y = draw(self.dataset, recipe.batch_size, recipe.shift, self.reject, self.generator)
            return x.to(self.device), y.to(self.device)
        x0, y = self.passes.rows(step, recipe.batch_size - negatives_of(recipe.batch_size, self.reject))
        x, y = varied(self.dataset, x0, x0, y, recipe.batch_size, recipe.shift, self.generator)
        return x.contiguous(memory_format=torch.channels_last), y

    def _cost(self, seconds: float, step: int) -> str:
        minutes = seconds * (self.total - step) / 60
        return (
            f"judge {self.judge.arch} for {self.dataset.name}: {self.total:,} steps of {self.recipe.batch_size} images, about "
            f"{minutes:.2g} minutes left on this {self.device.type}; trained once, then reused; a stop loses at most "
            f"{SAVE_EVERY:.0f} s"
        )

    def _save(self, folder: Path, step: int) -> None:
        tensors = {f"judge.{name}": tensor for name, tensor in self.judge.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
        checkpoint.write(folder, Checkpoint(step, {**tensors, "generator": self.generator.get_state()}, {}))

    def _resume(self, folder: Path | None) -> int:
        saved = checkpoint.newest(folder) if folder else None
        if saved is None:
            return 0
        self.judge.load_state_dict(_part(saved.tensors, "judge."))
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _part(saved.tensors, "optimizer.").items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        self.generator.set_state(saved.tensors["generator"])
        return saved.step


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _has_bf16(device: torch.device) -> bool:
    """Return whether a device computes in bf16 faster than in float32; a CPU's own instructions halve the time."""
    return device.type == "cuda" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _untrained(dataset: Dataset, arch: str, reject: bool, seed: int, pretrained: str | None) -> Judge:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = Judge(arch, dataset.class_names, dataset.image_shape, reject=reject)
    if isinstance(judge.network, Whitened):
        judge.network.whiten(to_float(dataset.train.images[:WHITENED_ON]))
    if pretrained is None:
        return judge
    if not isinstance(judge.network, ResNet34):
        raise InputError(f"pretrained = {pretrained!r} is for arch resnet34; {arch} trains from random weights")
    judge.network.load_pretrained(pretrained)
    return judge


def _weight(dataset: Dataset, device: str | torch.device) -> Tensor:
    """Return a weight of each answer's loss by which "none of these" counts as one class does, not as a third of all.

    With that third as its prior a ResNet-20 rejects 2 % of real CIFAR-10 images (7 % of airplanes, 5 % of birds), as their
    mixtures look alike; with the prior of one class 0.1 %. Digits lose nothing to the third, which catches more.
    """
    none = (1 - REJECT_SHARE) / (REJECT_SHARE * dataset.num_classes)
    return torch.tensor([1.0] * dataset.num_classes + [none], device=device)


def _optimizer(judge: Judge, recipe: Recipe) -> torch.optim.Optimizer:
    head = list(judge.network.linear.parameters())
    body = [p for name, p in judge.network.named_parameters() if not name.startswith("linear.") and p.requires_grad]
    groups = [{"params": body, "lr": recipe.lr}, {"params": head, "lr": recipe.head_lr}]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            groups, momentum=recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov
        )
    return torch.optim.Adam(groups, weight_decay=recipe.weight_decay)
