"""The served model: class names or indices in, PNG images out; a request that is not allowed is refused in one line.

Every version holds a copy of this file (MLflow's models-from-code) and of safemax, so it imports nothing of pipelines.
"""
# ruff: noqa: E402 - what a version's safemax would run is checked before it is imported

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path


def compiled(version: Path) -> list[str]:
    """Return the compiled files of a version's folder, but for the one that MLflow makes of this file before it runs.

    No manifest lists them, and Python would run them instead of the source.
    """
    own = (version / "__pycache__", Path(__file__).stem)
    files = (path for path in version.rglob("*") if path.suffix in (".pyc", ".pyo", ".so", ".pyd"))
    return sorted(str(each.relative_to(version)) for each in files if (each.parent, each.name.split(".")[0]) != own)


def _guard_import() -> None:
    """Before a version's safemax is imported: raise ValueError for compiled files in its folder, and let Python leave none."""
    spec = None if "safemax" in sys.modules else find_spec("safemax")
    version = Path(spec.origin).parents[2] if spec and spec.origin else Path()
    if (version / "MLmodel").exists():
        sys.dont_write_bytecode = True
        if planted := compiled(version):
            raise ValueError(f"{version} holds compiled files that no manifest lists: {', '.join(planted)[:200]}")


_guard_import()

import base64
import io
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
import yaml
from mlflow.environment_variables import MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature, set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, REQUEST_LIMIT_EXCEEDED
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType
from PIL import Image

from safemax.data.batches import to_uint8
from safemax.diffusion import changes
from safemax.diffusion.changes import Place
from safemax.diffusion.image_request import LIMITS, SHOWN, ImageRequest, RequestReader, defaults
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import sample
from safemax.errors import InputError
from safemax.storage import manifest

MAX_BYTES = 100_000  # of a request; the largest valid one has a few thousand
MAX_REQUESTS = 8  # under way or waiting at once; one more is answered with 429
LEFT_BY_LOADERS = ("registered_model_meta", "__pycache__")
_LOG = logging.getLogger("safemax.served_model")
_DEADLINE: ContextVar[float] = ContextVar("deadline")  # of the request that this thread answers, by time.monotonic
_TYPES = {bool: "boolean", int: "long", float: "double", str: "string"}


def signature() -> ModelSignature:
    """Return the signature by which MLflow checks a request before our code sees it; it drops unknown columns and parameters."""
    return ModelSignature(
        inputs=Schema([ColSpec(AnyType(), "class_label")]),
        outputs=Schema([ColSpec("string", "class_label"), ColSpec("long", "seed"), ColSpec("string", "image_png_b64")]),
        params=ParamSchema([ParamSpec(name, _TYPES[type(value)], value) for name, value in defaults().items()]),
    )


class ImageModel(PythonModel):
    """A version of a diffusion model, as `mlflow.pyfunc.load_model` and `mlflow models serve` run it."""

    def load_context(self, context: PythonModelContext) -> None:
        """Verify every file of the version, then load the model; in a server, also guard it against requests that overload it.

        Raises:
            InputError: a file is missing, changed, compiled or not in the manifest, or the manifest is not the registry's; or
                a part that the version shares with another is gone or changed.
        """
        pipeline = Path(context.artifacts["pipeline"])
        _verify(pipeline.parents[1])
        diffusion = _load(pipeline)
        self.diffusion = diffusion.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self.forgotten = json.loads(Path(context.artifacts["evidence"]).read_text())["forgotten"]
        self.limits = LIMITS | (context.model_config or {})
        if "mlflow.pyfunc.scoring_server" in sys.modules:
            _guard(sys.modules["mlflow.pyfunc.scoring_server"])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Generate images; the same request gives the same bytes, and a row's images do not depend on the other rows.

        Args:
            context: unused; `load_context` has read it.
            model_input: one class per row, in the column class_label: a name, one of its prompts, or an index from 0 to
                K - 1. A single row may hold the list of all, as MLflow reads column-wise input.
            params: see `defaults`; num_images is per row.

        Returns:
            num_images records per row, in order: class_label (the name), seed, image_png_b64.

        Raises:
            MlflowException: INVALID_PARAMETER_VALUE, status 400 when served; one line with field, value and what is allowed.
        """
        try:
            reader = RequestReader(self.diffusion, self.forgotten, self.limits)
            return self._answer(reader.read(_rows(model_input["class_label"].tolist()), defaults() | (params or {})))
        except InputError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from None

    def _answer(self, asked: ImageRequest) -> list[dict[str, Any]]:
        records = []
        for c, name in asked.classes:
            labels = torch.full((asked.count,), c)
            images = to_uint8(sample(self.diffusion, labels, asked.sampler, seed=asked.seed, guide=_in_time))
            records += [{"class_label": name, "seed": asked.seed, "image_png_b64": _png(image)} for image in images]
        return records


def _load(pipeline: Path) -> Diffusion:
    """Load a version's model; what it shares with other versions is fetched from the store, but for the text encoder."""
    if not (pipeline / changes.STATED).exists():
        return Diffusion.load(pipeline)
    with tempfile.TemporaryDirectory(prefix="safemax-") as scratch:
        whole = Path(scratch, "pipeline")
        shutil.copytree(pipeline.absolute(), whole, copy_function=os.symlink)
        changes.complete(whole, fetch, leave=changes.FOR_NEW_PROMPTS)
        return Diffusion.load(whole)


