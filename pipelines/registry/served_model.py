"""The served model: class names or indices in, PNG images out; a request that is not allowed is refused in one line.

Every version holds a copy of this file (MLflow's models-from-code) and of safemax, so it imports nothing of pipelines.
"""

from __future__ import annotations

import base64
import io
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature, set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType
from PIL import Image

from safemax.data.batches import to_uint8
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import Sampler, sample
from safemax.errors import InputError, unknown
from safemax.knobs import knobs
from safemax.storage import manifest

LIMITS = {"max_images": 64, "max_steps": 100}
MAX_BYTES = 100_000  # of a request; the largest valid one has a few thousand
LEFT_BY_LOADERS = ("registered_model_meta", "__pycache__")
_SEED_MAX = 2**62
_SHOWN = 60  # characters of a bad value that the error repeats
_INDEX = re.compile(r"[0-9]{1,9}")
_TYPES = {bool: "boolean", int: "long", float: "double", str: "string"}


def defaults() -> dict[str, Any]:
    """Return every parameter of a request with its default: the sampler's knobs, where `name` is called `sampler`."""
    sampler = asdict(Sampler())
    return {"num_images": 1, "seed": 0, "sampler": sampler.pop("name"), **sampler}


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
        """Verify every file of the version, then load the model; in a server, also guard it against requests that crash it.

        Raises:
            InputError: a file is missing, changed or not in the manifest.
        """
        pipeline = Path(context.artifacts["pipeline"])
        manifest.verify(pipeline.parents[1], tolerate=LEFT_BY_LOADERS)
        diffusion = Diffusion.load(pipeline)
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
            model_input: one class per row, in the column class_label: a name, or an index from 0 to K - 1.
            params: see `defaults`; num_images is per row.

        Returns:
            num_images records per row, in order: class_label (the name), seed, image_png_b64.

        Raises:
            MlflowException: INVALID_PARAMETER_VALUE, status 400 when served; one line with field, value and what is allowed.
        """
        try:
            return self._answer(model_input["class_label"].tolist(), defaults() | (params or {}))
        except InputError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from None

    def _answer(self, labels: Sequence[Any], params: dict[str, Any]) -> list[dict[str, Any]]:
        for name, value in params.items():
            if value is None:
                raise InputError(f"{name} = null is not allowed; leave {name} out for its default")
        classes, seed = [self._label(value) for value in labels], _whole("seed", params["seed"], 0, _SEED_MAX)
        count, sampler = self._count(params["num_images"], len(labels)), self._sampler(params)
        records = []
        for c in classes:
            images = to_uint8(sample(self.diffusion, torch.full((count,), c), sampler, seed=seed))
            name = self.diffusion.class_names[c]
            records += [{"class_label": name, "seed": seed, "image_png_b64": _png(image)} for image in images]
        return records

    def _label(self, value: Any) -> int:
        names = self.diffusion.class_names
        # pandas makes floats of the indices in a column with gaps
        text = str(int(value) if isinstance(value, float) and value.is_integer() else value)
        index = names.index(text) if text in names else int(text) if _INDEX.fullmatch(text) else len(names)
        if index < len(names) and names[index] not in self.forgotten:
            return index
        reason = "was forgotten by this model" if index < len(names) else "is not known"
        allowed = ", ".join(name for name in names if name not in self.forgotten)
        raise InputError(f"class_label = {text[:_SHOWN]!r} {reason}; allowed: {allowed}, or the index of one")

    def _count(self, value: Any, rows: int) -> int:
        most = self.limits["max_images"]
        count = _whole("num_images", value, 1, most)
        if count * rows > most:
            raise InputError(
                f"num_images = {count} for {rows} rows is not allowed; a request has at most {most} images"
            )
        return count

    def _sampler(self, params: dict[str, Any]) -> Sampler:
        name, choices = params["sampler"], knobs(Sampler)["name"][1].choices
        if name not in choices:
            raise unknown("sampler", name[:_SHOWN], choices)
        steps = _whole("steps", params["steps"], 1, min(self.limits["max_steps"], self.diffusion.T))
        return Sampler(name, steps, params["guidance_scale"], params["eta"], params["clip"])


def _guard(server: ModuleType) -> None:
    """Make MLflow's server answer 400 to requests that it would answer with 500 before any of our code sees them.

    Such as: no content type, 1,000 nested brackets, a number of 5,000 digits. MLflow has no hook for that, so this replaces
    the function that reads a request. CSV and Parquet are refused: they carry no parameters, and their parsers need not be
    exposed.
    """
    inner = server.invocations
    if getattr(inner, "guarded", False):
        return

    def invocations(data: bytes, content_type: str | None, *rest: Any) -> Any:
        try:
            if (content_type or "").partition(";")[0].strip() != "application/json":
                raise InputError(f"content-type = {str(content_type)[:_SHOWN]!r} is not allowed; send application/json")
            if len(data) > MAX_BYTES:
                raise InputError(f"the request has {len(data)} bytes; {MAX_BYTES} are allowed")
            return inner(data, content_type, *rest)
        except InputError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from None
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            reason = f"the request is not JSON that this server can read: {type(error).__name__}"
            raise MlflowException(reason, error_code=INVALID_PARAMETER_VALUE) from None

    invocations.guarded = True  # type: ignore[attr-defined]
    server.invocations = invocations  # type: ignore[attr-defined]


def _whole(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise InputError(
            f"{name} = {str(value)[:_SHOWN]} is not allowed; {name} is a whole number from {low} to {high}"
        )
    return int(value)


def _png(image: torch.Tensor) -> str:
    pixels = image.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


set_model(ImageModel())
