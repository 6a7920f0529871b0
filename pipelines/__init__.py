"""Thin MLflow entry points over safemax: parse the parameters, open a run, call the library, log what came out."""

import ctypes
import logging
import os
import re
import sys
import warnings
from importlib.metadata import distributions
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parents[1]  # of the checkout, or of what is installed


def _refuse_clash() -> None:
    """Raise ImportError where another distribution installs a package `pipelines` or `hpo` too.

    pip overwrites files of one name without a word, and then neither distribution works as it should.
    """
    ours = re.compile(r"^(pipelines|hpo)/", re.MULTILINE)
    for each in distributions():
        clash = ours.search(each.read_text("RECORD") or "")
        if clash and each.metadata["Name"] != "safemax":
            raise ImportError(
                f"safemax and {each.metadata['Name']} both install a package {clash[1]!r}; "
                "install safemax in an environment of its own"
            )


if not (ROOT / "pyproject.toml").exists():  # a checkout comes first on the path, and nothing is written into it
    _refuse_clash()

# OpenMP reads these when torch loads. A digits step on two threads takes 120 ms alone and 260 ms beside another such process
# with a spin count of 0; 90 and 320 with 1,000; 85 and 670 with 10,000; 85 and 3,980 with 100,000 (2 cores, AMD EPYC).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# glibc gives the memory of large tensors back to the kernel when they are freed, and the page faults of getting it again, some
# thousands a step, are 26 % of sampling 500 digits on one thread and 23 % of a training step on two (2 cores, AMD EPYC). So it
# is to keep blocks of up to a GiB: M_MMAP_THRESHOLD is -3, M_TRIM_THRESHOLD -1. Other C libraries have no mallopt.
if hasattr(_libc := ctypes.CDLL(None), "mallopt"):
    _libc.mallopt(-3, 1 << 30)
    _libc.mallopt(-1, 1 << 30)
# At INFO, MLflow tells of its database's tables and its input examples, and libraries warn each other of what will change in them:
# a user can do nothing about either. verbosity=verbose shows both; so does MLFLOW_LOGGING_LEVEL=INFO.
_LIBRARIES = "accelerate|alembic|diffusers|huggingface_hub|mlflow|optuna|sqlalchemy|torch|torchmetrics|transformers"


def hear_libraries(level: str) -> None:
    """Show what MLflow logs from a level on, in this process and its children, and at INFO what libraries deprecate."""
    os.environ["MLFLOW_LOGGING_LEVEL"] = level
    if "mlflow" in sys.modules:
        logging.getLogger("mlflow").setLevel(level)
    for category in (DeprecationWarning, FutureWarning):
        action: Literal["default", "ignore"] = "default" if level in ("INFO", "DEBUG") else "ignore"
        warnings.filterwarnings(action, category=category, module=rf"({_LIBRARIES})(\.|$)")


hear_libraries(os.environ.get("MLFLOW_LOGGING_LEVEL", "WARNING").upper())
# In a log file every refresh of a progress bar is a line of its own.
if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_MININTERVAL", "15")
