"""Unlearning for class-conditional diffusion models: load, unlearn, sample, evaluate and save from Python.

Every name of `__all__` is loaded at its first use, so `import safemax` takes no time and imports no torch. `__init__.pyi` shows the
names to type checkers and editors; it is a file of its own because storage/source_digest.py follows imports, whoever reads them.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "safemax.api": ("evaluate", "load_data", "load_model", "method", "pretrain", "sample", "unlearn"),
    "safemax.data.dataset": ("Dataset", "Split"),
    "safemax.diffusion.model": ("Diffusion",),
    "safemax.diffusion.sampling": ("FAST", "PAPER", "Sampler"),
    "safemax.errors": ("InputError", "NonFiniteError"),
    "safemax.evaluation.protocol": ("Evaluation",),
    "safemax.judges.config": ("JudgeConfig",),
    "safemax.reports.images_and_tables": ("grid",),
    "safemax.training.method": ("Method",),
    "safemax.training.settings": ("Training",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
