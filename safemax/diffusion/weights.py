"""Which weights of a model may move: all of them, those of some layers, or adapters of low rank beside its linear layers."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraModel
from torch import Tensor
from torch.nn import Parameter

from safemax.diffusion.changes import add_adapter
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError

WITHOUT_ADAPTERS = ("all", "attention", "cross_attention", "label_embedding")
CHOICES = (*WITHOUT_ADAPTERS, "lora")
_ADAPTER = ".lora_"  # in the names of an adapter's weights


def limit(diffusion: Diffusion, choice: str, *, rank: int) -> None:
    """Let only the chosen weights move: the model has no other `parameters` from now on, until `release`.

    So a method's masks, Fisher information and teacher are those of the chosen weights, without its doing.

    Args:
        diffusion: the model, whose adapters get initial weights from torch's global seed; they change no prediction yet.
        choice: one of CHOICES.
        rank: of the adapters of lora.

    Raises:
        InputError: the network has no such weights.
    """
    if choice == "lora":
        linear = [name for name, each in diffusion.denoiser.named_modules() if isinstance(each, torch.nn.Linear)]
        LoraModel(diffusion.denoiser, LoraConfig(r=rank, lora_alpha=rank, target_modules=linear), "default")
    diffusion.choose_weights(_parts(diffusion, choice), listed=True)
    chosen = {id(p) for p in diffusion.parameters()}
    for p in diffusion.denoiser.parameters():
        p.requires_grad_(id(p) in chosen)


def release(diffusion: Diffusion) -> None:
    """Let all weights move again; adapters become part of the weights beside which they were, and `diffusion.adapters`."""
    if diffusion.moving == (_ADAPTER,):
        with torch.no_grad():
            diffusion.adapters = _merge(diffusion.denoiser)
    diffusion.choose_weights(("",), listed=False)
    diffusion.denoiser.requires_grad_(True)


def select(diffusion: Diffusion, choice: str) -> list[Parameter]:
    """Return those weights of some layers that may move.

    Args:
        diffusion: the model.
        choice: all, or layers that its kind of network names.

    Raises:
        InputError: the network has no such weights.
    """
    parts = _parts(diffusion, choice, "subset")
    return [p for name, p in diffusion.named_parameters() if any(part in name for part in parts)]


def validate(diffusion: Diffusion, choice: str) -> None:
    """Raise InputError where the network has no such weights."""
    _parts(diffusion, choice)


def _parts(diffusion: Diffusion, choice: str, knob: str = "trainable") -> tuple[str, ...]:
    """Return what the names of the chosen weights contain."""
    known = {"all": ("",), **diffusion.kind.layers, "lora": (_ADAPTER,)}
    if choice not in known:
        listed = ", ".join(name for name in known if name in CHOICES)
        network = diffusion.kind.network.__name__
        raise InputError(f"{knob} = {choice} is not allowed: {network} has no such weights; it has {listed}")
    return known[choice]


def _merge(denoiser: torch.nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Add the adapters to the weights and take them off the network; return b and a of each weight's."""
    from diffusers.utils.peft_utils import recurse_remove_peft_layers
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapters = {}
    layers: dict[str, Any] = {name: each for name, each in denoiser.named_modules() if isinstance(each, BaseTunerLayer)}
    for name, layer in layers.items():
        b, a = (each["default"].weight.detach() for each in (layer.lora_B, layer.lora_A))
        weight = layer.get_base_layer().weight
        weight.copy_(add_adapter(weight, b, a))  # lora_alpha is the rank, so that their scale is 1
        adapters[f"{name}.weight"] = b, a
    recurse_remove_peft_layers(denoiser)
    if hasattr(denoiser, "peft_config"):
        del denoiser.peft_config
    return adapters
