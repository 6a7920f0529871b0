"""DualOptim: SFR-on whose forget steps have an Adam of their own, so that neither step disturbs the other's moments."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from safemax.diffusion.model import Diffusion
from safemax.knobs import knob
from safemax.method_tools import gradients
from safemax.method_tools.second_adam import SecondAdam
from safemax.methods.sfron import SFRon


@dataclass
class DualOptim(SFRon):
    """DualOptim (Zhong et al., NeurIPS 2025) on SFR-on, its headline method for the DDPM.

    One Adam that serves ascent and descent in turn divides each gradient by a mixture of both second moments and adds the
    other's momentum. Here the forget steps have moments and a learning rate of their own; the trainer's Adam takes the
    retain steps alone. A masked weight never has a forget gradient, so the second Adam leaves it as it is and nothing need
    be restored. The official coefficient of the forget loss is 1 instead of SFR-on's 10.
    """

    paper: ClassVar[str] = "Zhong et al., arXiv:2504.15827; SFR-on: Huang et al., arXiv:2409.19732"
    presets: ClassVar[dict[str, dict[str, object]]] = {
        "paper": {"forget_weight": 1.0, "retain_weight": 1.0, "pixel_sum": True, "forget_null_drop": 0.1}
    }

    forget_weight: float = knob(
        3072.0,
        "coefficient of the forget loss at step 0 (official: 1 x 3072)",
        bounds=(0, 1e9),
        search=(1, 1e5),
        log=True,
    )
    forget_lr: float = knob(
        1e-4, "learning rate of the forget steps' Adam (official: 1e-4)", bounds=(0, 10), search=(1e-5, 1e-3), log=True
    )
    hold: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._adam = SecondAdam(self.forget_lr)

    def constrain(self, diffusion: Diffusion) -> None:
        """Take a forget step with its own Adam; the gradient is masked and clipped by now."""
        if self._forgetting:
            self._adam.step(gradients.trained(diffusion))

    def state(self) -> dict[str, Tensor]:
        """Return the mask, the steps done and the second Adam's moments."""
        return {**super().state(), **self._adam.state()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        super().load_state(state)
        self._adam.load_state(state)
