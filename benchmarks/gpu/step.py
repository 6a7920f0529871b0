"""What a step costs on this card: bare, by each method, in the official order; and how fast the sampler's denoiser is.

Rows of a step: 128 in all, of our methods and of the bare step; the official orders take 64 forget and 64 retain rows too.
The share of the card is the FLOPs that torch counts in a step, by its time, over the measured rate of a bf16 matrix product.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu import choices, drawing
from benchmarks.gpu.stage import COMPILING, Stage, use_tf32
from benchmarks.official import CHEAP, BenchmarkOptions, official, official_salun, official_selective_amnesia
from benchmarks.step import bare
from safemax.diffusion import arithmetic, layout
from safemax.diffusion.model import Diffusion
from safemax.methods import create
from safemax.training.settings import Training
from safemax.training.trainer import Trainer

Build = Callable[[], tuple[Diffusion, Callable[[], Any]]]
METHODS = {
    "SAFEMax": "safemax",
    "ours": "expected_targets",
    "SalUn": "salun",
    "SA": "selective_amnesia",
    "SFR-on": "sfron",
}
CHEAPEST = {**CHEAP, "sfron": {"fisher_batches": 1}}
BARS = (("SAFEMax, compiled", "bare, compiled", 1.05), ("SalUn", "SAFEMax", 1.6), ("SA", "SAFEMax", 2.2))
REMARK = """\
{rows} rows a step. Median of {rounds} blocks of {block} steps. A bf16 matrix product runs at {rate:.1f} TFLOP/s here: that is
100 % of the card. set-up: building and the first step, compilation included. A compiled step counts the FLOPs of the bare one.
of compiled: compared with the fastest compiled bare step, in bf16."""
LONG = 1_000_000  # steps of a run that compiles its denoiser on a GPU


@dataclass
class Bench:
    """The sizes of the stage, and the rows measured so far."""

    stage: Stage
    options: BenchmarkOptions
    rounds: int
    block: int
    rate: float = float("nan")
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def on_gpu(self) -> bool:
        """Whether there is a GPU to measure."""
        return torch.cuda.is_available()

    def add(self, name: str, precision: str, build: Build) -> None:
        """Measure a step and write the table with all rows so far."""
        started = time.perf_counter()
        model, step = build()
        step()
        self._wait()
        setup = time.perf_counter() - started
        flops = _flops(step) if "compiled" not in name else self._flops_of(name.partition(",")[0])
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        ms = 1000 * statistics.median(self._seconds(step) for _ in range(self.rounds))
        row = {"step": name, "precision": precision, "ms": ms, "TFLOP": flops / 1e12, "set-up s": setup}
        row |= {"% of the card": 100 * flops / (ms / 1000) / self.rate}
        row |= {"peak GB": torch.cuda.max_memory_allocated() / 1e9 if self.on_gpu else float("nan")}
        self.rows.append(row)
        self._write()
        del model, step

    def _seconds(self, step: Callable[[], Any]) -> float:
        """Return the seconds of a step in a block of steps that only its end waits for."""
        started = time.perf_counter()
        for _ in range(self.block):
            step()
        self._wait()
        return (time.perf_counter() - started) / self.block

    def _wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def _flops_of(self, name: str) -> float:
        return next((1e12 * row["TFLOP"] for row in self.rows if row["step"] == name), float("nan"))

    def ms_of(self, name: str, precision: str) -> float:
        """Return the milliseconds measured of a step, the least of those in a precision; nan where there is none."""
        return min(
            (row["ms"] for row in self.rows if row["step"] == name and row["precision"] == precision),
            default=float("nan"),
        )

    @property
    def compiled_ms(self) -> float:
        """Milliseconds of the fastest compiled bare step; nan where none was measured."""
        return min((row["ms"] for row in self.rows if row["step"].startswith("bare, compiled")), default=float("nan"))

    def _write(self) -> None:
        frame = pd.DataFrame(self.rows).set_index("step")
        frame.insert(2, "of bare", [row["ms"] / self.ms_of("bare", row["precision"]) for row in self.rows])
        frame.insert(3, "of compiled", [row["ms"] / self.compiled_ms for row in self.rows])
        remark = REMARK.format(rows=2 * self.options.rows, rounds=self.rounds, block=self.block, rate=self.rate / 1e12)
        self.stage.table("step", f"A step of the {self.options.size} network", frame, remark, digits=2)


def run(stage: Stage) -> None:
    """Measure all, what matters most first."""
    options = BenchmarkOptions(size="digits", rows=4) if stage.rehearse else BenchmarkOptions(size="cifar", rows=64)
    bench = Bench(stage, options, 1 if stage.rehearse else 7, 1 if stage.rehearse else 5)
    draws = drawing.Drawing(stage, options)
    if stage.rehearse:  # the compiled ways are traced at least
        arithmetic.DEVICES, arithmetic.BACKEND = {"cpu"}, "eager"
    stage.attempt("bf16 matrix product", lambda: setattr(bench, "rate", matmul_rate(256 if stage.rehearse else 8192)))
    for precision in ("fp32", "bf16"):
        stage.attempt(f"bare, {precision}", partial(bench.add, "bare", precision, partial(_bare, options, precision)))
    _methods(bench, "fp32")
    for name, official_build in (
        ("SalUn, official order", official_salun),
        ("SA, official order", official_selective_amnesia),
    ):
        stage.attempt(name, partial(bench.add, name, "fp32", partial(official, official_build, options)))
    draws.eager()
    stage.attempt("judging", partial(drawing.judging, stage))
    _compiled(bench, "bare, compiled", {})
    _compiled_ours(bench, "SAFEMax, compiled")
    _methods(bench, "bf16")
    build = partial(_ours, "safemax", options, "bf16", channels_last=True)
    label = "SAFEMax, channels_last"
    stage.attempt(label, partial(bench.add, label, "bf16", build))
    _tables(bench, draws, "")
    draws.compiled()
    stage.attempt("bare, tuned", lambda: bench.add("bare, TF32 and cudnn.benchmark", "fp32", lambda: _tuned(options)))
    _compiled_ours(bench, "SAFEMax, compiled, channels_last", channels_last=True)
    for how in ({"channels_last": True}, {"mode": "max-autotune"}) if not stage.rehearse else ():
        _compiled(bench, "bare, compiled", how)
    _tables(bench, draws, ", again")


def _tables(bench: Bench, draws: drawing.Drawing, when: str) -> None:
    """Write what the measured steps and draws say together, as far as they have come."""
    bench.stage.attempt(f"bars{when}", lambda: bars(bench), late=True)
    rows = 2 * bench.options.rows
    bench.stage.attempt(f"choices{when}", lambda: choices.write(bench.stage, bench.rows, draws, rows), late=True)


def _compiled_ours(bench: Bench, label: str, *, channels_last: bool = False) -> None:
    build = partial(_ours, "safemax", bench.options, "bf16", steps=LONG, channels_last=channels_last)
    needs = 0.0 if bench.stage.rehearse else COMPILING
    bench.stage.attempt(label, partial(bench.add, label, "bf16", build), needs=needs)


def _methods(bench: Bench, precision: str) -> None:
    for name, method in METHODS.items():
        build = partial(_ours, method, bench.options, precision)
        bench.stage.attempt(f"{name}, {precision}", partial(bench.add, name, precision, build))


def _compiled(bench: Bench, name: str, how: dict[str, Any]) -> None:
    label = f"{name} {' '.join(f'{key}={value}' for key, value in how.items())}".strip()
    needs = 0.0 if bench.stage.rehearse else COMPILING
    backend = "eager" if bench.stage.rehearse else "inductor"
    build = partial(_bare, bench.options, "bf16", backend=backend, **how)
    bench.stage.attempt(label, partial(bench.add, label, "bf16", build), needs=needs)


def matmul_rate(side: int) -> float:
    """Return the FLOP/s of a product of two bf16 matrices of so many rows and columns."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(10):
            a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append((time.perf_counter() - started) / 10)
    return 2 * side**3 / min(seconds)


