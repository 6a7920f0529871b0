"""The one loop: pretraining, retraining, unlearning and relearning are all a Method run by `fit`."""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor
from tqdm import tqdm

from safemax.data.batches import Batch, Batches, reseed
from safemax.data.dataset import Split
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError, NonFiniteError, Stopped
from safemax.knobs import INFINITY, check, knob
from safemax.storage import cache, checkpoint, source_digest
from safemax.storage.checkpoint import Checkpoint
from safemax.training import peak_memory
from safemax.training.method import Losses, Method, Terms

Log = Callable[[dict[str, float], int], None]
# The others wait while one process trains judges or prepares; torch would give up after ten minutes.
_PATIENCE = timedelta(days=1)


@dataclass(frozen=True)
class Training:
    """How the loop runs, whatever the method. The optimizer is Adam (0.9, 0.999), eps 1e-8."""

    steps: int = knob(1000, "optimizer steps", bounds=(0, 10_000_000), search=(50, 2000), log=True)
    batch_size: int = knob(128, "rows of a step, over all processes, forget and retain together", bounds=(1, 1_000_000))
    forget_share: float = knob(0.5, "share of the rows that are forget rows", bounds=(0, 1))
    lr: float = knob(1e-4, "learning rate of Adam", bounds=(0, 10), search=(1e-5, 1e-3), log=True)
    lr_end: float = knob(
        1.0, "learning rate of the last step as a share of lr, reached along a cosine; 1 keeps it", bounds=(0, 1)
    )
    warmup: int = knob(0, "steps in which the learning rate rises from 0", bounds=(0, 10_000_000))
    weight_decay: float = knob(
        0.0, "decoupled weight decay; not 0 with a mask: it would move masked weights", bounds=(0, 1)
    )
    clip: float = knob(1.0, "largest L2 norm of the gradient", bounds=(0, INFINITY))
    ema: float = knob(
        0.0,
        "decay of the moving average of the weights that is kept at the end; 0 keeps the last weights",
        bounds=(0, 1),
    )
    seed: int = knob(0, "fixes batches, noise and initial weights", bounds=(0, 2**62))
    precision: str = knob("fp32", "arithmetic of the denoiser", choices=("fp32", "bf16"))
    accumulate: int = knob(1, "passes that a step's rows are split into, to save memory", bounds=(1, 1024))
    device: str = knob("auto", "auto takes a GPU where there is one", choices=("auto", "cpu", "cuda"))
    checkpoint_every: int = knob(100, "steps between checkpoints; 0 writes none on the way", bounds=(0, 10_000_000))

    def __post_init__(self) -> None:
        check(self)
        if self.forget_rows % self.accumulate or self.retain_rows % self.accumulate:
            rows = f"{self.forget_rows} forget and {self.retain_rows} retain rows"
            raise InputError(f"accumulate = {self.accumulate} does not divide {rows}; a divisor of both is allowed")

    def lr_at(self, step: int) -> float:
        """Return the learning rate of a step, from 0: a linear rise over `warmup`, then half a cosine to lr_end * lr."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        share = (step - self.warmup) / max(1, self.steps - 1 - self.warmup)
        return self.lr * (self.lr_end + (1 - self.lr_end) * (1 + math.cos(math.pi * min(1.0, share))) / 2)

    @property
    def forget_rows(self) -> int:
        """Forget rows of a step."""
        return round(self.batch_size * self.forget_share)

    @property
    def retain_rows(self) -> int:
        """Retain rows of a step."""
        return self.batch_size - self.forget_rows


@dataclass
class Cost:
    """What a job cost so far, added up over the runs that a kill split it into."""

    setup_minutes: float = 0.0
    runtime_minutes: float = 0.0
    peak_memory_gb: float = 0.0
    images_seen: int = 0
    side_state_gb: float = 0.0

    def metrics(self) -> dict[str, float]:
        """Return the cost by metric key: cost/runtime_minutes, ..."""
        return {f"cost/{name}": float(value) for name, value in asdict(self).items()}


@dataclass
class Result:
    """How a fit ended. `resumed_from` is the origin of the run whose checkpoint it went on from, or ""."""

    cost: Cost
    resumed_from: str = ""
    last: dict[str, float] = field(default_factory=dict)


def batches_for(
    split: Split, forget: tuple[int, ...], training: Training, *, flip: bool, accelerator: Accelerator
) -> Batches:
    """Return the batches of a job: forget and retain rows by its shares, seeded, on the accelerator's device."""
    return Batches(
        split,
        forget,
        forget_size=training.forget_rows,
        retain_size=training.retain_rows,
        seed=training.seed,
        flip=flip,
        device=accelerator.device,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )


