"""A method brings defaults, parameters and presets along; what the user gives wins over all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from pipelines import unlearn
from pipelines.cli import parser
from pipelines.cli.method_options import for_method, parse_for_method, preset_settings
from pipelines.cli.parameters import UsageError
from pipelines.cli.parser import Arguments
from safemax import methods
from safemax.knobs import knob
from safemax.methods import available, create
from safemax.methods.finetune import Finetune
from safemax.training.settings import Training


@dataclass
class Toy(Finetune):
    """A method whose preset sets a knob, two settings of the training, and no other thing."""

    paper: ClassVar[str] = "none"
    training: ClassVar[dict[str, Any]] = {"steps": 50, "batch_size": 64}
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {"lmbda": 3.0, "steps": 70, "ema": 0.9}}

    lmbda: float = knob(2.0, "weight", bounds=(0, 10))


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more method, `toy`."""
    every = {**available(), "toy": Toy}
    monkeypatch.setattr(methods, "available", lambda: every)
    monkeypatch.setattr("pipelines.cli.method_options.available", lambda: every)
    monkeypatch.setitem(unlearn.PARAMETERS, "method", Unchecked)


@dataclass(frozen=True)
class Unchecked:
    """MethodOptions lists the methods that there were when it was defined."""

    method: str = knob("safemax", "the method")
    preset: str = knob("none", "its settings")


def parse(*argv: str) -> Arguments:
    return parse_for_method("python -m sample", "Learn.", unlearn.PARAMETERS, argv)[1]


def test_a_method_brings_its_training_defaults_and_its_knobs() -> None:
    groups = for_method({"training": Training}, "toy", Toy)
    parsed = parser.parse("python -m sample", "Learn.", groups, ["--lambda=3"])
    assert (parsed["training"].steps, parsed["training"].batch_size) == (50, 64)
    assert parsed["toy"] == Toy(lmbda=3.0)


def test_a_method_whose_training_default_no_group_has_is_a_fault_of_the_program() -> None:
    class Wrong(Finetune):
        training: ClassVar[dict[str, Any]] = {"step": 50}

    with pytest.raises(TypeError, match="Wrong.training names step, which"):
        for_method({"training": Training}, "wrong", Wrong)


def test_a_preset_sets_knobs_and_training_where_the_user_gives_no_value(toy: None) -> None:
    arguments = parse("--method=toy", "--preset=paper", "--lr=auto")
    assert arguments["toy"] == Toy(lmbda=3.0)
    training = arguments["training"]
    assert (training.steps, training.ema, training.batch_size, training.lr) == (70, 0.9, 64, Training().lr)
    sources = {name: each["source"] for name, each in arguments.record().items()}
    assert [name for name, source in sources.items() if source == "preset"] == ["steps", "ema", "lambda"]
    assert sources["method"] == sources["preset"] == "given"
    assert sources["lr"] == sources["batch_size"] == "default"


def test_a_given_value_wins_over_a_preset_where_it_is_the_default_too(toy: None) -> None:
    arguments = parse("--method=toy", "--preset=paper", "--lambda=2.0", "--steps=50", "--ema=0")
    assert arguments["toy"] == Toy()
    assert (arguments["training"].steps, arguments["training"].ema) == (50, 0.0)


def test_a_preset_that_sets_what_neither_method_nor_training_has_is_a_fault_of_the_program(
    toy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Toy, "presets", {"wrong": {"lmbda": 3.0, "step": 70}})
    with pytest.raises(TypeError, match="preset wrong of toy sets step, which neither Toy nor Training has"):
        parse("--method=toy", "--preset=wrong")


def test_creating_a_method_by_a_preset_takes_its_knobs_alone(toy: None) -> None:
    assert create("toy", preset="paper") == Toy(lmbda=3.0)
    assert create("toy", preset="paper", lmbda=2.0) == Toy()


def test_help_says_what_the_chosen_method_does_and_what_its_presets_set(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--method=selective_amnesia", "--help")
    text = capsys.readouterr().out
    assert "\n\n--method=selective_amnesia, shown here: Selective Amnesia: train the forget class on noise" in text
    assert "\n  --preset=paper sets pixel_sum=true, replay_sampler=ddpm, replay_steps=1000, " in text
    assert "\n\nselective_amnesia\n  --lambda=10.0\n" in text


@pytest.mark.parametrize("name", available())
def test_every_preset_of_every_method_is_made_of_parameters(name: str) -> None:
    for preset in available()[name].presets:
        arguments = parse(f"--method={name}", f"--preset={preset}")
        from_preset = {key: each["value"] for key, each in arguments.record().items() if each["source"] == "preset"}
        assert from_preset == preset_settings(name, preset)


def test_the_cap_of_an_ascent_that_is_given_is_the_cap_it_runs_with() -> None:
    assert parse("--method=gradient_ascent", "--preset=paper")["gradient_ascent"].cap == 1e6
    assert parse("--method=gradient_ascent", "--preset=paper", "--cap=1.0")["gradient_ascent"].cap == 1.0


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--preset=papr", "--method=salun"], "unknown preset of salun 'papr' .did you mean 'paper'"),
        (["--preset=paper", "--method=esd"], "unknown preset of esd 'paper'; known: none$"),
        (["--preset=paper", "--preset=none", "--method=salun"], "preset is given twice"),
        (["--method=salun", "--alpha=1", "--method=safemax"], "method is given twice"),
        (["--preset="], "preset has no value"),
        (["--method=salum"], "unknown method 'salum'"),
        (["--mask_ratio=0.3"], "unknown parameter 'mask_ratio'"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(argv: list[str], line: str) -> None:
    with pytest.raises(UsageError, match=line):
        parse(*argv)
