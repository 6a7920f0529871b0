"""Forward processes: the schedules that can be read, those that are offered by name, and what is refused."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import DDPMScheduler

from safemax.errors import InputError, note, unknown

Config = dict[str, Any]

# Samplers of diffusers whose forward process is that of DDPM: betas, x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps.
# Only their betas are read; how images are drawn is the Sampler's.
ACCEPTED = (
    *("DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler"),
    *("PNDMScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"),
    *("DEISMultistepScheduler", "UniPCMultistepScheduler", "SASolverScheduler", "LMSDiscreteScheduler"),
    *("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"),
    *("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"),
)
# The schedules that `schedule=` offers for a denoiser that was saved without one, in 1000 steps.
NAMED: dict[str, Config] = {
    "linear": {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"},
    "scaled_linear": {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "sigmoid": {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "sigmoid"},
}
_BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
# Settings that decide how images are drawn, with their usual values: what the network predicts, the first step t that it is
# asked at, and whether the last one ends without noise.
_DRAWING = {"prediction_type": "epsilon", "steps_offset": 0, "set_alpha_to_one": True}
PREDICTIONS = ("epsilon", "v_prediction")
# Settings of accepted classes that make another process or another prediction of them, and the only value that is read.
_FIXED = {
    "predict_epsilon": True,  # of diffusers before 0.9; false means that the network predicts x0
    "rescale_betas_zero_snr": False,  # at its last step alpha_bar is 0, and there eps says nothing about x0
    "use_flow_sigmas": False,
    "timestep_type": "discrete",
}
_NOISE = 0.05  # an alpha_bar at T - 1 above this is no pure noise


def named(name: str) -> DDPMScheduler:
    """Return a schedule of NAMED; InputError for another name."""
    if name not in NAMED:
        raise unknown("schedule", name, NAMED)
    return DDPMScheduler(1000, clip_sample=False, **NAMED[name])


def read(source: str, config: Config) -> DDPMScheduler:
    """Return the schedule that a scheduler_config.json describes, as a DDPMScheduler with the settings that drawing needs.

    Args:
        source: the model, for messages.
        config: the content of the file.

    Raises:
        InputError: it is of a class that is not accepted, has a setting that is not, or its betas make no noise schedule.
    """
    name = config.get("_class_name")
    if name not in ACCEPTED:
        raise InputError(
            f"{source} has the scheduler {name}, whose forward process is not that of DDPM; accepted: "
            + ", ".join(ACCEPTED)
        )
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise InputError(
            f"{source} has the scheduler {name} with prediction_type = {prediction}; supported: prediction_type = "
            + ", ".join(PREDICTIONS)
        )
    for key, value in _FIXED.items():
        if config.get(key, value) != value:
            raise InputError(
                f"{source} has the scheduler {name} with {key} = {config[key]}; supported: {key} = {value}"
            )
    try:
        own = getattr(diffusers, name).from_config(config)
        if name != "DDPMScheduler":
            drawing = unusual(own)
            own = DDPMScheduler(clip_sample=False, **{key: own.config[key] for key in _BETAS})
            own.register_to_config(**drawing)
    except Exception as error:  # diffusers raises a type of its own for each kind of wrong value
        reason = str(error).splitlines()[:1] or [type(error).__name__]
        raise InputError(f"{source} has a scheduler {name} that cannot be read: {reason[0]}") from error
    validate(own)
    _warn_of_weak_noise(source, own)
    return own


def unusual(schedule: Any) -> Config:
    """Return what a scheduler states about drawing that differs from the usual: prediction_type, steps_offset, ..."""
    return {key: schedule.config[key] for key, usual in _DRAWING.items() if schedule.config.get(key, usual) != usual}


def validate(schedule: DDPMScheduler) -> None:
    """Raise InputError unless the network predicts eps or v and alpha_bar falls from step to step within (0, 1)."""
    config = schedule.config
    supported: dict[str, tuple[object, ...]] = {"prediction_type": PREDICTIONS, "rescale_betas_zero_snr": (False,)}
    for key, values in supported.items():
        if config[key] not in values:
            raise InputError(f"{key} {config[key]!r} is not supported; supported: {', '.join(map(str, values))}")
    alpha_bar = schedule.alphas_cumprod
    if len(alpha_bar) != config.num_train_timesteps:
        raise InputError(
            f"the schedule has {len(alpha_bar)} betas but num_train_timesteps = {config.num_train_timesteps}"
        )
    if not (len(alpha_bar) and bool(((alpha_bar > 0) & (alpha_bar < 1)).all()) and bool((alpha_bar.diff() < 0).all())):
        raise InputError("the schedule's betas are not a noise schedule: each must lie between 0 and 1")


def _warn_of_weak_noise(source: str, schedule: DDPMScheduler) -> None:
    last = float(schedule.alphas_cumprod[-1])
    if last > _NOISE:
        note(
            f"{source}: after all {len(schedule.alphas_cumprod)} steps alpha_bar is {last:.2g}, not near 0; images are drawn "
            "from pure noise, which this model has not seen",
            stacklevel=4,
        )
