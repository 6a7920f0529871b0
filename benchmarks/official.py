"""SalUn and SA in the official codes' order of operations compared with ours, and SAFEMax: time of a step, bytes for backward.

python -m benchmarks.official                         digits 8x8, 128 forget and 128 retain rows
python -m benchmarks.official --size=cifar --rows=8   the CIFAR-10 network on a CPU; 128 rows on a GPU

The official orders are written from a description of those codes, not copied from them.
Both sides run the same denoiser on the same rows in the same process, in turn. What else the official loops do, pictures on
the way and a moving average of the weights, is left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from benchmarks import tables
from benchmarks.saved import SavedBytes
from benchmarks.step import seconds_of
from pipelines.cli.parser import main, parse
from safemax.data.batches import Batch, Batches
from safemax.data.dataset import Split
from safemax.diffusion.model import Diffusion
from safemax.knobs import check, knob
from safemax.methods import create
from safemax.training.settings import Training
from safemax.training.trainer import Trainer

Step = Callable[[], Any]
SIZES = {"digits": ("small", (1, 8, 8)), "cifar": ("ddpm", (3, 32, 32))}
CHEAP: dict[str, dict[str, Any]] = {
    "salun": {"mask_batches": 1},
    "selective_amnesia": {"replay_images": 1, "replay_steps": 1, "fisher_images": 1, "fisher_times": 2},
}


@dataclass(frozen=True)
class BenchmarkOptions:
    """How much to run."""

    size: str = knob("digits", "the digits' network, or the DDPM of CIFAR-10", choices=tuple(SIZES))
    rows: int = knob(128, "forget rows of a step, and as many retain rows", bounds=(2, 100_000))
    rounds: int = knob(9, "steps of each that are timed, in turn, after one that is not", bounds=(1, 10_000))

    def __post_init__(self) -> None:
        check(self)

    def diffusion(self) -> Diffusion:
        """Return an untrained model."""
        architecture, shape = SIZES[self.size]
        torch.manual_seed(0)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return Diffusion.create(architecture, shape, tuple("0123456789")).to(device)

    def split(self) -> Split:
        """Return random images: their content does not affect the cost."""
        _, (channels, side, _) = SIZES[self.size]
        images = torch.randint(0, 256, (40 * self.rows, channels, side, side), dtype=torch.uint8)
        return Split(images, torch.arange(len(images)) % 10)


def pixel_sum(diffusion: Diffusion, x0: Tensor, t: Tensor, c: Tensor) -> Tensor:
    """Return the official loss: summed over pixels, averaged over rows."""
    eps = torch.randn_like(x0)
    return (eps - diffusion(diffusion.diffuse(x0, t, eps), t, c)).square().sum((1, 2, 3)).mean(0)


def official_step(
    diffusion: Diffusion, optimizer: torch.optim.Optimizer, loss: Tensor, mask: Sequence[Tensor] = ()
) -> None:
    """Take the official step: zero_grad, backward, clip, then the mask from the host, a tensor at a time."""
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
    for p, keep in zip(diffusion.parameters(), mask, strict=False):
        p.grad *= keep.to(p.device)  # type: ignore[operator]  # every weight has a gradient
    optimizer.step()


def official_salun(diffusion: Diffusion, batches: Callable[[int], Batch]) -> Step:
    """Retain, own and target pass, all with a graph; the target is detached when all three are alive; int64 mask."""
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-4)
    mask = [torch.randint(0, 2, p.shape) for p in diffusion.parameters()]
    diffusion.train()

    def step() -> None:
        forget, retain = batches(0).forget, batches(0).retain
        retain_loss = pixel_sum(
            diffusion, retain.x0, diffusion.times(len(retain)), diffusion.drop_labels(retain.c, 0.1)
        )
        t = diffusion.times(len(forget))
        x_t = diffusion.diffuse(forget.x0, t, torch.randn_like(forget.x0))
        own = diffusion(x_t, t, diffusion.drop_labels(forget.c, 0.1))
        target = diffusion(x_t, t, diffusion.drop_labels((forget.c + 1) % diffusion.num_classes, 0.1))
        loss = torch.nn.functional.mse_loss(own, target.detach()) + 1e-3 * retain_loss
        official_step(diffusion, optimizer, loss, mask)

    return step


def official_selective_amnesia(diffusion: Diffusion, batches: Callable[[int], Batch]) -> Step:
    """Surrogate and replay pass, both graphs alive, and the elastic term in the graph, a tensor at a time."""
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-4)
    fisher = [torch.rand_like(p) for p in diffusion.parameters()]
    theta_star = [p.detach().clone() for p in diffusion.parameters()]
    diffusion.train()

    def step() -> None:
        forget, retain = batches(0).forget, batches(0).retain
        t = diffusion.times(len(forget))
        loss = pixel_sum(diffusion, torch.rand_like(forget.x0) * 2 - 1, t, forget.c)
        loss = loss + 1.0 * pixel_sum(diffusion, retain.x0, t, retain.c)
        for p, f, star in zip(diffusion.parameters(), fisher, theta_star, strict=True):
            loss = loss + 10.0 * (f * (p - star) ** 2).sum()
        official_step(diffusion, optimizer, loss)

    return step


def official(
    build: Callable[[Diffusion, Callable[[int], Batch]], Step], options: BenchmarkOptions
) -> tuple[Diffusion, Step]:
    """Return a model and its official step."""
    diffusion = options.diffusion()
    n = options.rows
    return diffusion, build(
        diffusion, Batches(options.split(), (0,), forget_size=n, retain_size=n, seed=0, device=diffusion.device)
    )


def ours(name: str, options: BenchmarkOptions, rows: int) -> tuple[Diffusion, Step]:
    """Return a model and the trainer's own step of a method on `rows` rows in all; its prior is as cheap as possible."""
    diffusion = options.diffusion()
    training = Training(batch_size=rows, device=diffusion.device.type)
    trainer = Trainer(diffusion, create(name, **CHEAP.get(name, {})), options.split(), (0,), training)
    trainer.prepare()
    return diffusion, trainer.step


