"""How much work a method and an attack are: rows of the network that they draw and train.

Work is counted, not declared: a method's preparation and one of its steps, or an attack, are run with the real numbers of rows on
a network that computes next to nothing, and its passes are counted. So a new method needs nothing here.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor

from pipelines.planning.rates import kept
from safemax.attacks.base import Attack, Setting
from safemax.data.dataset import Dataset, Split
from safemax.diffusion.model import Diffusion
from safemax.judges.classifier import Judge
from safemax.methods import knobs_of
from safemax.storage import source_digest
from safemax.training.hooks import Hooks
from safemax.training.method import Method
from safemax.training.settings import Training
from safemax.training.trainer import Trainer

_SIDE = 8  # pixels of the images of the counted network


@dataclass
class Rows:
    """Rows of a network: those of forward passes without gradients, and those of passes that learn."""

    drawn: float = 0
    trained: float = 0


@dataclass(frozen=True)
class MethodWork:
    """Rows of a method's preparation, and of one of its steps."""

    preparation: Rows
    step: Rows


def work_of(
    method: Method, training: Training, dataset: Dataset, forget: tuple[int, ...], *, has_null: bool = True
) -> MethodWork:
    """Return a method's work, counted once, then kept."""
    facts: dict[str, object] = {
        "method": type(method).__name__,
        "knobs": knobs_of(method),
        "rows": [training.forget_rows, training.retain_rows],
    }
    facts |= {"accumulate": training.accumulate, "null": has_null, **_data(dataset, forget)}
    facts |= {"code": source_digest.digest(type(method).__module__)}
    counts = kept(facts, lambda: _count_method(method, training, dataset, forget, has_null))
    prepared = Rows(counts["prepare_drawn"], counts["prepare_trained"])
    return MethodWork(prepared, Rows(counts["step_drawn"], counts["step_trained"]))


def attack_rows(
    attack: Attack, samples: int, dataset: Dataset, forget: tuple[int, ...], *, has_null: bool = True
) -> Rows:
    """Return the rows of one attack on one model, counted once, then kept."""
    facts = {"attack": type(attack).__name__, "knobs": asdict(attack), "samples": samples, "null": has_null}
    facts |= {**_data(dataset, forget), "code": source_digest.digest(type(attack).__module__)}
    counts = kept(facts, lambda: _count_attack(attack, samples, dataset, forget, has_null))
    return Rows(counts["drawn"], counts["trained"])


def _data(dataset: Dataset, forget: tuple[int, ...]) -> dict[str, object]:
    return {"images": len(dataset.train.labels), "classes": dataset.num_classes, "forget": forget}


def _count_method(
    method: Method, training: Training, dataset: Dataset, forget: tuple[int, ...], has_null: bool
) -> dict[str, float]:
    plain = replace(
        training, minutes=0.0, device="cpu", precision="fp32", compile="none", channels_last=False, checkpoint_every=0,
        trainable="all", gradient_checkpointing=False,  # neither changes rows, and the twin may lack them
    )  # fmt: skip
    twin, hooks, small = _counted(dataset, has_null), Hooks(progress=False), _small(dataset)
    trainer = Trainer(twin, copy.deepcopy(method), small.train, forget, plain, hooks=hooks)
    trainer.prepare()
    before = replace(_Counted.rows)
    if training.steps:
        trainer.step()
    after = _Counted.rows
    return {
        "prepare_drawn": before.drawn, "prepare_trained": before.trained,
        "step_drawn": after.drawn - before.drawn, "step_trained": after.trained - before.trained,
    }  # fmt: skip


def _count_attack(
    attack: Attack, samples: int, dataset: Dataset, forget: tuple[int, ...], has_null: bool
) -> dict[str, float]:
    small, twin = _small(dataset), _counted(dataset, has_null)
    judge = Judge("small", small.class_names, small.image_shape).eval()
    neighbour = next(k for k in range(small.num_classes) if k not in forget)
    setting = Setting(small, forget, judge, judge, neighbour, copy.deepcopy(twin), samples)
    for _ in attack.trials(twin, setting):
        pass
    return {"drawn": _Counted.rows.drawn, "trained": _Counted.rows.trained}


class _Counted(UNet2DModel):
    """A network whose passes cost next to nothing: it scales its input by the mean of its weights, and counts rows."""

    rows: ClassVar[Rows] = Rows()  # of every copy: a frozen teacher's passes count too

    def forward(self, sample: Tensor, *_: object, **__: object) -> UNet2DOutput:
        weights = list(self.parameters())
        if torch.is_grad_enabled() and any(each.requires_grad for each in weights):
            self.rows.trained += len(sample)
        else:
            self.rows.drawn += len(sample)
        return UNet2DOutput(sample=sample * torch.stack([each.mean() for each in weights]).mean())


def _counted(dataset: Dataset, has_null: bool) -> Diffusion:
    channels, labels = dataset.image_shape[0], dataset.num_classes + has_null
    denoiser = _Counted(
        sample_size=_SIDE, in_channels=channels, out_channels=channels, num_class_embeds=labels, block_out_channels=(8,),
        layers_per_block=1, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), norm_num_groups=4,
    )  # fmt: skip
    _Counted.rows = Rows()
    return Diffusion(denoiser, DDPMScheduler(1000, clip_sample=False), dataset.class_names)


def _small(dataset: Dataset) -> Dataset:
    """Return a data set whose images have _SIDE pixels; what they show does not matter."""
    train, test = (Split(each.images[..., :_SIDE, :_SIDE], each.labels) for each in (dataset.train, dataset.test))
    return replace(dataset, train=train, test=test)
