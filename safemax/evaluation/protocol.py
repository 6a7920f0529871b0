"""How a model is measured: samplers, counts and seed, as a protocol by name or by knobs of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from safemax.diffusion.arithmetic import CHOICES, EXACT
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import FAST, PAPER, SECOND, USERS, Sampler
from safemax.errors import InputError, note
from safemax.evaluation import panel_classes
from safemax.knobs import check, knob
from safemax.metrics.kid import FEWEST


@dataclass(frozen=True)
class Evaluation:
    """How a model is measured; recorded with every number, since sampler and counts decide the numbers.

    `fast`: DDIM-20, x0 clipped, guidance 1.5; 500 forget and 100 images a retained class. `paper`: 1,000 ancestral steps,
    guidance 3, no clipping; 500 and 5,000. Both sample a second time with the other kind of sampler. `custom` takes the knobs.
    """

    protocol: str = knob(
        "fast", "fast, paper, or custom, which takes the sampler's knobs below", choices=("fast", "paper", "custom")
    )
    forget_samples: int = knob(0, "images of the forgotten classes; 0 takes the protocol's", bounds=(0, 1_000_000))
    retain_samples: int = knob(0, "images of each retained class; 0 takes the protocol's", bounds=(0, 1_000_000))
    second_samples: int = knob(100, "images of the forgotten classes under the second sampler", bounds=(1, 1_000_000))
    user_samples: int = knob(
        10,
        "images of each class under each sampler that people use (metrics samplers/...); 0 draws none",
        bounds=(0, 1_000_000),
        added=True,
    )
    sampler: str = knob("ddim", "sampling rule of custom", choices=("ddim", "ddpm", "dpmpp"))
    sampler_steps: int = knob(20, "denoising steps of custom", bounds=(1, 1000))
    guidance_scale: float = knob(1.5, "guidance of custom: g in eps_null + g (eps_c - eps_null)", bounds=(-20, 20))
    sampler_eta: float = knob(0.0, "noise of custom's ddim steps, 0 to 1", bounds=(0, 1))
    clip_x0: bool = knob(True, "whether custom clips the predicted x0")
    evaluation_seed: int = knob(0, "fixes the samples", bounds=(0, 2**62))
    retain_classes: str = knob(
        "auto",
        "retained classes that are drawn and judged: auto (all up to 100, else 20), all, names, or a number: half of these are "
        "the nearest to the forgotten ones by the model's own embeddings",
        added=True,
    )
    arithmetic: str = knob(
        EXACT,
        "how the panel's images are computed on a GPU: exact (float32), bf16, or compiled (bf16 by torch.compile, which takes a "
        "minute first); on a CPU always exact",
        choices=CHOICES,
        added=True,
    )
    panel_hours: float = knob(
        72.0,
        "hours that drawing one model's images may take, estimated from one pass on this machine; more is refused before any "
        "work; 0 allows any",
        bounds=(0, 1e6),
        added=True,
    )

    def __post_init__(self) -> None:
        check(self)
        if 0 < self.forget_samples < FEWEST:
            allowed = f"{FEWEST} or more, which KID needs, or 0 for the protocol's"
            raise InputError(f"forget_samples = {self.forget_samples} is not allowed; {allowed}")
        fixed = ("sampler", "sampler_steps", "guidance_scale", "sampler_eta", "clip_x0")
        default = type(self).__dataclass_fields__
        changed = [name for name in fixed if getattr(self, name) != default[name].default]
        if self.protocol != "custom" and changed:
            raise InputError(
                f"protocol = {self.protocol} fixes {', '.join(changed)}; protocol = custom takes your value"
            )

    @property
    def main_sampler(self) -> Sampler:
        """The sampler that the metrics are of."""
        custom = Sampler(self.sampler, self.sampler_steps, self.guidance_scale, self.sampler_eta, self.clip_x0)
        return {"fast": FAST, "paper": PAPER, "custom": custom}[self.protocol]

    @property
    def second_sampler(self) -> Sampler:
        """The sampler of the second opinion on the forgotten classes."""
        if self.protocol == "custom":
            return Sampler("ddpm", min(self.sampler_steps, SECOND.steps), self.guidance_scale, 0.0, False)
        return SECOND if self.protocol == "fast" else FAST

    def user_samplers(self, diffusion: Diffusion) -> dict[str, Sampler]:
        """Return the samplers that people use, by name, of those that the model allows: without null label unguided ones only."""
        if not self.user_samples:
            return {}
        allowed = {name: each for name, each in USERS.items() if each.guidance_scale == 1 or diffusion.has_null}
        return {name: each.within(diffusion) for name, each in allowed.items()}

    @property
    def counts(self) -> tuple[int, int]:
        """Forget images in all, and images of each retained class."""
        forget, retain = (500, 5000) if self.protocol == "paper" else (500, 100)
        return self.forget_samples or forget, self.retain_samples or retain

    def fitted(self, diffusion: Diffusion, forget: Sequence[int] = ()) -> Evaluation:
        """Return this evaluation with the retained classes by name where they are not all (`panel_classes.choose`).

        Where the model has no null label, it is unguided (as protocol = custom), with a warning.

        Args:
            diffusion: the model before its correction.
            forget: the labels to forget.

        Raises:
            InputError: a sampler takes more steps than the model has, or there is no such class to retain.
        """
        chosen = panel_classes.choose(self.retain_classes, diffusion, forget, self.evaluation_seed)
        fitted, main = replace(self, retain_classes=chosen), self.main_sampler
        if not diffusion.has_null and main.guidance_scale != 1:
            forget_samples, retain_samples = self.counts
            fitted = replace(
                fitted, protocol="custom", sampler=main.name, sampler_steps=main.steps, guidance_scale=1.0,
                sampler_eta=main.eta, clip_x0=main.clip, forget_samples=forget_samples, retain_samples=retain_samples,
            )  # fmt: skip
            note(
                f"the model has no null label, so protocol = {self.protocol} is sampled unguided (guidance_scale = 1) and "
                "recorded as custom",
            )
        for sampler in (fitted.main_sampler, fitted.second_sampler):
            sampler.validate(diffusion)
        return fitted

    def describe(self) -> dict[str, Any]:
        """Return what makes two numbers comparable, for params and evidence."""
        forget, retain = self.counts
        some = {} if self.retain_classes == panel_classes.AUTO else {"retain_classes": self.retain_classes}
        some |= {} if self.arithmetic == EXACT else {"arithmetic": self.arithmetic}
        return {
            "protocol": self.protocol,
            "sampler": str(self.main_sampler),
            "second_sampler": str(self.second_sampler),
            "forget_samples": forget,
            "retain_samples": retain,
            "user_samples": self.user_samples,
            "seed": self.evaluation_seed,
            **some,
        }