def _bare(
    options: BenchmarkOptions,
    precision: str,
    *,
    backend: str = "",
    channels_last: bool = False,
    mode: str | None = None,
) -> tuple[Diffusion, Callable[[], Any]]:
    model = options.diffusion()
    layout.lay_out(model.denoiser, channels_last=channels_last)
    if backend:
        model.denoiser = torch.compile(model.denoiser, backend=backend, mode=mode)
    step = bare(model, 2 * options.rows)

    def cast() -> None:
        with _autocast(model, precision):
            step()

    return model, cast


def _tuned(options: BenchmarkOptions) -> tuple[Diffusion, Callable[[], Any]]:
    """Return the bare step with the switches that PyTorch leaves off; they stay on for what follows."""
    use_tf32()
    return _bare(options, "fp32")


def _ours(
    method: str, options: BenchmarkOptions, precision: str, *, steps: int = 1000, channels_last: bool = False
) -> tuple[Diffusion, Callable[[], Any]]:
    model = options.diffusion()
    training = Training(
        steps=steps, batch_size=2 * options.rows, precision=precision, device=model.device.type,
        channels_last=channels_last,
    )  # fmt: skip
    trainer = Trainer(model, create(method, **CHEAPEST.get(method, {})), options.split(), (0,), training)
    trainer.prepare()
    return model, trainer.step


def _flops(step: Callable[[], Any]) -> float:
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


def _autocast(model: Diffusion, precision: str) -> Any:
    return torch.autocast(model.device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def bars(bench: Bench) -> None:
    """Write the ratios that the project holds itself to, each beside its bar."""
    frame = pd.DataFrame(_ratios(bench)).set_index("ratio")
    remark = "ms in bf16; peak memory in fp32, as the official order has it."
    bench.stage.table("bars", "Bars", frame, remark, digits=2)


def _ratios(bench: Bench) -> Iterator[dict[str, Any]]:
    for one, other, bar in BARS:
        theirs = bench.compiled_ms if other == "bare, compiled" else bench.ms_of(other, "bf16")
        yield {
            "ratio": f"{one} / {other}, ms",
            "value": bench.ms_of(one, "bf16") / theirs,
            "bar": bar,
        }
    peak = {(row["step"], row["precision"]): row["peak GB"] for row in bench.rows}
    for name in ("SalUn", "SA"):
        value = peak.get((name, "fp32"), float("nan")) / peak.get((f"{name}, official order", "fp32"), float("nan"))
        yield {"ratio": f"{name} / official order, peak GB", "value": value, "bar": 0.6}
    shares = [row["% of the card"] for row in bench.rows if row["step"].startswith("bare, compiled")]
    yield {
        "ratio": "compiled bare step, share of the card (at least)",
        "value": max(shares, default=float("nan")) / 100,
        "bar": 0.25,
    }
