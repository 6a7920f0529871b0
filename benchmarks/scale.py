"""What large comparisons and searches cost on 1, 8 and 64 GPUs, and where more GPUs stop to help: a simulation.

python -m benchmarks.scale                      the table in benchmarks/results/scale.md
python -m benchmarks.scale --tflops=300         with a rate that you measured

Operations are counted on the networks themselves (`Cost` of safemax.diffusion.networks.architectures). The rate of a GPU is an
assumption until one was measured: 120 TFLOP/s is an H100 in eager TF32, 300 compiled in bf16. The simulation knows what does not
scale: loading a worker, jobs of unequal length, stages that wait for each other, and the driver, which writes the runs of all
jobs by itself.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import pandas as pd
import torch

from benchmarks import tables
from pipelines.cli.parser import main, parse
from safemax.diffusion.model import Diffusion
from safemax.diffusion.networks.architectures import DIT, Cost, build
from safemax.knobs import check, knob
from safemax.methods import available
from safemax.training.settings import Training

GPUS = (1, 8, 64, 512)
# Forwards of the denoiser that measuring one model takes, guided ones counted twice: docs/scale.md.
FORWARDS = {"fast": 50_000, "paper": 91_000_000}
CLASSES, SEEDS, TRIALS = 10, 3, 40
PAPER_METHODS = 3


@dataclass(frozen=True)
class ScaleOptions:
    """The machine."""

    tflops: float = knob(120.0, "operations that a GPU does in a second, in units of 1e12", bounds=(0.001, 10_000))
    load_seconds: float = knob(30.0, "for a worker to load its context", bounds=(0, 3600))
    driver_seconds: float = knob(1.0, "of the driver for each job: its run, metrics and pictures", bounds=(0, 600))
    link: float = knob(200.0, "bytes that GPUs exchange in a second, in units of 1e9", bounds=(0.1, 10_000))

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Workload:
    """Jobs in stages; a stage begins when the one before has ended.

    Args:
        name: in the table.
        stages: of each stage, the seconds of a GPU that each job takes.
    """

    name: str
    stages: Sequence[Sequence[float]]

    @property
    def gpu_hours(self) -> float:
        """Work of all jobs."""
        return sum(map(sum, self.stages)) / 3600

    def hours(self, gpus: int, options: ScaleOptions) -> float:
        """Return how long the workload takes with a worker on each of so many GPUs."""
        clock = options.load_seconds * (2 if gpus > 1 else 1)  # the first worker loads before the others
        for jobs in self.stages:
            clock = _stage(jobs, gpus, clock, options.driver_seconds)
        return clock / 3600


def _stage(jobs: Iterable[float], workers: int, began: float, driver_seconds: float) -> float:
    """Return when a stage ends: each free worker takes the next job, and the driver serves one job at a time."""
    free, driver, end = [began] * workers, began, began
    ended: list[float] = []
    for seconds in jobs:
        start = heapq.heappop(free)
        while ended and ended[0] <= start:  # the driver writes what ended before it gives out the next job
            driver = max(driver, heapq.heappop(ended)) + driver_seconds
        start = max(start, driver)
        heapq.heappush(free, start + seconds)
        heapq.heappush(ended, start + seconds)
    while ended:
        driver = max(driver, heapq.heappop(ended)) + driver_seconds
        end = max(end, driver)
    return end


def workloads(options: ScaleOptions) -> Iterator[Workload]:
    """Yield the workloads of the table."""
    torch.manual_seed(0)
    cost = Diffusion.create("ddpm", (3, 32, 32), tuple(map(str, range(CLASSES)))).cost
    rate = options.tflops * 1e12

    def child(steps: int, rows: int, protocol: str) -> float:
        return (3 * steps * rows + FORWARDS[protocol]) * cost.operations / rate

    def gold(protocol: str) -> list[float]:
        return [child(20_000, 128, protocol)] * CLASSES

    paper = [child(1000, 128, "paper")] * (PAPER_METHODS * CLASSES * SEEDS)
    yield Workload("the paper's tables: 3 methods x 10 classes x 3 seeds, paper protocol", (gold("paper"), paper))
    every = [
        child(int({"steps": Training().steps, **method.training}["steps"]), 128, "fast")
        for method in available().values() for _ in range(CLASSES * SEEDS)
    ]  # fmt: skip
    name = f"the contest: {len(available())} methods x 10 classes x 3 seeds, fast protocol"
    yield Workload(name, (gold("fast"), every))
    # A sampler that learns proposes after results: a batch of trials can be no larger than the trials that it may not know of.
    yield Workload("a search: 40 trials of 1,000 steps, fast protocol", ([child(1000, 128, "fast")] * TRIALS,))


def dit_hours(gpus: int, options: ScaleOptions) -> tuple[float, float]:
    """Return the hours and the GPU-hours of training a DiT-XL/2 of 32x32 latents: 400,000 steps of 256 rows by all GPUs.

    A step is its operations shared by all, then one exchange of the gradients (a ring: twice the bytes of the weights).
    """
    cost = _dit_cost()
    compute = 3 * 256 * cost.operations / (options.tflops * 1e12 * gpus)
    exchange = 2 * 4 * cost.parameters * (gpus - 1) / gpus / (options.link * 1e9)
    hours = 400_000 * (compute + exchange) / 3600
    return hours, hours * gpus


@cache
def _dit_cost() -> Cost:
    network = {**DIT, "num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72}
    with torch.device("meta"):
        small = build("dit", 4, 32, 1000)
        denoiser = type(small).from_config({**small.config, **network, "patch_size": 2})
    return Cost.of(denoiser, 32, {"class_labels": torch.zeros(1, dtype=torch.int64)})


def rows_of(options: ScaleOptions) -> Iterator[dict[str, object]]:
    """Yield the rows of the table."""
    for each in workloads(options):
        yield {
            "work": each.name, "GPU-hours": each.gpu_hours,
            **{f"hours on {n}": each.hours(n, options) for n in GPUS}, "half used up to": _limit(each, options),
        }  # fmt: skip
    hours = {n: dit_hours(n, options) for n in GPUS}
    limit = max(n for n in _COUNTS if hours[1][0] / dit_hours(n, options)[1] >= 0.5)
    yield {
        "work": "a DiT-XL/2, 400,000 steps of 256 rows, one model on all GPUs", "GPU-hours": hours[1][1],
        **{f"hours on {n}": hours[n][0] for n in GPUS}, "half used up to": limit,
    }  # fmt: skip


_COUNTS = tuple(2**power for power in range(15))


def _limit(workload: Workload, options: ScaleOptions) -> int:
    """Return the largest power of two of GPUs of which at least half the time is work."""
    return max((n for n in _COUNTS if workload.gpu_hours >= 0.5 * n * workload.hours(n, options)), default=1)


def benchmark(argv: Sequence[str]) -> None:
    """Simulate by the command line's parameters."""
    options: ScaleOptions = parse("python -m benchmarks.scale", __doc__ or "", {"machine": ScaleOptions}, argv)[
        "machine"
    ]
    frame = pd.DataFrame(rows_of(options)).set_index("work")
    remark = (
        f"A simulation, not a measurement: operations are counted; {options.tflops:g} TFLOP/s of a GPU, "
        f"{options.load_seconds:g} s to load a worker, {options.driver_seconds:g} s of the driver for each job and "
        f"{options.link:g} GB/s between GPUs are assumed; memory, disks and failures are not simulated. The last column is the "
        "number of GPUs (a power of two) up to which half of their time is work."
    )
    tables.write("scale", "What protocols cost on many GPUs", frame, remark, digits=2)


if __name__ == "__main__":
    main(benchmark)
