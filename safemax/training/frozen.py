"""Weights that do not move, held in bf16 while a run in bf16 lasts: half their memory, the same arithmetic.

Only those. In bf16 a step of Adam is mostly smaller than the distance to the next number, so weights that move keep a float32
copy, which is the one that methods, masks and averages see; autocast makes bf16 ones of it pass by pass. Stochastic rounding
would need no such copy, but would move weights that a mask holds, and would round all of the base's to begin with. Frozen
weights are only read, and autocast rounds those of linear layers and convolutions in every pass: rounding them once gives the
same passes, to the bit. Their own bytes wait on the CPU.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import Parameter

ROUNDED = (nn.Linear, nn.Conv1d, nn.Conv2d)  # autocast computes them in bf16, and norms in float32


class FrozenWeights:
    """The frozen weights of one network; none are held before `hold`."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[Parameter, Tensor]] = {}

    def hold(self, network: nn.Module) -> None:
        """Round the frozen weights of linear layers and convolutions to bf16 until `release`."""
        for name, p in rounded(network):
            self._held[name] = (p, p.detach().to("cpu", copy=True))
            p.data = p.data.bfloat16()

    def originals(self) -> dict[str, Tensor]:
        """Return the weights as they were, by their names in the network."""
        return {name: original for name, (_, original) in self._held.items()}

    def release(self) -> None:
        """Give the weights their bytes back."""
        for p, original in self._held.values():
            p.data = original.to(p.device)
        self._held = {}


def rounded(network: nn.Module) -> list[tuple[str, Parameter]]:
    """Return the frozen weights that autocast rounds in every pass, with their names.

    The network's first layer is left out: diffusers takes the type of its embeddings from it.
    """
    first = next(iter(network.parameters()), None)
    return [
        (f"{at}.{name}", p)
        for at, layer in network.named_modules()
        if isinstance(layer, ROUNDED) and layer.weight is not first
        for name, p in layer.named_parameters(recurse=False)
        if not p.requires_grad
    ]
