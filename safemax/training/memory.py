"""What a training run will need of a GPU's memory, known before it begins, and refused where the GPU has less."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter

from safemax.diffusion import weights
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError
from safemax.training import optimizers
from safemax.training.devices import uses_bf16
from safemax.training.frozen import ROUNDED
from safemax.training.settings import Training

_HALF = 0.6  # of a pass's memory in bf16: norms and sums stay in float32


@dataclass(frozen=True)
class Need:
    """Bytes of a run, beside what its method holds (a teacher, a mask, a second gradient), the codec and the judges.

    Args:
        weights: of the denoiser, those that do not move halved in bf16, and bf16 copies of those that do.
        optimizer: gradients, Adam's two moments and, if there is one, the average of the weights that move.
        activations: kept by one pass forward for the pass backward.
        rows: of that pass.
    """

    weights: int
    optimizer: int
    activations: int
    rows: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.optimizer + self.activations

    def __str__(self) -> str:
        """Return it in one line, in units of 1e9 bytes."""
        parts = {
            "weights": self.weights,
            "gradients and Adam": self.optimizer,
            f"a pass of {self.rows} rows": self.activations,
        }
        listed = ", ".join(f"{name} {size / 1e9:.2g} GB" for name, size in parts.items())
        return f"memory: {listed}: about {self.total / 1e9:.2g} GB, plus what the method holds"

    def validate(self, available: int) -> None:
        """Raise InputError where a device has fewer bytes."""
        if self.total > available:
            raise InputError(
                f"{self}; the device has {available / 1e9:.2g} GB: accumulate splits a step, gradient_checkpointing keeps less of "
                "a pass, trainable = lora moves fewer weights, precision = bf16 halves a pass and the weights that do not move, "
                "optimizer_state = 8bit leaves a quarter of Adam's moments"
            )


def check(diffusion: Diffusion, training: Training, device: torch.device) -> str:
    """Return what a run will need, in one line, "" where that is less than 1 GB; InputError where the GPU has less."""
    need = needed(diffusion, training)
    if device.type == "cuda":
        need.validate(torch.cuda.get_device_properties(device).total_memory)
    return str(need) if need.total >= 1e9 else ""


def needed(diffusion: Diffusion, training: Training) -> Need:
    """Return what a run will need, without computing anything: the pass runs on torch's meta device.

    Args:
        diffusion: the model.
        training: its rows, weights that move, precision and checkpointing count.
    """
    weights.validate(diffusion, training.trainable)
    rows = max(1, training.batch_size // training.accumulate)
    scale = _HALF if uses_bf16(training) else 1.0
    moving = _moving(diffusion, training)
    copies = 2 if training.ema else 1
    return Need(
        weights=_weights(diffusion, training),
        optimizer=4 * copies * sum(moving) + optimizers.bytes_of(moving, training),
        activations=int(scale * rows * _kept_by_a_row(diffusion, training)),
        rows=rows,
    )


def _moving(diffusion: Diffusion, training: Training) -> list[int]:
    """Return the sizes of the weights that move."""
    if training.trainable == "lora":
        linear = [each for each in diffusion.denoiser.modules() if isinstance(each, torch.nn.Linear)]
        return [training.lora_rank * side for each in linear for side in (each.in_features, each.out_features)]
    return [p.numel() for p in _chosen(diffusion, training)]


def _chosen(diffusion: Diffusion, training: Training) -> list[Parameter]:
    """Return the network's own weights that move; none where adapters do."""
    parts = {"all": ("",), **diffusion.kind.layers}.get(training.trainable, ())
    return [p for name, p in diffusion.named_parameters() if any(part in name for part in parts)]


def _weights(diffusion: Diffusion, training: Training) -> int:
    """Return the bytes of the denoiser: frozen layers in bf16 where the run is, with bf16 copies of those that move."""
    whole = sum(4 * p.numel() for p in diffusion.denoiser.parameters())
    if not uses_bf16(training):
        return whole
    moving = {id(p) for p in _chosen(diffusion, training)}
    layers = [each for each in diffusion.denoiser.modules() if isinstance(each, ROUNDED)]
    own = [p for layer in layers for p in layer.parameters(recurse=False)]
    return whole + sum(2 * p.numel() if id(p) in moving else -2 * p.numel() for p in own)


def _kept_by_a_row(diffusion: Diffusion, training: Training) -> int:
    """Return the bytes that one row's pass keeps for the pass backward: the difference of two rows and one."""
    return _kept(diffusion, training, 2) - _kept(diffusion, training, 1)


def _kept(diffusion: Diffusion, training: Training, rows: int) -> int:
    network = diffusion.denoiser
    inputs = diffusion.condition(torch.zeros(rows, dtype=torch.int64, device=diffusion.device))
    with torch.device("meta"):
        twin = type(network).from_config(network.config).train()
        checkpoint_activations(twin, training.gradient_checkpointing)
        held: dict[int, Tensor] = {}

        def hold(tensor: Tensor) -> Tensor:
            held.setdefault(tensor.untyped_storage()._cdata, tensor)
            return tensor

        side = diffusion.x0_shape[-1] + sum(diffusion._padding)
        x_t, t = torch.empty(rows, diffusion.x0_shape[0], side, side), torch.zeros(rows, dtype=torch.int64)
        with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
            twin(x_t, t, **{name: each.to("meta") for name, each in inputs.items()})
    weights = {p.untyped_storage()._cdata for p in twin.parameters()}
    return sum(each.untyped_storage().nbytes() for key, each in held.items() if key not in weights)


def checkpoint_activations(denoiser: torch.nn.Module, on: bool) -> None:
    """Let a network keep its blocks' inputs alone and compute the rest again in the pass backward, or no longer."""
    if on:
        denoiser.enable_gradient_checkpointing()  # type: ignore[operator]  # of every network of diffusers
    elif getattr(denoiser, "is_gradient_checkpointing", False):
        denoiser.disable_gradient_checkpointing()  # type: ignore[operator]
