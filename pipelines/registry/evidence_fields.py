"""Fields of a version's evidence, which may lack any of them or hold anything in their place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Evidence = Mapping[str, Any]


def mapping(evidence: Evidence, key: str) -> Evidence:
    """Return a mapping, an empty one where there is none."""
    value = evidence.get(key)
    return value if isinstance(value, Mapping) else {}


def texts(evidence: Evidence, key: str) -> list[str] | None:
    """Return a list of texts, None where there is none or it holds anything else."""
    value = evidence.get(key)
    return value if isinstance(value, list) and all(isinstance(each, str) for each in value) else None


def forgotten_by_it(evidence: Evidence) -> list[str]:
    """Return the names of the classes that this correction itself forgot."""
    stated = mapping(evidence, "parameters").get("data.forget")
    return stated.split(",") if stated and isinstance(stated, str) else []
