"""How an alias moves: checked, set and read back under a lock, with a record of who, when, from, to and why.

MLflow keeps no history of aliases and has no compare-and-swap. The lock holds for one machine; on several, the read-back
sees most clashes, and the record shows all of them.
"""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NotRequired, TypedDict

from pipelines import tracking
from pipelines.registry import model_versions
from safemax.errors import InputError

PROMOTE, ROLLBACK = "promote", "rollback"

# `from` is a word of Python. A version is its number; from is None where the alias pointed nowhere.
Move = TypedDict(
    "Move",
    {
        "kind": str,
        "from": str | None,
        "to": str,
        "who": str,
        "when": str,
        "why": str,
        "run": str,
        "gates": NotRequired[str],
    },
)


def planned(kind: str, before: str | None, to: str, *, why: str, run_id: str, gates: str = "") -> Move:
    """Return the record of a move that this user makes now.

    Args:
        kind: PROMOTE or ROLLBACK.
        before: the version that the alias points to.
        to: the version that it shall point to.
        why: the reason that the user gave.
        run_id: the run that holds the whole record.
        gates: the gates in a line, where gates were applied.
    """
    who = os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    when = datetime.now(UTC).isoformat(timespec="seconds")
    return {"kind": kind, "from": before, "to": to, "who": who, "when": when, "why": why, "run": run_id, "gates": gates}


def move(name: str, alias: str, record: Move) -> None:
    """Move an alias from record["from"] to record["to"].

    The record is written first, as a tag of the registered model and, with the gates, as the last one of the version: a
    kill in between leaves a record that `trail` sees to be void, never a move without one.

    Raises:
        InputError: the alias points elsewhere, before or after; before, nothing was changed.
    """
    client = tracking.store()
    with model_versions.lock(name):
        now = model_versions.holder(name, alias)
        if now != record["from"]:
            raise InputError(f"{alias} of {name} moved to {now} meanwhile; nothing was changed, look again")
        number = len(recorded(name, alias)) + 1
        brief = {key: value for key, value in record.items() if key != "gates"}  # the UI shows it above the versions
        client.set_registered_model_tag(name, f"move.{alias}.{number:05d}.{record['run'][:8]}", json.dumps(brief))
        client.set_model_version_tag(name, record["to"], f"moved.{alias}", json.dumps(record))
        client.set_registered_model_alias(name, alias, record["to"])
        then = model_versions.holder(name, alias)
    if then != record["to"]:
        raise InputError(
            f"{alias} of {name} was set to {record['to']} and points to {then}: another machine moved it too"
        )


def recorded(name: str, alias: str) -> list[Move]:
    """Return the recorded moves of an alias, oldest first, each without its gates."""
    tags = tracking.store().get_registered_model(name).tags
    return [json.loads(tags[key]) for key in sorted(tags) if key.startswith(f"move.{alias}.")]


def promotion_history(moves: Sequence[Move], holder: str | None) -> list[str]:
    """Return the versions that recorded moves made the alias point to and no rollback took back, oldest first.

    A record is void where the alias still pointed to its `from` when the next move was made: its process died in between.

    Args:
        moves: as `recorded` returns them.
        holder: the version that the alias points to now.
    """
    kept = [each["from"] for each in moves[:1] if each["from"]]
    for i, record in enumerate(moves):
        then = moves[i + 1]["from"] if i + 1 < len(moves) else holder
        if then == record["from"]:
            continue
        if record["kind"] == ROLLBACK and record["to"] in kept:
            del kept[len(kept) - kept[::-1].index(record["to"]) :]
        else:
            kept.append(record["to"])
    return kept


def previous(moves: Sequence[Move], holder: str | None) -> str | None:
    """Return the version that a rollback restores: the last of the trail that is not the holder."""
    earlier = [number for number in promotion_history(moves, holder) if number != holder]
    return earlier[-1] if earlier else None
