"""The command line refuses in one line what it does not know, and teaches what it does."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.cli import parser
from pipelines.cli.parameters import UsageError, Value, parameters, with_defaults
from safemax.errors import InputError, NonFiniteError, Stopped
from safemax.knobs import knob


@dataclass(frozen=True)
class Training:
    lr: float = knob(1e-5, "step size of Adam", bounds=(1e-6, 0.01))
    steps: int = knob(300, "optimizer steps", bounds=(1, 1e6))
    ema: bool = knob(False, "average the weights")
    size: int = knob(0, "side of an image", bounds=(float("-inf"), 4))
    seed: int = knob(0, "where randomness starts", bounds=(0, float("inf")))

    def __post_init__(self) -> None:
        if self.ema and self.steps < 10:
            raise InputError("ema = true needs steps of at least 10")


@dataclass
class Model:
    judge: str = knob("small", "who recognises the class", choices=("small", "resnet20", "resnet34"))
    source: str = knob("digits", "where the images come from")
    weights: str = knob("", "a checkpoint, if there is one")
    lmbda: float = knob(1.0, "decay of psi", bounds=(0, 100))
    retain_weight: float = knob(3.072, "weight of the retain loss", bounds=(0, 1e6))
    offset: float = knob(0.0, "any number")


GROUPS = {"training": Training, "model": Model}


def parse(*argv: str) -> parser.Arguments:
    return parser.parse("python -m sample", "Learn.", GROUPS, argv)


def test_without_arguments_every_group_has_its_defaults() -> None:
    assert parse() == {"training": Training(), "model": Model()}


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--lr=0.001", "--steps=7"], {"training": Training(lr=0.001, steps=7), "model": Model()}),
        (["--lr", "1e-3"], {"training": Training(lr=0.001), "model": Model()}),
        (["--ema=true"], {"training": Training(ema=True), "model": Model()}),
        (["--lambda=0"], {"training": Training(), "model": Model(lmbda=0.0)}),
        (["--retain-weight=2"], {"training": Training(), "model": Model(retain_weight=2.0)}),
        (["--source=-x=1"], {"training": Training(), "model": Model(source="-x=1")}),
        (["--source=--steps"], {"training": Training(), "model": Model(source="--steps")}),
        (["--offset", "-.5"], {"training": Training(), "model": Model(offset=-0.5)}),
        (["--weights="], {"training": Training(), "model": Model(weights="")}),
    ],
)
def test_a_value_reaches_its_field_with_its_type(argv: list[str], expected: dict[str, object]) -> None:
    assert parse(*argv) == expected


LR = "lr is a number from 1e-06 to 0.01"
STEPS = "steps is a whole number from 1 to 1000000"
KNOWN = "lr, steps, ema, size, seed, judge, source, weights, lambda, retain_weight, offset"


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--lr=abc"], f"lr = abc is not allowed; {LR}"),
        (["--lr=nan"], f"lr = nan is not allowed; {LR}"),
        (["--lr=inf"], f"lr = inf is not allowed; {LR}"),
        (["--lr=1e999"], f"lr = 1e999 is not allowed; {LR}"),
        (["--lr=0.0_1"], f"lr = 0.0_1 is not allowed; {LR}"),
        (["--lr=1"], f"lr = 1 is not allowed; {LR}"),
        (["--offset=nan"], "offset = nan is not allowed; offset is a number"),
        (["--lambda=-1"], "lambda = -1 is not allowed; lambda is a number from 0 to 100"),
        (["--steps=1.5"], f"steps = 1.5 is not allowed; {STEPS}"),
        (["--steps=1e3"], f"steps = 1e3 is not allowed; {STEPS}"),
        (["--steps= 7"], f"steps =  7 is not allowed; {STEPS}"),
        (
            ["--seed=9999999999999999999"],
            "seed = 9999999999999999999 is not allowed; seed is a whole number of at least 0",
        ),
        (["--size=7"], "size = 7 is not allowed; size is a whole number of at most 4"),
        (["--ema=yes"], "ema = yes is not allowed; ema is true or false"),
        (["--ema=TRUE"], "ema = TRUE is not allowed; ema is true or false"),
        (["--ema"], "ema has no value; ema is true or false"),
        (["--lr="], f"lr has no value; {LR}"),
        (["--source="], "source has no value; source is text"),
        (["--weights"], "weights has no value; weights is text"),
        (["--lr", "--steps=3"], f"lr has no value; {LR}"),
        (["--source=a\nb"], "source = 'a\\nb' is not allowed; source is text"),
        (["--judge=resnet4"], "unknown judge 'resnet4' (did you mean 'resnet34'?); known: small, resnet20, resnet34"),
        (["--step=3"], f"unknown parameter 'step' (did you mean 'steps'?); known: {KNOWN}"),
        (["--lmbda=3"], f"unknown parameter 'lmbda' (did you mean 'lambda'?); known: {KNOWN}"),
        (["--lr=0.001", "--lr=0.002"], "lr is given twice; each parameter has one value"),
        (["--retain_weight=1", "--retain-weight=1"], "retain_weight is given twice; each parameter has one value"),
        (["lr=0.001"], "lr=0.001 is not a parameter; write --name=value"),
        (["-x"], "-x is not a parameter; write --name=value"),
        (["--ema=true", "--steps=3"], "ema = true needs steps of at least 10"),
    ],
)
def test_what_is_not_allowed_is_named_with_what_is(argv: list[str], line: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse(*argv)
    assert str(refused.value) == line


WORDS = st.text(max_size=8) | st.sampled_from(["--lr", "--ema=", "--source", "--steps=", "--offset=-"])


@given(st.lists(WORDS, max_size=4).filter(lambda argv: not {"-h", "--help"} & set(argv)))
def test_arguments_are_taken_or_refused_in_one_line_and_nothing_else_happens(argv: list[str]) -> None:
    assert _refusal(argv).isprintable()


def _refusal(argv: list[str]) -> str:
    try:
        parse(*argv)
    except UsageError as error:
        return str(error)
    return ""


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 2**63 - 1))
def test_every_number_that_python_writes_is_read_back_exactly(number: float, whole: int) -> None:
    groups = parse(f"--offset={number}", f"--seed={whole}")
    assert groups == {"training": Training(seed=whole), "model": Model(offset=number)}


def test_help_shows_each_parameter_with_default_range_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse("--lr=0.001", "--help")
    text = capsys.readouterr().out
    assert left.value.code == 0
    assert text.startswith("usage: python -m sample [--parameter=value ...]\n\nLearn.\n\nEach parameter is shown with ")
    assert "\n\ntraining\n  --lr=1e-05\n" in text
    assert "\n      step size of Adam: a number from 1e-06 to 0.01\n" in text
    assert "\n  --ema=false\n      average the weights: true or false\n" in text
    assert "\nmodel\n  --judge=small\n      who recognises the class: one of small, resnet20, resnet34\n" in text
    assert "\n  --lambda=1.0\n      decay of psi: a number from 0 to 100\n" in text


def test_two_groups_may_not_share_a_name() -> None:
    with pytest.raises(ValueError, match="two groups of knobs share the name lr"):
        parser.parse("python -m sample", "Learn.", {"training": Training, "again": Training}, [])


def test_a_knob_without_a_text_form_is_a_fault_of_the_program() -> None:
    @dataclass
    class Odd:
        sizes: tuple[int, ...] = knob((1, 2), "sizes")

    with pytest.raises(TypeError, match="Odd.sizes"):
        parameters(Odd)


def test_defaults_of_its_own_leave_the_rest_of_a_group_as_it_was() -> None:
    short = with_defaults(Training, steps=20, lr=0.002)
    assert [(each.name, each.default) for each in parameters(short)] == [
        ("lr", 0.002),
        ("steps", 20),
        ("ema", False),
        ("size", 0),
        ("seed", 0),
    ]
    assert isinstance(short(), Training)
    with pytest.raises(InputError, match="steps of at least 10"):
        short(steps=3, ema=True)
    with pytest.raises(TypeError, match="Training has no knob step$"):
        with_defaults(Training, step=20)


def test_a_value_that_equals_the_default_is_given_all_the_same() -> None:
    arguments = parse("--lr=1e-5", "--source", "digits", "--lambda=auto")
    assert arguments == parse()
    assert arguments.given == {"lr", "source"}


def test_auto_stands_for_no_value_whatever_the_type() -> None:
    assert parse("--lr=auto", "--ema", "auto", "--judge=auto", "--weights=auto") == parse()
    with pytest.raises(UsageError, match="lr is given twice"):
        parse("--lr=auto", "--lr=1e-3")


def test_settings_hold_where_the_user_gives_no_value_and_the_first_source_wins() -> None:
    settings: dict[str, dict[str, Value]] = {"file": {"lr": 1e-3, "steps": 5}, "preset": {"steps": 6, "lambda": 2.0}}
    arguments = parser.parse("sample", "Learn.", GROUPS, ["--lr=1e-5", "--seed=auto"], settings)
    assert arguments == {"training": Training(lr=1e-5, steps=5), "model": Model(lmbda=2.0)}
    record = arguments.record()
    assert [*record] == KNOWN.split(", ")
    assert record["lr"] == {"value": 1e-5, "source": "given"}
    assert record["steps"] == {"value": 5, "source": "file"}
    assert record["lambda"] == {"value": 2.0, "source": "preset"}
    assert record["seed"] == {"value": 0, "source": "default"}


def test_values_are_checked_together_after_the_settings() -> None:
    settings: dict[str, dict[str, Value]] = {"preset": {"steps": 10}}
    with pytest.raises(UsageError, match="ema = true needs steps"):
        parser.parse("sample", "Learn.", {"training": with_defaults(Training, steps=5)}, ["--ema=true"])
    parser.parse("sample", "Learn.", {"training": with_defaults(Training, steps=5)}, ["--ema=true"], settings)


def test_settings_of_a_parameter_that_there_is_not_are_a_fault_of_the_program() -> None:
    with pytest.raises(TypeError, match="preset sets step, which is not a parameter"):
        parser.parse("sample", "Learn.", GROUPS, [], {"preset": {"step": 5}})


def test_one_parameter_can_be_read_ahead_of_the_groups_it_decides() -> None:
    known = {"safemax": 1, "salun": 2}
    assert parser.choose(["--lr=1", "--method", "salun"], "method", known, "safemax") == 2
    assert parser.choose(["--lr=1"], "method", known, "safemax") == 1
    assert parser.choose(["--method=auto"], "method", known, "safemax") == 1
    with pytest.raises(UsageError, match="unknown method 'salum'.*'salun'"):
        parser.choose(["--method=salum"], "method", known, "safemax")


def _wrapped_in_another_error() -> None:
    try:
        raise OSError(errno.ENOSPC, "No space left on device", "step-10.tmp")
    except OSError as error:
        raise RuntimeError("could not save") from error


def _raise(error: BaseException) -> Callable[[], None]:
    def entry() -> None:
        raise error

    return entry


FULL = "error: the disk is full ({}); free some space, the same command resumes\n"


@pytest.mark.parametrize(
    ("entry", "status", "line"),
    [
        (lambda: None, 0, ""),
        (lambda: parse("--lr=abc"), 2, f"error: lr = abc is not allowed; {LR}\n"),
        (_raise(InputError("model = x\n is not a folder")), 1, "error: model = x is not a folder\n"),
        (_raise(Stopped()), 143, "stopped: the same command resumes\n"),
        (_raise(KeyboardInterrupt()), 130, "interrupted: the same command resumes from the last checkpoint\n"),
        (_wrapped_in_another_error, 1, FULL.format("[Errno 28] No space left on device: 'step-10.tmp'")),
        (_raise(RuntimeError("database or disk is full")), 1, FULL.format("database or disk is full")),
        (_raise(NonFiniteError("step 3: lower lr")), 1, "error: step 3: lower lr\n"),
        (
            _raise(PermissionError(13, "Permission denied", "/x/y")),
            1,
            "error: /x/y cannot be written: Permission denied\n",
        ),
    ],
)
def test_each_way_to_end_has_its_status_and_at_most_one_line(
    entry: Callable[[], object], status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def on_no_arguments(argv: Sequence[str]) -> None:
        entry()

    with pytest.raises(SystemExit) as left:
        parser.main(on_no_arguments)
    assert left.value.code == status
    assert capsys.readouterr().err == line


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(KeyError):
        parser.main(lambda argv: _raise(KeyError("t"))())


PROGRAM = """
import sys
from dataclasses import dataclass
from pipelines.cli import parser
from safemax.knobs import knob

@dataclass
class Training:
    lr: float = knob(1e-5, "step size of Adam", bounds=(1e-6, 0.01))

def run(argv):
    parser.parse("sample", "Learn.", {"training": Training}, argv)
    print("torch" in sys.modules)

parser.main(run)
"""


@pytest.mark.parametrize(
    ("argument", "status", "out", "err"),
    [("--lr=0.001", 0, "False\n", ""), ("--lr=abc", 2, "", f"error: lr = abc is not allowed; {LR}\n")],
)
def test_a_process_reads_its_parameters_without_waiting_for_torch(
    argument: str, status: int, out: str, err: str
) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, argument], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (status, out, err)
