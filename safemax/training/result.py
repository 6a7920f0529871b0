"""How a training run ended and what it cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field


@dataclass
class Cost:
    """What a run has cost so far, summed over the processes that resumed it.

    Attributes:
        setup_minutes: preparation before step 0, also where it was loaded from an earlier run's prior.
        runtime_minutes: the steps themselves.
        peak_memory_gb: of the steps, in 1e9 bytes; on a GPU the allocator's, else the process's.
        images_seen: training images, over all steps and processes.
        side_state_gb: what the method holds beside the model (mask, teacher, Fisher information), in 1e9 bytes.
    """

    setup_minutes: float = 0.0
    runtime_minutes: float = 0.0
    peak_memory_gb: float = 0.0
    images_seen: int = 0
    side_state_gb: float = 0.0

    def metrics(self) -> dict[str, float]:
        """Return the cost by metric key: cost/runtime_minutes, ..."""
        return {f"cost/{name}": float(value) for name, value in asdict(self).items()}


@dataclass
class FitResult:
    """How `Trainer.fit` ended.

    Attributes:
        cost: minutes, memory and images.
        resumed_from: `origin` of the run whose checkpoint was resumed; "" without one.
        losses: the last reported terms by metric key, loss/<term>.
    """

    cost: Cost
    resumed_from: str = ""
    losses: dict[str, float] = field(default_factory=dict)
