"""Sampling from a Diffusion: one seeded loop over diffusers' schedulers; guidance denoises class and null rows in one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from safemax.data.batches import derive_seed
from safemax.diffusion import arithmetic, team
from safemax.diffusion.model import Diffusion
from safemax.diffusion.samplers import FAST as FAST
from safemax.diffusion.samplers import PAPER as PAPER
from safemax.diffusion.samplers import SECOND as SECOND
from safemax.diffusion.samplers import USERS as USERS
from safemax.diffusion.samplers import Sampler
from safemax.progress import Bar, bar

Guide = Callable[[Tensor, Tensor, Tensor, slice], Tensor]
JOB = "sample"
Rule: TypeAlias = DDIMScheduler | DPMSolverMultistepScheduler


def sample(
    diffusion: Diffusion,
    labels: Tensor,
    sampler: Sampler,
    *,
    seed: int,
    batch_size: int = 500,
    progress: bool = False,
    label_at: Callable[[int, Tensor], Tensor] | None = None,
    guide: Guide | None = None,
    start: tuple[Tensor, int] | None = None,
    decode: bool = True,
    computed: str = arithmetic.EXACT,
) -> Tensor:
    """Draw one image a label. Inside `team.leading`, all processes share the rows; label_at and guide only `together`.

    Args:
        diffusion: the model, sampled in eval mode and left in the mode it was in.
        labels: (N,) int64 in [0, K]; K is the null label.
        sampler: the rule, its steps, guidance, eta and clipping.
        seed: fixes the starting noise (whatever the device and the batch size) and, with batch_size, the noise of each step.
        batch_size: images denoised together; guidance doubles the rows.
        progress: show a bar.
        label_at: labels to use at step t instead, from (t, labels).
        guide: changes eps at each step, from (x_t, t, eps, which of the labels' rows they are).
        start: images (N, C, H, W) in [-1, 1] and the step t0 to noise them to, instead of pure noise at T.
        decode: return images; else x0, which is latents where the model is one of latents.
        computed: exact, bf16 or compiled (safemax.diffusion.arithmetic); on a CPU all are exact.

    Returns:
        images, (N, C, H, W) float32 in [-1, 1], on the CPU; a pixel that overflowed is at its bound, a NaN at 0.
    """
    request = Request(diffusion, labels, sampler, seed, batch_size, label_at, guide, start, decode, computed)
    images = [*request.batches(progress=progress)]
    return torch.cat(images) if images else torch.empty(0, *(diffusion.image_shape if decode else diffusion.x0_shape))


@dataclass(frozen=True)
class Request:
    """Images to draw; see `sample`."""

    diffusion: Diffusion
    labels: Tensor
    sampler: Sampler
    seed: int
    batch_size: int = 500
    label_at: Callable[[int, Tensor], Tensor] | None = None
    guide: Guide | None = None
    start: tuple[Tensor, int] | None = None
    decode: bool = True
    computed: str = arithmetic.EXACT

    @property
    def firsts(self) -> range:
        """The first row of each batch."""
        return range(0, len(self.labels), self.batch_size)

    def batches(self, *, skip: int = 0, progress: bool = False, drawn: Bar | None = None) -> Iterator[Tensor]:
        """Yield the images batch by batch, those of a batch the same wherever one begins.

        Args:
            skip: batches that were drawn before.
            progress: show a bar of the denoising steps, with the time left.
            drawn: a bar to continue instead.
        """
        self.sampler.validate(self.diffusion)
        crew = team.current()
        if crew is not None and not crew.together and (self.label_at or self.guide):
            crew = None  # functions cannot be told
        total, done = (n * self.sampler.steps for n in (len(self.firsts), skip))
        text = f"sampling {self.sampler}"
        own = bar(shown=progress, total=total, initial=done, desc=text, leave=False) if drawn is None else None
        noise = self._noise()
        try:
            if crew is not None and not crew.together and len(self.firsts) > skip:
                crew.is_whole = False  # until all have done their part
                self._hand_out(crew, skip)
            for first in self.firsts[skip:]:
                yield self._batch(first, noise, crew, drawn or own)
            if crew is not None and not crew.together:
                crew.is_whole = True
        finally:
            if own is not None:
                own.close()

    def _batch(self, first: int, noise: Tensor, crew: team.Team | None, drawn: Bar | None) -> Tensor:
        """Draw this process's share of a batch; return the whole batch where this process leads, or is alone."""
        count = len(self.labels[first : first + self.batch_size])
        rows = crew.share.rows if crew else slice(None)
        walk = _Trajectory(self, first, count, rows)
        # of a guided pass, if the model has any: one number for all draws, or each would be compiled
        most = len(range(self.batch_size)[rows]) * (2 if self.diffusion.has_null else 1)
        with self.diffusion.without_dropout(), arithmetic.computed(self.diffusion, self.computed, most):
            images = walk.denoise(noise, drawn)
        return crew.whole(images, count) if crew else images

    def _noise(self) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, 0))
        return torch.randn(len(self.labels), *self.diffusion.x0_shape, generator=generator)

    def _hand_out(self, crew: team.Team, skip: int) -> None:
        about = {
            "sampler": asdict(self.sampler),
            "seed": self.seed,
            "batch_size": self.batch_size,
            "decode": self.decode,
            "computed": self.computed,
            "skip": skip,
        }
        started = {} if self.start is None else {"x0": self.start[0], "t0": torch.tensor(self.start[1])}
        model = crew.once("model", self.diffusion.identity(), self.diffusion.save)
        crew.hand_out(JOB, {"labels": self.labels, **started, **model}, about)


