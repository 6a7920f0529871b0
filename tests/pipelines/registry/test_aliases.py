"""An alias moves once, by whoever comes first, and its record tells the way back."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from mlflow import MlflowClient

from pipelines.registry import aliases, model_versions
from safemax.errors import InputError

NAME = "tiny-ddpm"


def new_move(current: str | None, to: str, kind: str = aliases.PROMOTE, run: str = "0123456789") -> aliases.Move:
    return aliases.new_move(kind, current, to, why="", run_id=run)


@pytest.fixture
def store(mlflow_store: MlflowClient) -> MlflowClient:
    """A registered model with eight versions, of which 1 is the champion."""
    mlflow_store.create_registered_model(NAME)
    for _ in range(8):
        mlflow_store.create_model_version(NAME, "nowhere")
    mlflow_store.set_registered_model_alias(NAME, "champion", "1")
    return mlflow_store


def test_a_move_is_recorded_with_who_when_from_to_and_why(store: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    made = aliases.new_move(aliases.PROMOTE, "1", "2", why="better", run_id="r" * 32, gates="all pass")
    aliases.move(NAME, "champion", made)
    assert model_versions.aliased_number(NAME, "champion") == "2"
    (record,) = aliases.recorded_moves(NAME, "champion")
    assert {**record, "gates": "all pass"} == made
    assert {"from": "1", "to": "2", "who": "ada", "why": "better", "gates": "all pass"}.items() <= made.items()
    assert json.loads(store.get_model_version(NAME, "2").tags["moved.champion"]) == made


def test_a_move_from_where_the_alias_is_not_changes_nothing(store: MlflowClient) -> None:
    with pytest.raises(InputError, match="champion of tiny-ddpm was moved to 1 meanwhile"):
        aliases.move(NAME, "champion", new_move("3", "2"))
    assert model_versions.aliased_number(NAME, "champion") == "1"
    assert aliases.recorded_moves(NAME, "champion") == []


def test_of_eight_that_move_at_once_one_does(store: MlflowClient) -> None:
    def attempt(number: int) -> bool:
        try:
            aliases.move(NAME, "champion", new_move("1", str(number), run=f"{number}-process"))
        except InputError:
            return False
        return True

    with ThreadPoolExecutor(7) as pool:
        moved = list(pool.map(attempt, range(2, 9)))
    assert moved.count(True) == 1
    (record,) = aliases.recorded_moves(NAME, "champion")
    assert record["to"] == model_versions.aliased_number(NAME, "champion") == str(2 + moved.index(True))


def test_a_machine_without_the_lock_that_moves_it_too_is_noticed(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = MlflowClient.set_registered_model_alias

    def twice(client: MlflowClient, name: str, which: str, number: str) -> None:
        real(client, name, which, number)
        real(client, name, which, "7")

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", twice)
    with pytest.raises(InputError, match="was set to 2 but points to 7"):
        aliases.move(NAME, "champion", new_move("1", "2"))


class Killed(BaseException):
    """Stands for a kill: nothing of ours catches it."""


@pytest.mark.parametrize("call", ["set_registered_model_tag", "set_model_version_tag", "set_registered_model_alias"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_leaves_the_alias_where_it_was_or_moved_with_its_record(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch, call: str, moment: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, call, killing(getattr(MlflowClient, call), moment))
        with pytest.raises(Killed):
            aliases.move(NAME, "champion", new_move("1", "2"))
    current = model_versions.aliased_number(NAME, "champion")
    history = aliases.promotion_history(aliases.recorded_moves(NAME, "champion"), current)
    assert history in ([], ["1"], ["1", "2"])
    assert current == (history or ["1"])[-1]
    aliases.move(NAME, "champion", new_move(current, "3"))
    assert aliases.rollback_target(aliases.recorded_moves(NAME, "champion"), "3") == current


def killing(real: Callable[..., Any], moment: str) -> Callable[..., None]:
    def call(*args: Any, **kwargs: Any) -> None:
        if moment == "after":
            real(*args, **kwargs)
        raise Killed

    return call


def test_rollbacks_go_back_step_by_step_and_not_to_and_fro() -> None:
    moves = [new_move(None, "1"), new_move("1", "2"), new_move("2", "3")]
    assert aliases.rollback_target(moves, "3") == "2"
    moves.append(new_move("3", "2", aliases.ROLLBACK))
    assert aliases.rollback_target(moves, "2") == "1"
    moves.append(new_move("2", "1", aliases.ROLLBACK))
    assert aliases.rollback_target(moves, "1") is None
    moves.append(new_move("1", "4"))
    assert aliases.rollback_target(moves, "4") == "1"


def test_what_the_alias_pointed_to_before_its_first_record_can_be_restored() -> None:
    assert aliases.rollback_target([new_move("5", "6")], "6") == "5"


def test_a_version_that_was_set_by_hand_is_never_what_a_rollback_restores() -> None:
    moves = [new_move(None, "1"), new_move("1", "2")]
    assert aliases.rollback_target(moves, "9") == "2"  # 9 by hand
    assert aliases.rollback_target([*moves, new_move("9", "3")], "3") == "2"


def test_the_way_back_is_the_way_forth_whatever_happened() -> None:
    chance = random.Random(0)
    for _ in range(300):
        moves: list[aliases.Move] = []
        stack = ["0"]
        for step in range(1, 12):
            act = chance.choice(["promote", "promote", "killed", "rollback"])
            before = stack[-1]
            if act == "rollback":
                to = aliases.rollback_target(moves, before)
                assert to == (stack[-2] if len(stack) > 1 and moves else None)
                if to is None:
                    continue
                moves.append(new_move(before, to, aliases.ROLLBACK))
                stack.pop()
            else:
                moves.append(new_move(before, str(step)))
                stack += [str(step)] if act == "promote" else []
