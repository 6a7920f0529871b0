"""What is needed to repeat a run, beside its parameters: commit, command, hardware and library versions."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from pipelines import ROOT
from pipelines.tracking.addresses import without_password

_LIBRARIES = ("accelerate", "diffusers", "mlflow", "numpy", "torch", "torchmetrics")
_COMMIT, _DIRTY = "mlflow.source.git.commit", "git.dirty"


def environment() -> dict[str, object]:
    """Return commit, command, hardware and library versions by name.

    In runs these are params, since tags would push the note off the first screen.
    """
    commit = commit_tags()
    return {
        "commit": commit.get(_COMMIT, "unknown"),
        "dirty": commit.get(_DIRTY, "unknown"),
        "command": without_password(shlex.join(sys.orig_argv)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in _LIBRARIES},
    }


def commit_tags() -> dict[str, str]:
    """Return the commit of this code and whether files differ from it, as tags of a run; nothing outside a repository."""
    try:
        if Path(_git("rev-parse", "--show-toplevel")) != ROOT:
            return {}
        commit, dirty = _git("rev-parse", "HEAD"), bool(_git("status", "--porcelain"))
    except (OSError, subprocess.CalledProcessError):
        return {}  # no git, or no repository: an installed package
    return {_COMMIT: commit, _DIRTY: str(dirty).lower()}


def _git(*words: str) -> str:
    answer = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True)
    return answer.stdout.strip()