def accelerate(training: Training) -> Accelerator:
    """Return accelerate's handle on device, processes and precision; a second call may ask for another precision."""
    if training.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device = cuda is not allowed: this machine has no GPU; auto or cpu is")
    # The state of a process holds its device too; where processes work together it holds their group, and stays.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    return Accelerator(
        mixed_precision="bf16" if training.precision == "bf16" else "no",
        cpu=training.device == "cpu" or not torch.cuda.is_available(),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
    )


def fit(
    diffusion: Diffusion,
    method: Method,
    split: Split,
    forget: tuple[int, ...],
    training: Training,
    *,
    flip: bool = False,
    log: Log | None = None,
    folder: Path | None = None,
    priors: Path | None = None,
    origin: str = "",
    stop: Callable[[], bool] = lambda: False,
    each: Callable[[int], None] | None = None,
    progress: bool = True,
) -> Result:
    """Run a method on a model, whose weights change in place.

    Args:
        diffusion: the model; it moves to the training's device.
        method: what to minimise.
        split: training images and labels (safemax.data.Split).
        forget: labels to forget; () where the method has none.
        training: steps, rows, learning rate, ...
        flip: random horizontal flips, for natural images.
        log: called with {"loss/<term>": ..., "train/...": ...} and the step, every tenth step and at the last.
        folder: where this job's checkpoints live; None writes none. A whole checkpoint found there is resumed.
        priors: where prepared state (Fisher information, replay sets) is kept for later runs; None prepares it each time.
        origin: the name of this run, kept in its checkpoints for the one that resumes it.
        stop: asked before each step; True ends the job with a checkpoint and Stopped.
        each: called after each step with the number of steps done, for pictures on the way.
        progress: show a bar with loss and speed.

    Returns:
        the cost, the run it was resumed from, and the last terms.

    Raises:
        InputError: the model or the training lacks what the method needs.
        NonFiniteError: a loss or gradient was not finite; no step was taken with it.
        Stopped: `stop` said so.
    """
    loop = _loop(diffusion, method, split, forget, training, flip=flip, folder=folder, priors=priors, origin=origin)
    with loop.prepared():
        return loop.run(log or (lambda metrics, step: None), stop, each, progress)


def steps_of(
    diffusion: Diffusion, method: Method, split: Split, forget: tuple[int, ...], training: Training
) -> Callable[[], Terms]:
    """Return a function that takes one step of a fit, exactly as `fit` takes it; for benchmarks."""
    loop = _loop(diffusion, method, split, forget, training)
    loop.open()
    return loop.step


def _loop(
    diffusion: Diffusion,
    method: Method,
    split: Split,
    forget: tuple[int, ...],
    training: Training,
    *,
    flip: bool = False,
    folder: Path | None = None,
    priors: Path | None = None,
    origin: str = "",
) -> _Loop:
    method.validate(diffusion)
    _validate(method, training, forget)
    accelerator = accelerate(training)
    _refuse_parts(training, accelerator.num_processes)
    method.run_steps = max(1, training.steps)
    diffusion.to(accelerator.device)
    batches = batches_for(split, forget, training, flip=flip, accelerator=accelerator)
    return _Loop(diffusion, method, split, batches, training, accelerator, folder, priors, origin)