def fetch(place: Place, folder: Path) -> None:
    """Put a part that a logged model holds into a folder; InputError where the store no longer has it."""
    try:
        location = str(mlflow.MlflowClient().get_logged_model(place.model).artifact_location)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="fetched-") as scratch:
            uri = f"{location}/{place.path}"
            shutil.move(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=scratch), folder)
    except (MlflowException, OSError) as error:
        raise InputError(
            f"{folder.name} of this version is missing: it is in the logged model {place.model}, which cannot be read at "
            f"{mlflow.get_tracking_uri()}: {str(error).splitlines()[0]}"
        ) from error


def _verify(version: Path) -> None:
    """Hold a version's files against its manifest, and that against the registry where MLflow has left the version's name.

    Without the name, as in a container, or without the registry, a rewritten manifest looks like the true one.
    """
    if planted := compiled(version):
        raise InputError(f"{version} holds compiled files that no manifest lists: {', '.join(planted)[:200]}")
    digest, stated = manifest.verify(version, tolerate=LEFT_BY_LOADERS), _registered_digest(version)
    if stated is None:
        _LOG.warning("%s was checked against its own manifest only: the registry could not be reached", version)
    elif stated != digest:
        raise InputError(f"{version} is not what was registered: its manifest does not match its tag digest.manifest")


def _registered_digest(version: Path) -> str | None:
    try:
        meta = yaml.safe_load((version / "registered_model_meta").read_text(encoding="utf-8"))
        tags = mlflow.MlflowClient().get_model_version(meta["model_name"], str(meta["model_version"])).tags
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError, MlflowException):
        return None
    return tags.get("digest.manifest")


def _rows(labels: Sequence[Any]) -> list[Any]:
    """Return one label a row; of `{"inputs": {"class_label": [...]}}`, MLflow makes one row that holds the list."""
    columnwise = len(labels) == 1 and isinstance(labels[0], list | tuple | np.ndarray)
    return list(labels[0] if columnwise else labels)


def _in_time(x_t: torch.Tensor, t: torch.Tensor, eps: torch.Tensor, rows: slice) -> torch.Tensor:
    """Stop at the step at which MLflow's time-out has answered a request already; outside a server there is none."""
    if time.monotonic() > _DEADLINE.get(float("inf")):
        raise InputError("the request took longer than the server's time-out and was stopped")
    return eps


def _guard(server: ModuleType) -> None:
    """Make MLflow's server refuse early, in one line, what it would answer with 500 or work on for too long.

    MLflow has no hook for that, so this replaces the wrapper that its app puts around the function that answers. CSV and
    Parquet are refused: they carry no parameters, and their parsers need not be exposed.
    """
    if getattr(server._async_catch_mlflow_exception, "guarded", False):
        return
    from fastapi import Request, Response
    from fastapi.responses import JSONResponse

    waiting: set[object] = set()

    def catch(answer: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
        async def guarded(request: Request) -> Response:
            ticket = object()
            _DEADLINE.set(time.monotonic() + MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT.get())
            try:
                _admit(request.headers, len(waiting))
                waiting.add(ticket)
                request._body = await _body(request)
                return await answer(request)
            except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:  # InputError too
                unreadable = f"the request is not JSON that this server can read: {type(error).__name__}"
                line = str(error) if isinstance(error, InputError) else unreadable
                refusal = MlflowException(line, INVALID_PARAMETER_VALUE)
            except MlflowException as error:
                refusal = error
            finally:
                waiting.discard(ticket)
            status, fault = refusal.get_http_status_code(), refusal.json_kwargs.get("stack_trace", "")
            _LOG.warning("refused with %s: %s%s", status, refusal.message.rpartition("\n")[2][:200], fault)
            return JSONResponse({"error_code": refusal.error_code, "message": refusal.message}, status)

        guarded.__annotations__ = {"request": Request}
        return guarded

    catch.guarded = True  # type: ignore[attr-defined]
    server._async_catch_mlflow_exception = catch  # type: ignore[attr-defined]


def _admit(headers: Any, waiting: int) -> None:
    """Refuse a request by its headers and by how many are under way, before its body is read."""
    if waiting >= MAX_REQUESTS:
        raise MlflowException(f"{waiting} requests are under way; try again later", error_code=REQUEST_LIMIT_EXCEEDED)
    kind, length = headers.get("content-type"), headers.get("content-length", "0")
    if (kind or "").partition(";")[0].strip() != "application/json":
        raise InputError(f"content-type = {str(kind)[:SHOWN]!r} is not allowed; send application/json")
    if not length.isdecimal() or len(length) > 20 or int(length) > MAX_BYTES:
        raise InputError(f"the request has {length[:20]} bytes; {MAX_BYTES} are allowed")


async def _body(request: Any) -> bytes:
    """Return a request's body; refuse it as soon as it is too long, whatever its headers say."""
    content = b""
    async for chunk in request.stream():
        content += chunk
        if len(content) > MAX_BYTES:
            raise InputError(f"the request has more than {MAX_BYTES} bytes")
    return content


def _png(image: torch.Tensor) -> str:
    pixels = image.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


set_model(ImageModel())
