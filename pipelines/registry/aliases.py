"""Moves of an alias: checked, made and read back under a lock, with a record of who, when, from, to and why.

MLflow keeps no history of aliases and has no compare-and-swap. The lock holds on one machine; between machines, reading
the alias back detects most conflicts, and the records show all of them.
"""

from __future__ import annotations

import getpass
import json
import os
import re
from collections.abc import Container, Sequence
from datetime import UTC, datetime
from typing import NotRequired, TypedDict

from pipelines import tracking
from pipelines.registry.locks import lock
from pipelines.registry.model_versions import aliased_number
from safemax.errors import InputError

PROMOTE, ROLLBACK = "promote", "rollback"

# Not a class, since `from` is a keyword. Versions are numbers; from is None if the alias pointed to no version.
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


def new_move(kind: str, current: str | None, to: str, *, why: str, run_id: str, gates: str = "") -> Move:
    """Return the record of a move that this user makes now.

    Args:
        kind: PROMOTE or ROLLBACK.
        current: the version that the alias points to.
        to: the version that it is to point to.
        why: the reason that the user gave.
        run_id: the run that holds the full record.
        gates: the gates in one line, if gates were applied.
    """
    who = os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    when = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        "kind": kind,
        "from": current,
        "to": to,
        "who": who,
        "when": when,
        "why": why,
        "run": run_id,
        "gates": gates,
    }


def move(name: str, alias: str, record: Move) -> None:
    """Move an alias from record["from"] to record["to"].

    The record is written first: as a tag of the registered model, and with the gates as a tag of the version. A kill in
    between leaves a record that `promotion_history` ignores, never a move without a record.

    Raises:
        InputError: the alias does not point to record["from"], and nothing was changed; or another machine moved it too.
    """
    client = tracking.store()
    with lock(name):
        current = aliased_number(name, alias)
        if current != record["from"]:
            raise InputError(f"{alias} of {name} was moved to {current} meanwhile; nothing was changed")
        number = len(recorded_moves(name, alias)) + 1
        brief = {key: value for key, value in record.items() if key != "gates"}  # the UI shows it above the versions
        client.set_registered_model_tag(name, f"move.{alias}.{number:05d}.{record['run'][:8]}", json.dumps(brief))
        client.set_model_version_tag(name, record["to"], f"moved.{alias}", json.dumps(record))
        client.set_registered_model_alias(name, alias, record["to"])
        current = aliased_number(name, alias)
    if current != record["to"]:
        raise InputError(
            f"{alias} of {name} was set to {record['to']} but points to {current}: another machine moved it too"
        )


def recorded_moves(name: str, alias: str) -> list[Move]:
    """Return the recorded moves of an alias, oldest first, each without its gates.

    Raises:
        InputError: a tag that should hold a move holds something else.
    """
    tags = tracking.store().get_registered_model(name).tags
    return [_read(name, key, tags[key]) for key in sorted(tags) if key.startswith(f"move.{alias}.")]


def _read(name: str, key: str, text: str) -> Move:
    try:
        record: Move = json.loads(text)
        numbers = [record["to"], *([record["from"]] if record["from"] is not None else [])]
        if record["kind"] in (PROMOTE, ROLLBACK) and all(re.fullmatch("[0-9]{1,9}", each) for each in numbers):
            return record
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise InputError(f"the tag {key} of {name} does not hold a recorded move; correct or delete it: {ascii(text[:80])}")


def promotion_history(moves: Sequence[Move], current: str | None) -> list[str]:
    """Return the versions that the alias was promoted to and that no rollback took back, oldest first.

    A record has no effect if the alias still pointed to its `from` at the next move: its process died before moving it. One
    whose `from` is its `to` is of a promotion that found the alias there already, set by hand.

    Args:
        moves: as `recorded_moves` returns them.
        current: the version that the alias points to now.
    """
    history = [each["from"] for each in moves[:1] if each["from"]]
    for i, record in enumerate(moves):
        after = moves[i + 1]["from"] if i + 1 < len(moves) else current
        if after == record["from"] != record["to"]:
            continue
        if record["kind"] == ROLLBACK and record["to"] in history:
            del history[len(history) - history[::-1].index(record["to"]) :]
        elif history[-1:] != [record["to"]]:
            history.append(record["to"])
    return history


def record_of(moves: Sequence[Move], current: str) -> Move | None:
    """Return the record of the move that set an alias to where it points now; None where somebody set it by hand."""
    if promotion_history(moves, current)[-1:] != [current]:
        return None
    return next((each for each in reversed(moves) if each["to"] == current), None)


def rollback_target(moves: Sequence[Move], current: str | None, deleted: Container[str] = ()) -> str | None:
    """Return the version that a rollback restores: the newest of the history that is not the current one, nor deleted."""
    earlier = [each for each in promotion_history(moves, current) if each != current and each not in deleted]
    return earlier[-1] if earlier else None
