"""Unlearning for class-conditional diffusion models: load, unlearn, sample, evaluate and save from Python.

Every name of `__all__` is loaded at its first use, so `import safemax` takes no time and imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safemax.api import evaluate, load_data, load_model, method, pretrain, sample, unlearn
    from safemax.data.dataset import Dataset, Split
    from safemax.diffusion.model import Diffusion
    from safemax.diffusion.sampling import FAST, PAPER, Sampler
    from safemax.errors import InputError, NonFiniteError
    from safemax.evaluation.measure import Evaluation
    from safemax.judges.load import JudgeConfig
    from safemax.reports.images_and_tables import grid
    from safemax.training.method import Method
    from safemax.training.trainer import Training

__all__ = [
    "FAST",
    "PAPER",
    "Dataset",
    "Diffusion",
    "Evaluation",
    "InputError",
    "JudgeConfig",
    "Method",
    "NonFiniteError",
    "Sampler",
    "Split",
    "Training",
    "evaluate",
    "grid",
    "load_data",
    "load_model",
    "method",
    "pretrain",
    "sample",
    "unlearn",
]
_HOMES = {
    "safemax.api": ("evaluate", "load_data", "load_model", "method", "pretrain", "sample", "unlearn"),
    "safemax.data.dataset": ("Dataset", "Split"),
    "safemax.diffusion.model": ("Diffusion",),
    "safemax.diffusion.sampling": ("FAST", "PAPER", "Sampler"),
    "safemax.errors": ("InputError", "NonFiniteError"),
    "safemax.evaluation.measure": ("Evaluation",),
    "safemax.judges.load": ("JudgeConfig",),
    "safemax.reports.images_and_tables": ("grid",),
    "safemax.training.method": ("Method",),
    "safemax.training.trainer": ("Training",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