class _Loop:
    """The state of one fit: everything that a checkpoint must hold hangs here."""

    def __init__(
        self,
        diffusion: Diffusion,
        method: Method,
        split: Split,
        batches: Batches,
        training: Training,
        accelerator: Accelerator,
        folder: Path | None,
        priors: Path | None,
        origin: str,
    ) -> None:
        self.diffusion, self.method, self.split, self.batches, self.training = (
            diffusion,
            method,
            split,
            batches,
            training,
        )
        self.accelerator, self.folder, self.priors, self.origin = accelerator, folder, priors, origin
        self.cost, self.done, self.resumed_from = Cost(), 0, ""
        self.losses: dict[str, float] = {}

    @contextlib.contextmanager
    def prepared(self) -> Any:
        """Load or prepare the state, wrap the denoiser for several processes, and unwrap it whatever happens."""
        self.open()
        try:
            yield
        finally:
            self.diffusion.denoiser = self.accelerator.unwrap_model(self.diffusion.denoiser, keep_fp32_wrapper=False)
            self.diffusion.zero_grad()
            self.diffusion.requires_grad_(True)
            self.diffusion.eval()

    def open(self) -> None:
        """Load or prepare the state and wrap the denoiser."""
        training, diffusion = self.training, self.diffusion
        found = checkpoint.newest(self.folder) if self.folder else None
        if found is None:
            self._prepare()
        else:
            self._restore_method(found)
        diffusion.denoiser.requires_grad_(True)
        diffusion.zero_grad()
        trained = list(self.method.trainable(diffusion))
        chosen = {id(p) for p in trained}
        for p in diffusion.parameters():
            p.requires_grad_(id(p) in chosen)
        self.weights = trained
        self.optimizer = torch.optim.AdamW(trained, lr=training.lr, weight_decay=training.weight_decay, fused=True)
        self.average = [p.detach().clone() for p in trained] if training.ema else []
        if found is not None:
            self._restore_optimizer(found)
        self.cost.side_state_gb = sum(t.nbytes for t in self.method.state().values()) / 1e9
        diffusion.train()
        diffusion.denoiser = self.accelerator.prepare(diffusion.denoiser)

    def run(self, log: Log, stop: Callable[[], bool], each: Callable[[int], None] | None, progress: bool) -> Result:
        """Take the remaining steps."""
        training = self.training
        _warn_of_average(training)
        peak_memory.reset_peak(self.accelerator.device)
        bar = tqdm(
            total=training.steps, initial=self.done, desc=type(self.method).__name__.lower(), unit="step",
            disable=not (progress and self.accelerator.is_main_process),
        )  # fmt: skip
        with bar:
            while self.done < training.steps:
                if self._told_to_stop(stop):
                    self._save()
                    raise Stopped(f"stopped after {self.done} of {training.steps} steps; the same command resumes")
                terms = self.step()
                bar.update()
                if self.done % 10 == 0 or self.done == training.steps:
                    self._report(terms, log, bar)
                if each is not None:
                    each(self.done)
                if (
                    training.checkpoint_every
                    and self.done % training.checkpoint_every == 0
                    and self.done < training.steps
                ):
                    self._save()
        self._use_average()
        self._save()
        return Result(self.cost, self.resumed_from, self.losses)

    def _prepare(self) -> None:
        """Prepare the method, or take its prior from an earlier run together with the minutes that it cost then."""
        kept = self._prior_folder()
        found = checkpoint.newest(kept) if kept else None
        if found is not None:
            self.method.load_state({name: value.to(self.accelerator.device) for name, value in found.tensors.items()})
            self.cost.setup_minutes = found.about["setup_minutes"]
            return
        started = time.perf_counter()
        reseed(self.training.seed, -1, 0)
        self.method.prepare(self.diffusion, self.batches)
        self.cost.setup_minutes = (time.perf_counter() - started) / 60
        if kept and self.accelerator.is_main_process:
            tensors = {name: value.detach().cpu().contiguous() for name, value in self.method.state().items()}
            checkpoint.write(kept, Checkpoint(0, tensors, {"setup_minutes": self.cost.setup_minutes}))

    def _prior_folder(self) -> Path | None:
        depends = self.method.prior()
        if depends is None or self.priors is None:
            return None
        facts = {
            "method": type(self.method).__name__,
            "knobs": depends,
            "code": source_digest.digest(type(self.method).__module__),
            "model": self.diffusion.identity(),
            "data": hashlib.sha256(
                self.split.images.numpy().tobytes() + self.split.labels.numpy().tobytes()
            ).hexdigest(),
            "forget": [] if self.method.shared else list(self.batches.forget_classes),
            "rows": [] if self.method.shared else [self.training.forget_rows, self.training.retain_rows],
            "seed": self.training.seed,
        }
        return self.priors / cache.key(facts)

    def step(self) -> Terms:
        """Take one step and return its terms, detached."""
        started = time.perf_counter()
        reseed(self.training.seed, self.done, self.accelerator.process_index)
        self.optimizer.param_groups[0]["lr"] = self.training.lr_at(self.done)
        batch = self.batches(self.done)
        terms = self.method.step(self.diffusion, batch, self._optimizer_step)
        if self.average:
            torch._foreach_lerp_(self.average, [p.detach() for p in self.weights], 1 - self.training.ema)
        self.done += 1
        self.cost.images_seen += (len(batch.forget) + len(batch.retain)) * self.accelerator.num_processes
        self.cost.runtime_minutes += (time.perf_counter() - started) / 60
        return terms

    def _optimizer_step(self, losses: Losses, batch: Batch, *, clip: float | None = None) -> Terms:
        parts = batch.split(self.training.accumulate) if self.training.accumulate > 1 else [batch]
        terms: Terms = {}
        for number, part in enumerate(parts, start=1):
            last = number == len(parts)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.diffusion.denoiser):
                groups = losses(self.diffusion, part)
                for name, value in self.method.backward(groups, self.diffusion, self._add_gradient(len(parts))).items():
                    terms[name] = terms.get(name, 0) + value / len(parts)
        norm = torch.nn.utils.clip_grad_norm_(self.weights, self.training.clip if clip is None else clip)
        if not torch.isfinite(norm):
            values = ", ".join(f"{name} {value.item():.3g}" for name, value in terms.items())
            raise NonFiniteError(
                f"step {self.done + 1}: the gradient is not finite ({values}); lower lr, now {self.training.lr:g}"
            )
        self.method.constrain(self.diffusion)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return terms

    def _add_gradient(self, parts: int) -> Callable[[Tensor], None]:
        return lambda loss: self.accelerator.backward(loss / parts)

    def _report(self, terms: Terms, log: Log, bar: tqdm) -> None:
        self.losses = {f"loss/{name}": value.item() for name, value in terms.items()}
        bar.set_postfix({name: f"{value.item():.3f}" for name, value in terms.items()})
        if self.accelerator.is_main_process:
            log(self.losses, self.done)

    def _told_to_stop(self, stop: Callable[[], bool]) -> bool:
        if self.accelerator.num_processes == 1:
            return stop()
        flag = torch.tensor(float(stop()), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum"))

    def _use_average(self) -> None:
        if self.average:
            torch._foreach_copy_([p.detach() for p in self.weights], self.average)
            self.average = []

    def _save(self) -> None:
        self.cost.peak_memory_gb = max(self.cost.peak_memory_gb, peak_memory.peak_gb(self.accelerator.device))
        if self.folder is None or not self.accelerator.is_main_process:
            return
        model = self.accelerator.unwrap_model(self.diffusion.denoiser)
        tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
        tensors |= {f"average.{i:05d}": value for i, value in enumerate(self.average)}
        tensors |= {f"method.{name}": value for name, value in self.method.state().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i:05d}.{name}": value for name, value in state.items()}
        about = {"origin": self.origin, "cost": asdict(self.cost)}
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        checkpoint.write(self.folder, Checkpoint(self.done, tensors, about))

    def _restore_method(self, found: Checkpoint) -> None:
        self.diffusion.denoiser.load_state_dict(_under("model.", found.tensors))
        state = {name: value.to(self.accelerator.device) for name, value in _under("method.", found.tensors).items()}
        self.method.load_state(state)
        self.done, self.resumed_from = found.step, found.about["origin"]
        self.cost = Cost(**found.about["cost"])

    def _restore_optimizer(self, found: Checkpoint) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in _under("optimizer.", found.tensors).items():
            number, key = name.split(".")
            state.setdefault(int(number), {})[key] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        saved = sorted(_under("average.", found.tensors).items())
        self.average = [value.to(self.accelerator.device) for _, value in saved]


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _validate(method: Method, training: Training, forget: tuple[int, ...]) -> None:
    name, share = type(method).__name__, f"forget_share = {training.forget_share:g}"
    if method.needs_forget and not training.forget_rows:
        raise InputError(f"{share} of batch_size = {training.batch_size} leaves no forget rows, which {name} needs")
    if training.forget_rows and not forget:
        raise InputError(f"{share} is not allowed: nothing is to be forgotten here; forget_share must be 0")
    if method.needs_retain and not training.retain_rows:
        raise InputError(f"{share} of batch_size = {training.batch_size} leaves no retain rows, which {name} needs")
    if training.accumulate > 1 and not method.per_part:
        raise InputError(
            f"accumulate = {training.accumulate} is not allowed with {name}: it weighs the gradients of a whole batch; "
            "accumulate must be 1"
        )
    if training.weight_decay and type(method).constrain is not Method.constrain:
        raise InputError(
            f"weight_decay = {training.weight_decay:g} is not allowed with {name}: it would move weights that the method "
            "holds; weight_decay must be 0"
        )


def _refuse_parts(training: Training, processes: int) -> None:
    """The parts of a step weigh alike, so they must be equal on every process."""
    for name, rows in (("forget", training.forget_rows), ("retain", training.retain_rows)):
        if rows % (processes * training.accumulate) and training.accumulate > 1:
            raise InputError(
                f"accumulate = {training.accumulate} on {processes} processes does not divide {rows} {name} rows into equal parts"
            )


def _warn_of_average(training: Training) -> None:
    left = training.ema**training.steps
    if training.ema and left > 0.5:
        warnings.warn(
            f"ema = {training.ema:g} over {training.steps} steps keeps {left:.0%} of the weights it started from",
            stacklevel=4,
        )
