"""The thresholds of the gates: their defaults in gates.yaml, and the strict reading of a user's own gate file."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from safemax.errors import InputError, unknown
from safemax.evaluation.verdict import OUTCOMES

DEFAULT = Path(__file__).with_name("gates.yaml")
LEVELS = ("panel", "panel+attacks")
_UNBOUNDED = ("fid_ratio_to_base", "fid_ratio_to_champion", "attack_samples")  # the other numbers are percent or points
_LONGEST = 100_000  # characters of a gate file
_DEEPEST = 4  # levels of nesting of a gate file; one with all keys has two
_SHOWN = 60  # characters of a bad key or value that the error repeats


@dataclass(frozen=True)
class GateThresholds:
    """The thresholds of a gate file; the comments of gates.yaml say what each of them means. None switches a gate off."""

    evidence: str
    verdict: tuple[str, ...] | None
    judge_recall: float | None
    base_recognised: float | None
    recognised_high: float | None
    retained_accuracy: float | None
    accuracy_loss_to_base: float | None
    accuracy_loss_to_champion: float | None
    fid_ratio_to_base: float | None
    fid_ratio_to_champion: float | None
    class_accuracy_loss: float | None
    sampler_accuracy_loss: float | None
    attack_delta: float | None
    attack_samples: float | None


def read(path: str | Path = DEFAULT) -> GateThresholds:
    """Return the thresholds of a gate file; those that it does not state come from gates.yaml.

    Raises:
        InputError: not a readable file, not a mapping, an unknown or duplicate key, or a value that is not allowed.
    """
    stated = _mapping(DEFAULT) | _mapping(Path(path))
    return GateThresholds(**{name: _value(path, name, stated[name]) for name in _known()})


def _known() -> list[str]:
    return [each.name for each in fields(GateThresholds)]


def _mapping(path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_LONGEST + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"gates = {path} cannot be read: {error}") from None
    if len(text) > _LONGEST:
        raise InputError(f"gates = {path} is not a gate file: it has more than {_LONGEST} characters")
    try:
        _refuse_expansion(path, text)
        node, stated = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"gates = {path} is not YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(stated, dict):
        raise InputError(f"gates = {path} is not a mapping; known keys: {', '.join(_known())}")
    # From the nodes, since the parsed mapping has lost the first value of a duplicate key.
    _check_keys(path, [str(key.value) for key, _ in node.value])
    return stated


def _refuse_expansion(path: Path, text: str) -> None:
    """Raise InputError for an anchor, an alias or deep nesting, before any of them is expanded.

    Nested aliases of 1 kB stand for gigabytes, and 5,000 nested brackets take PyYAML seconds.
    """
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            raise InputError(f"gates = {path} has the anchor or alias {event.anchor[:_SHOWN]!r}; write values out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise InputError(f"gates = {path} is not a gate file: it nests more than {_DEEPEST} levels")


def _check_keys(path: Path, keys: list[str]) -> None:
    for key in keys:
        if key not in _known():
            raise unknown(f"key of {path}", key[:_SHOWN], _known())
        if keys.count(key) > 1:
            raise InputError(f"duplicate key {key} in {path}")


def _value(path: str | Path, name: str, value: Any) -> Any:
    if name == "evidence":
        if value in LEVELS:
            return value
        raise InputError(f"evidence = {value} in {path} is not allowed; it is {' or '.join(LEVELS)}")
    if value is None:
        return None
    return _outcomes(path, value) if name == "verdict" else _number(path, name, value)


def _outcomes(path: str | Path, value: Any) -> tuple[str, ...]:
    if isinstance(value, list) and value and all(each in OUTCOMES for each in map(str, value)):
        return tuple(map(str, value))
    raise InputError(f"verdict = {value} in {path} is not allowed; it is a list of {', '.join(OUTCOMES)}")


def _number(path: str | Path, name: str, value: Any) -> float:
    most = math.inf if name in _UNBOUNDED else 100
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most or math.isinf(value):
        span = "of at least 0" if math.isinf(most) else f"from 0 to {most:g}"
        raise InputError(f"{name} = {str(value)[:_SHOWN]} in {path} is not allowed; it is a number {span}, or null")
    return float(value)
