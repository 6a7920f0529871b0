from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDPMScheduler

from safemax.diffusion import schedules
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError
from tests.support import tiny_models

OTHER_PROCESSES = (
    *("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "EDMEulerScheduler"),
    *("EDMDPMSolverMultistepScheduler", "CMStochasticIterativeScheduler", "ScoreSdeVeScheduler", "ScoreSdeVpScheduler"),
    *("LCMScheduler", "TCDScheduler", "SCMScheduler", "KarrasVeScheduler", "UnCLIPScheduler", "NoSuchScheduler"),
)


def saved(folder: Path, config: dict[str, Any]) -> Path:
    """Write a tiny model with another scheduler's configuration."""
    tiny_models.diffusion().save(folder)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", OTHER_PROCESSES)
def test_a_scheduler_of_another_process_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"scheduler {name}, whose forward .*accepted: DDPMScheduler") as caught:
        Diffusion.load(saved(tmp_path, {"_class_name": name, "num_train_timesteps": 1000}))
    assert "\n" not in str(caught.value)


def test_a_scheduler_without_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has the scheduler None"):
        Diffusion.load(saved(tmp_path, {"num_train_timesteps": 1000}))


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("DDPMScheduler", {"predict_epsilon": False}),
        ("DDIMScheduler", {"prediction_type": "sample"}),
        ("EulerDiscreteScheduler", {"prediction_type": "sample"}),
        ("DDPMScheduler", {"rescale_betas_zero_snr": True}),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}),
    ],
)
def test_a_setting_that_makes_another_process_is_refused(tmp_path: Path, name: str, setting: dict[str, Any]) -> None:
    key = next(iter(setting)) if "prediction_type" not in setting else "prediction_type"
    with pytest.raises(InputError, match=f"{name} with {key} = .*; supported: {key} = "):
        Diffusion.load(saved(tmp_path, {"_class_name": name, **setting}))


@pytest.mark.parametrize(
    "setting",
    [
        {"beta_schedule": "nonsense"},
        {"beta_start": "text"},
        {"trained_betas": [0.1, 0.2]},
        {"num_train_timesteps": 0},
        {"trained_betas": [0.1, 0.0, 0.1], "num_train_timesteps": 3},
        {"trained_betas": [0.1, 1.5, 0.1], "num_train_timesteps": 3},
        {"trained_betas": [0.1, float("nan"), 0.1], "num_train_timesteps": 3},
    ],
)
def test_betas_that_make_no_schedule_give_one_line(tmp_path: Path, setting: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        Diffusion.load(saved(tmp_path, {"_class_name": "DDPMScheduler", **setting}))
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", schedules.ACCEPTED)
def test_an_accepted_scheduler_is_read_with_its_own_alpha_bar(tmp_path: Path, name: str) -> None:
    betas = {"num_train_timesteps": 200, "beta_start": 1e-3, "beta_end": 0.1, "beta_schedule": "scaled_linear"}
    own = getattr(diffusers, name)(**betas)
    own.save_pretrained(tmp_path / "own")
    config = json.loads((tmp_path / "own" / "scheduler_config.json").read_text())
    diffusion = Diffusion.load(saved(tmp_path / "model", config))
    assert diffusion.T == 200
    assert torch.equal(diffusion.alpha_bar, own.alphas_cumprod)
    diffusion.save(tmp_path / "again")
    assert torch.equal(Diffusion.load(tmp_path / "again").alpha_bar, own.alphas_cumprod)


def test_defaults_are_those_of_the_class_that_is_named(tmp_path: Path) -> None:
    diffusion = Diffusion.load(saved(tmp_path, {"_class_name": "HeunDiscreteScheduler"}))
    assert diffusion.alpha_bar[0] == pytest.approx(1 - 0.00085)  # DDPM's own default is 1e-4


def test_a_schedule_that_ends_before_pure_noise_says_so(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"after all 75 steps alpha_bar is 0.47"):
        Diffusion.load(saved(tmp_path, {"_class_name": "DDPMScheduler", "num_train_timesteps": 75}))


@pytest.mark.parametrize("name", schedules.NAMED)
def test_a_model_without_scheduler_takes_one_by_name(tmp_path: Path, name: str) -> None:
    tiny_models.diffusion().save(tmp_path)
    with pytest.raises(InputError, match=f"schedule = {name} is not allowed: .* has a scheduler"):
        Diffusion.load(tmp_path, schedule=name)
    (tmp_path / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(InputError, match="schedule = linear, scaled_linear, cosine, sigmoid says"):
        Diffusion.load(tmp_path)
    diffusion = Diffusion.load(tmp_path / "unet", schedule=name)
    assert diffusion.T == 1000
    assert diffusion.alpha_bar[-1] < 0.01
    assert torch.equal(diffusion.alpha_bar, schedules.named(name).alphas_cumprod)


def test_an_unknown_schedule_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="unknown schedule 'cosin' .*known: linear, scaled_linear, cosine, sigmoid"):
        schedules.named("cosin")


def test_the_zero_snr_of_a_schedule_made_in_code_is_refused() -> None:
    model = tiny_models.diffusion()
    with pytest.raises(InputError, match="rescale_betas_zero_snr True is not supported"):
        Diffusion(model.denoiser, DDPMScheduler(rescale_betas_zero_snr=True), model.class_names)
