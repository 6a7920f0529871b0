"""The one training loop: pretraining, retraining, unlearning and relearning are all a Method run by a Trainer."""

from __future__ import annotations

import torch

from safemax.data import row_share
from safemax.data.batches import Batches, reseed, step_seed
from safemax.data.dataset import Split
from safemax.diffusion import layout, weights
from safemax.diffusion.codec import encoded
from safemax.diffusion.model import Diffusion
from safemax.diffusion.row_noise import ALONE, RowNoise
from safemax.errors import Stopped
from safemax.progress import Bar, bar
from safemax.storage import checkpoint
from safemax.training import devices, memory, optimizers, peak_memory, priors, settings, snapshot
from safemax.training.budget import Budget
from safemax.training.devices import accelerator_for, compiles, uses_bf16
from safemax.training.finite_check import steps_between
from safemax.training.frozen import FrozenWeights
from safemax.training.hooks import Folders, Hooks
from safemax.training.method import Method, Terms
from safemax.training.processes import Processes, facts
from safemax.training.result import Cost, FitResult
from safemax.training.saver import Saver
from safemax.training.settings import Training
from safemax.training.update import Update

LOG_EVERY, COMPARE_EVERY = 10, 100  # steps between reports, and between comparisons of several processes' weights


class Trainer:
    """One run of a method on a model, whose weights change in place.

    `fit` does all of it. To time single steps, call `prepare` once, then `step` as often as needed.

    Example:
        >>> from safemax.data import load
        >>> from safemax.methods import create
        >>> digits = load("digits")
        >>> diffusion = Diffusion.create("small", digits.image_shape, digits.class_names)
        >>> training = Training(steps=1, batch_size=8, device="cpu")
        >>> trainer = Trainer(diffusion, create("safemax"), digits.train, (0,), training, hooks=Hooks(progress=False))
        >>> trainer.fit().cost.images_seen
        8
    """

    def __init__(
        self,
        diffusion: Diffusion,
        method: Method,
        split: Split,
        forget: tuple[int, ...],
        training: Training,
        *,
        flip: bool = False,
        hooks: Hooks | None = None,
        folders: Folders | None = None,
    ) -> None:
        """Check that model, method and settings go together; no work yet.

        Args:
            diffusion: the model; it moves to the settings' device.
            method: what to minimise.
            split: training images and labels.
            forget: labels to forget; () where the method forgets none.
            training: steps, batch size, learning rate, ...
            flip: mirror images at random, for natural images.
            hooks: what the loop calls.
            folders: checkpoints and priors.

        Raises:
            InputError: the model or the settings lack what the method needs, or the machine lacks the device.
        """
        devices.validate(training)
        method.validate(diffusion)
        settings.validate(method, training, forget)
        optimizers.validate(training)
        weights.validate(diffusion, training.trainable)
        self.diffusion, self.method, self.split, self.forget = diffusion, method, split, forget
        self.training, self.flip = training, flip
        self.hooks, self.folders = hooks or Hooks(), folders or Folders()
        self.cost, self.resumed_from, self.frozen = Cost(), "", FrozenWeights()
        self.losses: dict[str, float] = {}

    def fit(self) -> FitResult:
        """Take all steps, or those that a checkpoint leaves to do.

        Raises:
            InputError: the processes cannot share the rows of a step.
            NonFiniteError: a loss or gradient was not finite; no step was taken with it.
            LostProcessError: another process of the run ended, or holds other weights.
            Stopped: `hooks.should_stop` returned True.
        """
        try:
            self.prepare()
        except BaseException:  # such as of a method that cannot prepare: adapters would stay on the model
            self._let_all_move()
            raise
        try:
            with self.processes.watched(self.done):
                return self._run()
        finally:
            self._release()

    def prepare(self) -> None:
        """Load a checkpoint or let the method prepare its state, then make the optimizer."""
        self.accelerator = accelerator_for(self.training)
        self.processes = Processes(self.accelerator)
        settings.validate_parts(self.training, self.processes.world)
        self.processes.validate_same(lambda: facts(self.diffusion, self.method, self.split, self.forget, self.training))
        self._wait_every = steps_between(self.accelerator.device)
        reseed(self.training.seed, -2, 0)
        weights.limit(self.diffusion, self.training.trainable, rank=self.training.lora_rank)
        memory.checkpoint_activations(self.diffusion.denoiser, self.training.gradient_checkpointing)
        self.diffusion.to(self.accelerator.device)
        self.batches = self._make_batches()
        folder = self.folders.checkpoints
        saved = self.processes.share(lambda: checkpoint.newest(folder) if folder else None)
        folder = folder if self.accelerator.is_main_process else None
        self.saver = Saver(folder, self.accelerator.device, self.training.checkpoint_every)
        if saved is not None:
            self.cost, self.resumed_from = snapshot.progress(saved)
        self.budget = Budget(self.training, self.accelerator, self.cost, saved.step if saved else 0)
        self.method.run_steps = self.budget.expected_steps
        if saved is None:
            self.cost.setup_minutes = priors.prepare(
                self.folders.priors,
                self.diffusion,
                self.method,
                self.batches,
                self.split,
                self.training,
                self.processes,
            )
        else:
            snapshot.restore_model(saved, self.diffusion.denoiser, self.method, self.accelerator.device)
        if self.training.channels_last:  # not before: a method's prior and its random numbers are the same either way
            layout.lay_out(self.diffusion.denoiser, channels_last=True)
        self.update = Update(self.diffusion, self.method, self.training, self.accelerator, self.budget, saved)
        self.cost.side_state_gb = sum(t.nbytes for t in self.method.state().values()) / 1e9
        self.diffusion.train()
        if uses_bf16(self.training):
            self.frozen.hold(self.diffusion.denoiser)
        self._is_compiled = compiles(self.training)
        self.diffusion.denoiser = self.accelerator.prepare(self.diffusion.denoiser)

    @property
    def done(self) -> int:
        """Steps done."""
        return self.budget.done

    def step(self) -> Terms:
        """Take one step and return its loss terms, detached scalars by name; needs `prepare`."""
        with self.budget.step():
            if self._is_compiled:
                torch.compiler.cudagraph_mark_step_begin()  # the passes of a step keep one another's results
            self.method.run_steps, self.method.steps_done = self.budget.expected_steps, self.done
            reseed(self.training.seed, self.done, self.accelerator.process_index)
            self.update.begin_step()
            batch = self.batches(self.done)
            with self.diffusion.drawing(self._row_noise()):
                terms = self.method.step(self.diffusion, batch, self.update)
            self.update.end_step()
            self.cost.images_seen += (len(batch.forget) + len(batch.retain)) * self.accelerator.num_processes
        if self.done % self._wait_every == 0:
            self._settle()
            self.processes.stepped(self.done)
        return terms

    def _row_noise(self) -> RowNoise:
        """Return how this process draws for its rows of a step, where the method draws by row and is not alone."""
        if self.processes.world == 1 or not self.method.noise_by_row:
            return ALONE
        generator = torch.Generator(self.accelerator.device)
        return RowNoise.of(
            row_share.of_this_process(), generator.manual_seed(step_seed(self.training.seed, self.done, 0))
        )

    def _settle(self) -> None:
        """Wait for the device: check its gradients, and count the time of its steps."""
        self.update.finite.check()
        self.budget.settle()

    def _make_batches(self) -> Batches:
        return Batches(
            encoded(self.diffusion.codec, self.split, flip=self.flip),
            self.forget,
            forget_size=self.training.forget_rows,
            retain_size=self.training.retain_rows,
            seed=self.training.seed,
            flip=self.flip,
            device=self.accelerator.device,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
        )

    def _run(self) -> FitResult:
        self.budget.warn_of_slow_average()
        self.budget.warn_of_long_warmup()
        peak_memory.reset_peak(self.accelerator.device)
        with self._progress_bar() as steps:
            while not self.budget.is_spent:
                self._stop_if_requested()
                terms = self.step()
                steps.update()
                if self.done % LOG_EVERY == 0 or self.budget.is_spent:
                    self._report(terms, steps)
                self._call_hook()
                if self.done % COMPARE_EVERY == 0 or self.budget.is_spent:
                    self.processes.validate_weights(self.update.values, self.done)
                if self.done % self._wait_every == 0 and not self.budget.is_spent and self.saver.is_due(self.done):
                    self._save()
        self._settle()
        self.update.use_average()
        self._save(wait=True)
        return FitResult(self.cost, self.resumed_from, self.losses)

    def _release(self) -> None:
        """Unwrap the denoiser from its processes and leave the model as others expect it, however the run ended."""
        self.diffusion.denoiser = self._unwrapped(keep_fp32_wrapper=False)
        self.diffusion.zero_grad()
        self._let_all_move()
        self.diffusion.eval()
        self.saver.close()

    def _let_all_move(self) -> None:
        self.frozen.release()
        weights.release(self.diffusion)
        if self.training.channels_last:
            layout.lay_out(self.diffusion.denoiser, channels_last=False)
        memory.checkpoint_activations(self.diffusion.denoiser, False)

    def _progress_bar(self) -> Bar:
        return bar(
            total=None if self.training.minutes else self.training.steps, initial=self.done, unit="step",
            desc=self.hooks.title or type(self.method).__name__.lower(),
            shown=self.hooks.progress and self.accelerator.is_main_process,
        )  # fmt: skip

    def _report(self, terms: Terms, steps: Bar) -> None:
        self.losses = {f"loss/{name}": value.item() for name, value in terms.items()}
        steps.set_postfix({name: f"{value.item():.3f}" for name, value in terms.items()})
        if self.hooks.log and self.accelerator.is_main_process:
            self.hooks.log(self.losses, self.done)

    def _call_hook(self) -> None:
        if not self.hooks.on_step_end:
            return
        prepared = self.diffusion.denoiser
        if self._is_compiled:  # the hook's numbers of rows would compile it again
            self.diffusion.denoiser = self._unwrapped()
        self.hooks.on_step_end(self.done)
        self.diffusion.denoiser = prepared
        if self.diffusion.codec is not None:
            self.diffusion.codec.vae.to("cpu")  # samples of the hook were decoded; the steps need its memory

    def _unwrapped(self, *, keep_fp32_wrapper: bool = True) -> torch.nn.Module:
        """Return the denoiser itself, with the names of its weights as they are saved."""
        return self.accelerator.unwrap_model(
            self.diffusion.denoiser, keep_fp32_wrapper=keep_fp32_wrapper, keep_torch_compile=False
        )

    def _stop_if_requested(self) -> None:
        if self.processes.world > 1 and self.done % self._wait_every:
            return  # to ask the others is to wait for the device
        if self.processes.any(self.hooks.should_stop()):
            self._save(wait=True)
            raise Stopped(f"stopped after {self.budget}; the same command resumes")

    def _save(self, *, wait: bool = False) -> None:
        self._settle()
        self.cost.peak_memory_gb = max(self.cost.peak_memory_gb, peak_memory.peak_gb(self.accelerator.device))
        if self.saver.folder is None:
            return
        state = snapshot.take(
            self.done, self._unwrapped(), self.method, self.update.optimizer, self.update.average, self.cost, self.folders.origin,
            self.frozen.originals(),
        )  # fmt: skip
        self.saver.write(state, wait=wait)
