"""What a step of SAFEMax costs compared with a bare forward, backward and Adam step of the same denoiser on as many rows.

python -m benchmarks.step             both sizes: digits, and CIFAR-10 with 8 rows on a CPU or 128 on a GPU
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pandas as pd
import torch

from benchmarks import tables
from safemax.data.dataset import Split
from safemax.diffusion.model import Diffusion
from safemax.methods import create
from safemax.training.method import Method
from safemax.training.settings import Training
from safemax.training.trainer import Trainer

ROUNDS = 15


def bare(diffusion: Diffusion, rows: int) -> Callable[[], object]:
    """Return the floor, a step on the same tensors each time: no noise is drawn, no batch made, no gradient clipped."""
    x, t = torch.randn(rows, *diffusion.image_shape, device=diffusion.device), diffusion.times(rows)
    c = torch.zeros(rows, dtype=torch.int64, device=diffusion.device)
    optimizer = torch.optim.AdamW(diffusion.parameters(), lr=1e-6, weight_decay=0.0, fused=True)
    diffusion.train()

    def step() -> None:
        (diffusion(x, t, c) - x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def ours(diffusion: Diffusion, method: Method, rows: int) -> Callable[[], object]:
    """Return the trainer's own step: batch, seeds, noise, losses, backward, clipping, finite check, Adam."""
    channels, side, _ = diffusion.image_shape
    labels = torch.arange(1000) % diffusion.num_classes
    split = Split(torch.randint(0, 256, (1000, channels, side, side)).to(torch.uint8), labels)
    training = Training(batch_size=rows, lr=1e-6, device=diffusion.device.type)
    trainer = Trainer(diffusion, method, split, (0,), training)
    trainer.prepare()
    return trainer.step


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call."""
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def compare(name: str, architecture: str, shape: tuple[int, int, int], rows: int) -> dict[str, object]:
    """Time both in turn, so that other load on the machine affects both."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = [Diffusion.create(architecture, shape, tuple("0123456789")).to(device) for _ in range(2)]
    steps = [bare(models[0], rows), ours(models[1], create("safemax"), rows)]
    times: list[list[float]] = [[], []]
    for turn in range(ROUNDS + 2):
        for i, step in enumerate(steps):
            seconds = seconds_of(step, models[0].device)
            if turn >= 2:
                times[i].append(seconds)
    floor, trained = (1000 * statistics.median(each) for each in times)
    return {"size": name, "rows": rows, "floor ms": floor, "SAFEMax ms": trained, "ratio": trained / floor}


def main() -> None:
    """Run both sizes and write the table."""
    cifar_rows = 128 if torch.cuda.is_available() else 8
    rows = [compare("digits 8x8", "small", (1, 8, 8), 128), compare("CIFAR-10 32x32", "ddpm", (3, 32, 32), cifar_rows)]
    name = "step-gpu" if torch.cuda.is_available() else "step-cpu"
    tables.write(name, "A step of SAFEMax compared with its floor", pd.DataFrame(rows).set_index("size"))


if __name__ == "__main__":
    main()
