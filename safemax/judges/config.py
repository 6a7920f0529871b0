"""Which classifiers judge, as a user names them, and what the names stand for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from safemax.data.dataset import Dataset
from safemax.errors import InputError
from safemax.judges import none_head
from safemax.judges.files import PROMPT
from safemax.knobs import check, knob
from safemax.storage import hub

# Of a hub's repository of transformers, timm or CLIP.
_DOWNLOADED = ("*.json", "model*.safetensors", "merges.txt", "vocab.txt")


@dataclass(frozen=True)
class JudgeConfig:
    """Which classifiers judge. A judge that is not given by path is trained once on the same data and cached."""

    judge: str = knob(
        "auto",
        "small, whitened, whitened_wide, resnet20 (32, 44, 56, 110), resnet34, a path (weights of a CIFAR ResNet, or a folder of "
        "transformers, timm or CLIP), or the hub id of one; auto fits the image size, and takes the wide one on a GPU",
    )
    judge_steps: int = knob(
        0, "training steps of a judge; 0 takes as many as its architecture needs", bounds=(0, 1_000_000)
    )
    judge_pretrained: str = knob(
        "none", "ImageNet weights for resnet34, by path or hub id; none starts from random weights"
    )
    reject_judges: int = knob(3, "judges of the ensemble with a reject class", bounds=(1, 10))
    reject_judge: str = knob(
        "auto",
        "none_head (small heads on the plain judge), none_head:PATH,PATH (on other judges, which vote more independently), an "
        "architecture of the ensemble, a path to a saved one, or CLIP by path or hub id, with prompts for none of these; "
        "auto is none_head above 16 pixels, else small",
    )
    judge_prompt: str = knob(PROMPT, "what CLIP compares an image with, where {} is a class", added=True)
    judge_seed: int = knob(0, "fixes the judges' training", bounds=(0, 2**31))
    inception: str = knob(
        "auto",
        "adds retain/fid_inception, the standard FID: auto (for natural images of 32 pixels or more, where torch-fidelity is "
        "installed and its weights lie in torch's cache), none, fetch (downloads them) or the path of a safetensors file",
    )

    def __post_init__(self) -> None:
        check(self)
        if "{}" not in self.judge_prompt:
            raise InputError(
                f"judge_prompt = {self.judge_prompt!r} is not allowed; it must contain {{}}, in place of a class"
            )


def resolved(config: JudgeConfig, dataset: Dataset) -> JudgeConfig:
    """Return the config with what auto stands for: for these images, and on a machine with or without a GPU."""
    large = dataset.image_shape[-1] > 16
    wide = "whitened_wide" if torch.cuda.is_available() else "whitened"
    judge = config.judge if config.judge != "auto" else wide if large else "small"
    reject = config.reject_judge if config.reject_judge != "auto" else none_head.NAME if large else "small"
    return replace(config, judge=_local("judge", judge), reject_judge=_local("reject_judge", reject))


def _local(role: str, name: str) -> str:
    """Return a judge's name with the hub ids in it as folders of the hub's cache, downloaded where they are not there."""
    head, mark, listed = name.partition(":") if none_head.is_named(name) else ("", "", name)
    places = [str(hub.fetch(role, each, _DOWNLOADED)) if hub.is_id(each) else each for each in listed.split(",")]
    return head + mark + ",".join(places)


def reject_seeds(config: JudgeConfig) -> range:
    """Return the seeds of the ensemble with a reject class."""
    return range(config.judge_seed + 1, config.judge_seed + 1 + config.reject_judges)
