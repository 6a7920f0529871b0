"""Which column of a table holds the images and which one the labels: by name and by type, never by a guess among numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from safemax.errors import InputError, unknown

AUTO = "auto"
LABEL_NAMES = (
    "label", "labels", "class", "classes", "class_label", "class_name", "class_id", "category", "target", "targets",
    "fine_label", "coarse_label", "y",
)  # fmt: skip
"""Names of columns that are labels, in any case; `label` wins over the others."""
NUMBER, TEXT, CLASS = "number", "text", "class"


@dataclass(frozen=True)
class LabelType:
    """What a label column holds.

    Args:
        kind: NUMBER (whole numbers, also as floats), TEXT (text, true and false) or CLASS (ClassLabel of Hugging Face).
        names: of CLASS: the names of 0, 1, ...
    """

    kind: str
    names: tuple[str, ...] = ()


def find_columns(schema: pa.Schema, image: str = AUTO, label: str = AUTO) -> tuple[str, str]:
    """Return the names of the image and of the label column of a table.

    Args:
        schema: of the table; its metadata may name types of Hugging Face.
        image: what the user chose, or auto: the column `image` if it can hold images, else the only one that can.
        label: what the user chose, or auto: the column `label`, else the only one with a name of LABEL_NAMES, else the
            only one of type ClassLabel.

    Raises:
        InputError: none or several fit, or the chosen one does not exist.
    """
    return _image_column(schema, image), _label_column(schema, label)


def label_type(schema: pa.Schema, column: str, place: str) -> LabelType:
    """Return what a label column holds; InputError where a label cannot be read from it."""
    if column not in schema.names:
        raise InputError(f"{place} has no column {column!r}, which holds the labels; found: {', '.join(schema.names)}")
    feature, kind = _feature(schema, column), schema.field(column).type
    if feature.get("_type") == "ClassLabel" and feature.get("names"):
        return LabelType(CLASS, tuple(feature["names"]))
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return LabelType(NUMBER)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_boolean(kind):
        return LabelType(TEXT)
    raise InputError(
        f"label column {column!r} of {place} holds {kind}; labels are text, whole numbers, bools or a ClassLabel; "
        f"columns: {', '.join(schema.names)}; choose another with label_column=NAME"
    )


def _image_column(schema: pa.Schema, choice: str) -> str:
    if choice != AUTO:
        return _chosen("image_column", choice, schema)
    candidates = [name for name in schema.names if _holds_images(schema, name)]
    # A column of bytes without a type of Hugging Face may hold anything, so it must be the only candidate.
    candidates = candidates or [name for name in schema.names if _is_binary(schema.field(name).type)]
    return _one("image", candidates, schema)


def _label_column(schema: pa.Schema, choice: str) -> str:
    if choice != AUTO:
        return _chosen("label_column", choice, schema)
    named = [name for name in schema.names if name.lower() in LABEL_NAMES]
    typed = [name for name in schema.names if _feature(schema, name).get("_type") == "ClassLabel"]
    return _one("label", named or typed, schema)


def _chosen(parameter: str, choice: str, schema: pa.Schema) -> str:
    if choice not in schema.names:
        raise unknown(parameter, choice, schema.names)
    return choice


def _one(kind: str, candidates: list[str], schema: pa.Schema) -> str:
    if kind in candidates or len(candidates) == 1:
        return kind if kind in candidates else candidates[0]
    remedy = f"choose one with {kind}_column=NAME; columns: {', '.join(schema.names) or 'none'}"
    if candidates:
        raise InputError(f"several {kind} columns ({', '.join(candidates)}); {remedy}")
    needed = "of images" if kind == "image" else f"named {', '.join(LABEL_NAMES[:-1])} or {LABEL_NAMES[-1]}"
    raise InputError(f"no {kind} column: none is {needed}; {remedy}")


def _holds_images(schema: pa.Schema, name: str) -> bool:
    kind = schema.field(name).type
    is_struct = pa.types.is_struct(kind) and {kind.field(i).name for i in range(kind.num_fields)} == {"bytes", "path"}
    return is_struct or _feature(schema, name).get("_type") == "Image"


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _feature(schema: pa.Schema, name: str) -> dict[str, Any]:
    """Return what Hugging Face's metadata say about a column; {} where they say nothing."""
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        feature = about["info"]["features"][name]
    except (ValueError, KeyError, TypeError):
        return {}
    return feature if isinstance(feature, dict) else {}