def entries(options: BenchmarkOptions) -> dict[str, tuple[Callable[[], tuple[Diffusion, Step]], str]]:
    """Return what is compared, by name: a function that builds it, and the name of what it is compared with."""
    both, half = 2 * options.rows, options.rows
    return {
        "SalUn, official order": (lambda: official(official_salun, options), ""),
        "SalUn": (lambda: ours("salun", options, both), "SalUn, official order"),
        "SA, official order": (lambda: official(official_selective_amnesia, options), ""),
        "SA": (lambda: ours("selective_amnesia", options, both), "SA, official order"),
        "SAFEMax": (lambda: ours("safemax", options, both), "SalUn, official order"),
        "SAFEMax, half the rows": (lambda: ours("safemax", options, half), "SalUn, official order"),
    }


def memory_of(build: Callable[[], tuple[Diffusion, Step]]) -> tuple[float, float]:
    """Return a step's bytes for backward and, on a GPU, its peak of allocated memory, in units of 1e9 bytes."""
    diffusion, step = build()
    step()
    saved = SavedBytes(diffusion.parameters()).during(step)
    if diffusion.device.type != "cuda":
        return saved / 1e9, float("nan")
    torch.cuda.reset_peak_memory_stats()
    step()
    return saved / 1e9, torch.cuda.max_memory_allocated() / 1e9


def times_of(options: BenchmarkOptions) -> dict[str, list[float]]:
    """Return the seconds of each step, all in turn, so that what disturbs the machine disturbs all."""
    built = {name: build() for name, (build, _) in entries(options).items()}
    seconds: dict[str, list[float]] = {name: [] for name in built}
    for turn in range(options.rounds + 1):
        for name, (diffusion, step) in built.items():
            taken = seconds_of(step, diffusion.device)
            seconds[name] += [taken] if turn else []
    return seconds


def table(options: BenchmarkOptions) -> pd.DataFrame:
    """Return time and memory of each entry, and its ratios to what it is compared with."""
    memory = {name: memory_of(build) for name, (build, _) in entries(options).items()}
    seconds = times_of(options)
    rows = []
    for name, (_, other) in entries(options).items():
        ratios = [one / two for one, two in zip(seconds[name], seconds[other or name], strict=True)]
        rows.append(
            {
                "step": name,
                "ms": 1000 * statistics.median(seconds[name]),
                "ms ratio": statistics.median(ratios),
                "saved GB": memory[name][0],
                "saved ratio": memory[name][0] / memory[other or name][0],
                "peak GB": memory[name][1],
                "peak ratio": memory[name][1] / memory[other or name][1],
            }
        )
    frame = pd.DataFrame(rows).set_index("step")
    return frame if torch.cuda.is_available() else frame.drop(columns=["peak GB", "peak ratio"])


def run(argv: Sequence[str]) -> None:
    """Compare and write the table."""
    options = parse("python -m benchmarks.official", __doc__ or "", {"options": BenchmarkOptions}, argv)["options"]
    title = (
        f"{options.size}, {options.rows} forget and {options.rows} retain rows: official order of operations and ours"
    )
    remark = (
        "SA is compared with SA, all others with SalUn, each in the official order. A ratio of ms is the median over turns; "
        "saved is the most memory that autograd holds for backward at once, without the weights. Of SAFEMax's rows, half are "
        "forget rows, also with half the rows."
    )
    device = "gpu" if torch.cuda.is_available() else "cpu"
    tables.write(f"official-{options.size}-{device}", title, table(options), remark)


if __name__ == "__main__":
    main(run)