def draw_along(crew: team.Team, about: dict[str, Any], told: dict[str, Tensor], device: torch.device) -> None:
    """Draw this process's rows of what the leader draws: the job of a process that follows, by the name JOB."""
    start = (told["x0"], int(told["t0"])) if "x0" in told else None
    request = Request(
        crew.kept("model", told, Diffusion.load, device), told["labels"], Sampler(**about["sampler"]), about["seed"],
        about["batch_size"], start=start, decode=about["decode"], computed=about["computed"],
    )  # fmt: skip
    noise = request._noise()
    for first in request.firsts[about["skip"] :]:
        request._batch(first, noise, crew, None)


def predict(diffusion: Diffusion, x_t: Tensor, t: Tensor, c: Tensor, guidance_scale: float) -> Tensor:
    """Return eps_null + g (eps_c - eps_null), both rows of an image in one pass of the denoiser; g = 1 takes one row."""
    if guidance_scale == 1:
        return diffusion(x_t, t, c)
    both = diffusion(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([c, diffusion.null(c)]))
    eps_c, eps_null = both.chunk(2)
    return torch.lerp(eps_null, eps_c, guidance_scale)


@dataclass(frozen=True)
class _Trajectory:
    """Some rows of a batch on their way from noise to images.

    Args:
        request: what to draw.
        first: row of the request that the batch begins with.
        count: rows of the batch.
        rows: those of the batch that this process draws.
    """

    request: Request
    first: int
    count: int
    rows: slice

    @torch.no_grad()
    def denoise(self, noise: Tensor, drawn: Bar | None) -> Tensor:
        """Return the images of the rows, on the CPU, from the starting noise of all rows of the request."""
        request, diffusion, mine = self.request, self.request.diffusion, self._mine
        x_t, labels = noise[mine].to(diffusion.device), request.labels[mine].to(diffusion.device)
        times = request.sampler.times(diffusion.T, diffusion.schedule.config.steps_offset).to(diffusion.device)
        rule = _rule(diffusion, request.sampler, times)
        walk = torch.stack([times, rule.timesteps])  # t, and what the rule calls that step
        if request.start is not None:
            x0, t0 = request.start
            t = torch.full((len(x_t),), t0, device=x_t.device)
            x_t = diffusion.diffuse(diffusion.encode(x0[mine].to(x_t.device)), t, x_t)
            walk = walk[:, times <= t0]
        generator = torch.Generator(x_t.device).manual_seed(derive_seed(request.seed, 1, self.first))
        for t_now, step in walk.unbind(1):
            x_t = self._step(rule, x_t, labels, (t_now, step), generator)
            if drawn is not None:
                drawn.update()
        x0 = diffusion.bounded(x_t.nan_to_num(0.0))
        return (diffusion.decode(x0).nan_to_num(0.0).clamp(-1, 1) if request.decode and len(x0) else x0).cpu()

    @property
    def _mine(self) -> slice:
        """The rows of the request that this process draws."""
        return slice(self.first + (self.rows.start or 0), self.first + self.count, self.rows.step)

    def _step(
        self, rule: Rule, x_t: Tensor, labels: Tensor, now: tuple[Tensor, Tensor], generator: torch.Generator
    ) -> Tensor:
        request, (t_now, step) = self.request, now
        sampler, c = request.sampler, labels if request.label_at is None else request.label_at(int(t_now), labels)
        t = t_now.expand(len(x_t))
        eps = predict(request.diffusion, x_t, t, c, sampler.guidance_scale) if len(x_t) else x_t
        if request.guide is not None:
            eps = request.guide(x_t, t, eps, self._mine)
        if sampler.name == "dpmpp":
            return rule.step(eps, step, x_t, return_dict=False)[0]
        eta = 1.0 if sampler.name == "ddpm" else sampler.eta
        keeps = sampler.keep_eps or not _clips(request.diffusion, sampler)
        # drawn for the whole batch, so that a row's noise does not depend on which process draws it
        whole = torch.randn(self.count, *x_t.shape[1:], generator=generator, device=x_t.device) if eta else None
        return rule.step(
            eps, step, x_t, eta=eta, use_clipped_model_output=not keeps,
            variance_noise=None if whole is None else whole[self.rows], return_dict=False,
        )[0]  # fmt: skip


def _clips(diffusion: Diffusion, sampler: Sampler) -> bool:
    """Whether the predicted x0 is clipped; latents have no range to be clipped to."""
    return sampler.clip and diffusion.codec is None


def _rule(diffusion: Diffusion, sampler: Sampler, times: Tensor) -> Rule:
    """Return the rule that walks through these steps; its `timesteps` are its own names of them."""
    betas, T, clip = diffusion.schedule.betas.tolist(), diffusion.T, _clips(diffusion, sampler)  # noqa: N806
    config = diffusion.schedule.config
    if sampler.name == "dpmpp":
        # Thresholding with a largest value of 1 is plain clipping of x0, which this class does not offer by name.
        solver = DPMSolverMultistepScheduler(
            T, trained_betas=betas, algorithm_type="dpmsolver++", solver_order=2, thresholding=clip,
            sample_max_value=1.0,
        )  # fmt: skip
        solver.set_timesteps(timesteps=times.tolist(), device=times.device)
        return solver
    leading = sampler.is_leading(T)
    rule = DDIMScheduler(
        T if leading else sampler.steps, trained_betas=betas if leading else None, clip_sample=clip,
        timestep_spacing="leading", steps_offset=int(times[-1]) if leading else 0,
    )  # fmt: skip
    if not config.get("set_alpha_to_one", True):
        rule.final_alpha_cumprod = diffusion.alpha_bar[0].cpu()
    if not leading:  # DDIMScheduler only walks in strides of T // steps, so these steps get numbers of their own
        rule.alphas_cumprod = diffusion.alpha_bar[times.flip(0)].cpu()
    rule.set_timesteps(sampler.steps, device=times.device)
    return rule
