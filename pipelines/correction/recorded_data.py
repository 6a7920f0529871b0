"""What a registered model knows of its data: the options that it was made with need not be given again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipelines import tracking
from pipelines.cli.options import DataOptions, product_name
from pipelines.cli.parameters import Value, parameters
from pipelines.cli.parser import Arguments
from pipelines.registry import model_versions
from safemax.errors import InputError

TAG = "data.options"
"""Tag of a version: the options of its data as JSON."""
_EVERY_DATA = ("size",)  # options that also hold where other data are given: the images must have the model's shape

Settings = Mapping[str, Mapping[str, Value]]


def parse_with_recorded(parse: Callable[[Settings], Arguments]) -> Arguments:
    """Parse a command line whose data options default to those that its model was made with.

    Args:
        parse: parses the command line, with values by source for what the user did not give.
    """
    arguments = parse({})
    recorded = _for(arguments)
    return parse({"base": recorded}) if recorded else arguments


def tag_of(record: Mapping[str, Mapping[str, Any]], parent: str = "") -> dict[str, str]:
    """Return the tag of a version to come.

    Args:
        record: the command line's parameters (`Arguments.record`); where they lack the data, the parent's tag is inherited.
        parent: address of the model that it is made from.
    """
    names = [each.name for each in parameters(DataOptions)]
    options = {name: record[name]["value"] for name in names if name in record}
    if options:
        return {TAG: json.dumps(_findable(options))}
    tags = model_versions.version_of(parent).tags if model_versions.is_registry_address(parent) else {}
    return {TAG: tags[TAG]} if TAG in tags else {}


def _findable(options: dict[str, Value]) -> dict[str, Value]:
    """Return the options with a folder's or glob's full path, which holds in every working directory."""
    data = str(options.get("data", ""))
    place = Path(data).expanduser()
    is_place = place.is_dir() or place.suffix == ".parquet"
    return {**options, "data": str(place.absolute())} if is_place else options


def _for(arguments: Arguments) -> dict[str, Value]:
    """Return the recorded options that the user did not give and that are still options; {} where nothing is recorded."""
    address = None if tracking.is_absent() else _address(arguments)
    if address is None:
        return {}
    recorded = _read(model_versions.version_of(address).tags.get(TAG, "{}"))
    data = {"data": arguments["data"].data}
    if "data" in arguments.given and _findable(data)["data"] != recorded.get("data"):
        recorded = {name: value for name, value in recorded.items() if name in _EVERY_DATA}
    return {name: value for name, value in recorded.items() if name not in arguments.given}


def _read(text: str) -> dict[str, Value]:
    """Return the options of a tag that are options of today, with values of their types."""
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    kinds = {each.name: each.kind for each in parameters(DataOptions)}
    values: dict[str, Value] = content if isinstance(content, dict) else {}
    return {name: value for name, value in values.items() if name in kinds and type(value) is kinds[name]}


def _address(arguments: Arguments) -> str | None:
    """Return the version whose data the command line means, None where it names no version that there is."""
    options = arguments["model"]
    if options.model != "base":
        first = options.model.partition(",")[0].strip()  # of several, which have the same data
        return first if model_versions.is_registry_address(first) else None
    try:
        name = product_name(options.name, Path(arguments["data"].data).expanduser().absolute().name)
    except InputError:  # the data have no such name; loading them tells why
        return None
    return model_versions.find(name, "base")
