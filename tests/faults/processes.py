"""Children that share what this process has imported: one runs an operation with a fault, one looks at what it left."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import shutil
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tests.support.store_files import place_artifacts

SECONDS = 500  # more than any child here takes on a busy machine


@dataclass(frozen=True)
class Ending:
    """How a child ended.

    Args:
        status: its exit status; negative where a signal ended it.
        result: what it returned, as JSON keeps it; None where it did not get so far.
        text: what it printed.
    """

    status: int
    result: Any
    text: str


def warm() -> None:
    """Do once what MLflow does once a process when it saves a model, so that no child has to."""
    from mlflow.utils import requirements_utils

    requirements_utils._init_packages_to_modules_map()


def in_child(folder: Path, work: Callable[[], Any]) -> Ending:
    """Run `work` in a forked child whose working directory, store and cache are in a folder, and wait for it.

    The child opens the store of the folder itself: this process must not have opened it.
    """
    shutil.rmtree(folder / "out", ignore_errors=True)
    (folder / "out" / "tmp").mkdir(parents=True)
    gc.freeze()  # else a collection in the child copies every page of this process
    child = get_context("fork").Process(target=_run, args=(folder, work))
    child.start()
    child.join(SECONDS)
    gc.unfreeze()
    if child.is_alive():
        child.kill()
        child.join()
    answer = folder / "out" / "answer.json"
    result = json.loads(answer.read_text()) if answer.exists() else None
    return Ending(child.exitcode or 0, result, (folder / "out" / "text").read_text())


def _run(folder: Path, work: Callable[[], Any]) -> None:
    with (folder / "out" / "text").open("w", buffering=1) as text:
        for stream in (1, 2):
            os.dup2(text.fileno(), stream)
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            sys.exit(_answer(folder, work))


def _answer(folder: Path, work: Callable[[], Any]) -> int:
    gc.disable()
    enter(folder)
    _spare()
    try:
        result = work()
    except Exception:
        traceback.print_exc()
        return 70
    (folder / "out" / "answer.json").write_text(json.dumps(result))
    return 0


def _spare() -> None:
    """Leave out most of what takes a child's time and passes no point: the pixels of figures, and code beside a version's weights.

    Nothing here samples with a version's code. The stores get the same calls, and every file that a version lists is there.
    """
    import mlflow
    from matplotlib.figure import Figure

    from tests.support import little_code

    mlflow.pyfunc.save_model = little_code.save_model()  # type: ignore[attr-defined]
    Figure.savefig = _draw_a_pixel  # type: ignore[method-assign, assignment]


def _draw_a_pixel(_: Any, file: Any, **__: Any) -> None:
    from PIL import Image

    Image.new("RGB", (1, 1)).save(file, "png")


def enter(folder: Path) -> None:
    """Make a folder this process's working directory, with its own store, cache and temporary files."""
    import tempfile

    import mlflow

    os.chdir(folder)
    place_artifacts(folder)
    tempfile.tempdir = str(folder / "out" / "tmp")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    os.environ.update(MLFLOW_TRACKING_URI=uri, SAFEMAX_CACHE=str(folder / "cache"))
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_REGISTRY_URI"):
        os.environ.pop(name, None)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    mlflow.tracking.fluent._active_experiment_id = None
    random.seed()  # a forked child would repeat its parent's random names
