"""How fast the sampler draws and judges judge on this card, in each arithmetic that they offer."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pandas as pd
import torch

from benchmarks.gpu.stage import COMPILING, Stage
from benchmarks.official import BenchmarkOptions
from safemax.diffusion import arithmetic, layout
from safemax.diffusion.sampling import FAST, sample
from safemax.judges.classifier import Judge, predict

# How the denoiser computes: the arithmetic of a draw, and whether its weights lie channels last.
EAGER = ((arithmetic.EXACT, False), (arithmetic.BF16, False), (arithmetic.BF16, True))
COMPILED = ((arithmetic.COMPILED, False), (arithmetic.COMPILED, True))
JUDGED = 10_000  # images, as many as CIFAR-10 tests by
REMARK = (
    "{count} images, {sampler}: {steps} steps, two rows an image for guidance, {count} images together. set-up: what the first "
    "draw took more than the second, compilation included."
)


@dataclass
class Drawing:
    """The draws measured so far."""

    stage: Stage
    options: BenchmarkOptions
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Images of a draw."""
        return 2 if self.stage.rehearse else 500

    def eager(self) -> None:
        """Measure the draws that compile nothing."""
        self._measure(EAGER, 0.0)

    def compiled(self) -> None:
        """Measure those that compile the denoiser, as far as the time allows."""
        if self.stage.rehearse:
            self._measure(COMPILED[:1], 0.0)
        else:
            self._measure(COMPILED, COMPILING)

    def _measure(self, ways: tuple[tuple[str, bool], ...], needs: float) -> None:
        for computed, last in ways:
            task = f"sampling, {computed}{', channels_last' if last else ''}"
            self.stage.attempt(task, partial(self._add, task.removeprefix("sampling, "), computed, last), needs=needs)

    def _add(self, name: str, computed: str, channels_last: bool) -> None:
        model = self.options.diffusion()
        layout.lay_out(model.denoiser, channels_last=channels_last)
        labels = torch.arange(self.count) % model.num_classes
        draw = partial(sample, model, labels, FAST, seed=0, batch_size=self.count, computed=computed)
        first, seconds = _seconds(draw), _seconds(draw)  # images are on the CPU: nothing is left to wait for
        row = {"computed": name, "images/s": self.count / seconds, "forwards/s": FAST.passes * self.count / seconds}
        self.rows.append({**row, "s": seconds, "set-up s": first - seconds})
        remark = REMARK.format(count=self.count, sampler=FAST, steps=FAST.steps)
        self.stage.table("sampling", "Sampling", pd.DataFrame(self.rows).set_index("computed"), remark, digits=2)

    def row_of(self, name: str) -> dict[str, Any]:
        """Return the row of a way to draw; {} where it was not measured."""
        return next((row for row in self.rows if row["computed"] == name), {})


def judging(stage: Stage) -> None:
    """Time what judges take for as many images as CIFAR-10 tests by: product judges compute in float32."""
    count = 8 if stage.rehearse else JUDGED
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images, rows = torch.rand(count, 3, 32, 32) * 2 - 1, []
    for arch in ("resnet20",) if stage.rehearse else ("whitened_wide", "resnet56"):
        judge = Judge(arch, tuple("0123456789"), (3, 32, 32)).to(device)
        for bf16 in (False, True):
            with torch.autocast(device, torch.bfloat16) if bf16 else contextlib.nullcontext():
                judged = partial(predict, judge, images)
                first, seconds = _seconds(judged), _seconds(judged)
            row = {"judge": arch, "precision": "bf16" if bf16 else "fp32", "images/s": count / seconds}
            rows.append({**row, "s": seconds, "set-up s": first - seconds})
    stage.table(
        "judging", "Judging", pd.DataFrame(rows).set_index("judge"), f"{count} images of 32x32, untrained judges."
    )


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
