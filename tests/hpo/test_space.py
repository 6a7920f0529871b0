"""The space follows from the knobs, and the command line restricts, widens and holds it, refusing what is empty or unknown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from hpo import space
from hpo.search import read_config
from hpo.space import Range, Space
from safemax.errors import InputError
from safemax.knobs import knobs
from safemax.methods import available, create
from safemax.training.settings import Training


def read(text: str = "auto", *given: str, **training: Any) -> Space:
    return space.read(text, create("safemax"), Training(**training), given)


@pytest.mark.parametrize("name", available())
def test_every_knob_with_a_search_range_is_searched_over_it(name: str) -> None:
    method = create(name)
    result = space.read("auto", method, Training())
    declared = {
        "lambda" if field == "lmbda" else field: about for field, (_, about) in knobs(method).items() if about.search
    }
    assert set(result.ranges) == {*declared, "steps", "lr"}
    for each, about in declared.items():
        assert about.search == (result.ranges[each].low, result.ranges[each].high)
        assert about.log == result.ranges[each].log


def test_every_other_knob_is_held_at_its_value() -> None:
    result = read(batch_size=64)
    assert result.held["batch_size"] == 64
    assert result.held["target"] == "independent"
    assert not set(result.held) & set(result.ranges)


def test_a_knob_that_the_user_gave_is_held_at_that_value() -> None:
    result = read("auto", "steps", "batch_size", steps=150)
    assert "steps" not in result.ranges
    assert result.held["steps"] == 150


def test_a_given_knob_that_the_space_names_is_searched_and_starts_at_the_given_value() -> None:
    result = read("steps=100:200", "steps", steps=150)
    assert result.ranges["steps"] == Range(100, 200, log=True, whole=True)
    assert result.first["steps"] == 150


def test_a_range_is_restricted_and_keeps_the_scale_of_its_knob() -> None:
    assert read("lr=1e-4:5e-4").ranges["lr"] == Range(1e-4, 5e-4, log=True)


def test_a_range_can_state_its_scale() -> None:
    result = read("lr=1e-4:5e-4:linear,lambda=0.1:5:log")
    assert not result.ranges["lr"].log
    assert result.ranges["lambda"] == Range(0.1, 5, log=True)


def test_a_range_is_widened_up_to_the_bounds_of_its_knob() -> None:
    assert read("lambda=0:100").ranges["lambda"].high == 100
    with pytest.raises(InputError, match=r"lambda = 101 is not allowed; lambda is a number from 0 to 100"):
        read("lambda=0:101")


def test_a_number_without_a_range_of_its_own_can_be_searched_too() -> None:
    assert read("batch_size=32:256").ranges["batch_size"] == Range(32, 256, whole=True)


def test_a_value_holds_a_knob() -> None:
    result = read("steps=150,retain_weight=3")
    assert set(result.ranges) == {"lambda", "lr"}
    assert (result.held["steps"], result.held["retain_weight"]) == (150, 3.0)


def test_method_and_training_have_the_held_values(shared_folder: Path, mlflow_store: MlflowClient) -> None:
    words = {
        "space": "steps=150,retain_weight=0.5,lambda=2",
        "data": shared_folder / "data",
        "model": shared_folder / "base",
    }
    config = read_config([f"--{name}={value}" for name, value in words.items()] + ["--forget=a"])
    task, made = config.trial_config(), config.correction({"lr": 1e-3}, config.evaluation)
    assert (task.training["steps"], task.knobs["retain_weight"], task.knobs["lmbda"]) == (150, 0.5, 2.0)
    assert (made.training.steps, made.training.lr) == (150, 1e-3)
    assert (made.params()["method.retain_weight"], made.params()["method.lambda"]) == (0.5, 2.0)


def test_a_search_records_where_each_parameter_came_from_and_no_password(
    shared_folder: Path, mlflow_store: MlflowClient
) -> None:
    words = ["--forget=a", f"--data={shared_folder / 'data'}", f"--model={shared_folder / 'base'}"]
    config = read_config([*words, "--storage=postgresql://me:SECRET@host/studies", "--lr=1e-4"])
    assert config.parameters["lr"] == {"value": 1e-4, "source": "given"}
    assert config.parameters["steps"]["source"] == "default"
    assert "SECRET" not in str(config.parameters)


def test_a_password_that_mlflow_run_has_logged_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "r1")
    with pytest.raises(
        InputError, match="parameters of run r1: change the password, delete the run.*PGPASSWORD"
    ) as error:
        read_config(["--forget=0", "--data=digits", "--storage=postgresql://me:SECRET@host/studies"])
    assert "SECRET" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lamda=0:5", r"unknown knob in space 'lamda' .did you mean 'lambda'.*known: lambda, retain_weight.*steps.*lr"),
        ("target=0:5", "unknown knob in space 'target'"),
        ("lr=1e-3:1e-5", "space: lr=1e-3:1e-5 is empty"),
        ("lr=1e-3:1e-3", "is empty"),
        ("lambda=0:5:log", "starts above 0"),
        ("lambda=0:5:lin", "a range is LOW:HIGH"),
        ("lambda=:5", "lambda has no value"),
        ("lambda", "'lambda' is not allowed; write NAME=LOW:HIGH"),
        ("lr=1e-4,lr=1e-3", "duplicate lr"),
        ("steps=1.5:3", "steps is a whole number"),
        ("", "'' is not allowed"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(text)


def test_a_space_with_nothing_to_search_is_refused_with_what_could_be() -> None:
    with pytest.raises(InputError, match="leaves nothing to search; searchable: lambda, "):
        read("lambda=1,lr=1e-4,steps=10,retain_weight=3")


def test_trial_0_takes_the_defaults_or_the_nearest_end_of_a_range_that_leaves_them_out() -> None:
    assert read().first == {"lambda": 1.0, "retain_weight": 3.072, "steps": 1000, "lr": 1e-4}
    assert read("lr=1e-6:1e-5").first["lr"] == 1e-5


def test_a_grid_fits_its_points_and_reaches_both_ends_of_each_range() -> None:
    points = read("steps=150,retain_weight=3,lambda=0:4").grid(39, seed=0)
    assert len(points) == 36  # six levels of each of two knobs, since 7 * 7 > 39
    assert {point["lambda"] for point in points} == {0, 0.8, 1.6, 2.4, 3.2, 4}
    assert (min(p["lr"] for p in points), max(p["lr"] for p in points)) == (1e-5, pytest.approx(1e-3))


def test_levels_of_a_whole_range_are_whole_and_differ() -> None:
    assert Range(1, 3, whole=True).levels(10) == [1, 2, 3]
    assert Range(1, 100, log=True, whole=True).levels(3) == [1, 10, 100]
