"""The trials of a study follow from the seed and the trials before, and none is lost or counted twice."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from hpo import storage
from hpo.proposal import RETRIED, SAMPLERS, StudyPlan, propose, warn_of_population
from hpo.space import Range, Space
from hpo.study import TrialScheduler, dominates
from safemax.errors import InputError

SPACE = Space({"x": Range(0.0, 4.0), "n": Range(1, 64, log=True, whole=True)}, {}, {"x": 1.0, "n": 8})
PLAN = StudyPlan("toy", SPACE, trials=14, objective="two", sampler="tpe", seed=3, accuracy_drop=1.0)

Row = tuple[int, str, tuple[tuple[str, float], ...], tuple[float, ...]]


def scored(trial: FrozenTrial) -> dict[str, float]:
    """Return scores whose two objectives disagree: x = 0 is best for one, x = 2 for the other."""
    x, n = trial.params["x"], trial.params["n"]
    one, other = x**2 + math.log(n), (x - 2) ** 2 + 1 / n
    return {"forgetting": one, "quality": other, "joint": one + other, "minutes": n / 60, "accuracy_drop": x - 3}


@contextmanager
def open_scheduler(folder: Path, plan: StudyPlan = PLAN) -> Iterator[TrialScheduler]:
    with storage.opened("auto", plan.name, folder / "toy.journal") as store:
        yield TrialScheduler(plan, store)


def run_trials(scheduler: TrialScheduler, trials: int) -> None:
    """Run trials, one at a time."""
    for _ in range(trials):
        trial = scheduler.start_next()
        if trial is None:
            return
        scheduler.complete(trial.number, scored(trial), {"metrics": {}})


def rows(trials: list[FrozenTrial]) -> list[Row]:
    return [(t.number, t.state.name, tuple(sorted(t.params.items())), tuple(t.values or ())) for t in trials]


def test_trial_0_takes_the_defaults(tmp_path: Path) -> None:
    with open_scheduler(tmp_path) as scheduler:
        first = scheduler.start_next()
        assert first is not None
        assert first.params == SPACE.first


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("objective", ["two", "joint"])
def test_a_study_that_was_killed_has_the_same_table_as_one_that_was_not(
    tmp_path: Path, sampler: str, objective: str
) -> None:
    plan = replace(PLAN, sampler=sampler, objective=objective)
    (tmp_path / "whole").mkdir()
    with open_scheduler(tmp_path / "whole", plan) as scheduler:
        run_trials(scheduler, plan.trials)
        whole = rows(scheduler.trials)
    for done in (0, 6, 4, 1, 1, 100):
        with open_scheduler(tmp_path, plan) as scheduler:
            run_trials(scheduler, done)
            scheduler.start_next()  # and here the coordinator dies, the trial running
    with open_scheduler(tmp_path, plan) as scheduler:
        assert rows(scheduler.trials) == whole
        assert scheduler.num_ended == plan.size
        assert scheduler.start_next() is None


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("objective", ["three", "joint"])
def test_every_sampler_continues_after_failed_and_pruned_trials(tmp_path: Path, sampler: str, objective: str) -> None:
    plan = replace(PLAN, sampler=sampler, objective=objective, trials=18)
    with open_scheduler(tmp_path, plan) as scheduler:
        for state in (TrialState.PRUNED, TrialState.FAIL, None, TrialState.PRUNED):
            run_trials(scheduler, 3)
            trial = scheduler.start_next()
            if state and trial:
                scheduler.report(trial.number, 50, 0.5, 0.5)
                scheduler.end(trial.number, state, {})
        run_trials(scheduler, 100)
        assert len(scheduler.completed) == plan.size - 4  # one is still under way


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2", "random"])
def test_another_seed_proposes_other_trials(tmp_path: Path, sampler: str) -> None:
    with open_scheduler(tmp_path) as scheduler:
        run_trials(scheduler, 12)
        seeds = [propose(replace(PLAN, sampler=sampler, seed=seed), scheduler.trials).params for seed in (0, 0, 1)]
    assert seeds[0] == seeds[1]
    assert seeds[0] != seeds[2]


def test_a_proposal_leaves_the_study_as_it_was(tmp_path: Path) -> None:
    with open_scheduler(tmp_path) as scheduler:
        run_trials(scheduler, 3)
        before = (tmp_path / "toy.journal").read_bytes()
        propose(PLAN, scheduler.trials)
        assert (tmp_path / "toy.journal").read_bytes() == before


def test_a_search_finds_better_trials_than_the_defaults(tmp_path: Path) -> None:
    with open_scheduler(tmp_path, replace(PLAN, objective="joint", trials=40)) as scheduler:
        run_trials(scheduler, 40)
        values = [each.values[0] for each in scheduler.trials]
    # Defaults: 1 + ln 8 + 1 + 1/8 = 4.2. Best: x = 1 and n = 1, 1 + 0 + 1 + 1 = 3.
    assert values[0] == pytest.approx(4.204, abs=1e-3)
    assert min(values) < 3.3


def test_more_trials_extend_a_study_that_has_ended(tmp_path: Path) -> None:
    with open_scheduler(tmp_path) as scheduler:
        run_trials(scheduler, 100)
        assert len(scheduler.trials) == 14
        before = rows(scheduler.trials)
    with open_scheduler(tmp_path, replace(PLAN, trials=16)) as scheduler:
        run_trials(scheduler, 100)
        assert len(scheduler.trials) == 16
        assert rows(scheduler.trials)[:14] == before


def test_two_running_trials_differ_and_keep_their_numbers(tmp_path: Path) -> None:
    with open_scheduler(tmp_path) as scheduler:
        run_trials(scheduler, 12)
        one, two = scheduler.start_next(), scheduler.start_next()
        assert one is not None
        assert two is not None
        assert (one.number, two.number) == (12, 13)
        assert one.params != two.params
        assert scheduler.start_next() is None
        scheduler.complete(13, scored(two), {})
        scheduler.complete(12, scored(one), {})
        assert scheduler.num_ended == 14


def test_a_failed_and_a_pruned_trial_count_once_and_are_not_repeated(tmp_path: Path) -> None:
    with open_scheduler(tmp_path) as scheduler:
        run_trials(scheduler, 1)
        for state in (TrialState.FAIL, TrialState.PRUNED):
            trial = scheduler.start_next()
            assert trial is not None
            scheduler.end(trial.number, state, {"reason": "diverged"})
        run_trials(scheduler, 100)
        assert [each.state.name for each in scheduler.trials] == ["COMPLETE", "FAIL", "PRUNED", *["COMPLETE"] * 11]
        assert scheduler.num_ended == 14


def test_the_front_is_what_no_allowed_trial_dominates(tmp_path: Path) -> None:
    with open_scheduler(tmp_path) as scheduler:
        run_trials(scheduler, 14)
        front = scheduler.front()
        allowed = [each for each in scheduler.trials if each.user_attrs["scores"]["accuracy_drop"] <= 1.0]
        assert front
        assert all(each in allowed for each in front)
        for each in allowed:
            beaten = any(dominates(other.values, each.values) for other in allowed)
            assert (each in front) is not beaten


def test_a_trial_outside_the_constraint_is_not_on_the_front(tmp_path: Path) -> None:
    with open_scheduler(tmp_path) as scheduler:
        first, second = scheduler.start_next(), scheduler.start_next()
        assert first is not None
        assert second is not None
        good = {"forgetting": 0.0, "quality": 0.0, "joint": 0.0, "minutes": 1.0}
        scheduler.complete(first.number, good | {"accuracy_drop": 1.5}, {})
        scheduler.complete(second.number, good | {"forgetting": 0.9, "accuracy_drop": 0.5}, {})
        assert [each.number for each in scheduler.front()] == [second.number]


@pytest.mark.parametrize("objective", ["two", "joint"])
def test_a_trial_is_pruned_only_when_three_quarters_of_five_or_more_were_better_at_that_point(
    tmp_path: Path, objective: str
) -> None:
    plan = replace(PLAN, objective=objective)
    with open_scheduler(tmp_path, plan) as scheduler:
        verdicts = []
        for damage in (1.0, 2.0, 3.0, 4.0, 9.0, 2.5, 5.0):
            trial = scheduler.start_next()
            assert trial is not None
            verdicts.append(scheduler.report(trial.number, 50, 0.0, damage))
            scheduler.complete(trial.number, scored(trial), {})
    # 9 is worst of all, but only four came before it; of the six before 5 five, 9 apart, were better.
    assert verdicts == [False, False, False, False, False, False, True]
    assert {type(verdict) for verdict in verdicts} == {bool}  # they go to workers as JSON


@pytest.mark.parametrize("objective", ["two", "joint"])
def test_a_trial_is_not_pruned_for_a_slightly_higher_loss(tmp_path: Path, objective: str) -> None:
    with open_scheduler(tmp_path, replace(PLAN, objective=objective)) as scheduler:
        for damage in (0.01, 0.05, 0.02, 0.04, 0.03, 0.06, 0.2):
            trial = scheduler.start_next()
            assert trial is not None
            assert not scheduler.report(trial.number, 50, 0.0, damage)
            scheduler.complete(trial.number, scored(trial), {})


def test_a_trial_that_forgets_better_is_not_pruned_for_its_damage(tmp_path: Path) -> None:
    with open_scheduler(tmp_path) as scheduler:
        for _ in range(6):
            trial = scheduler.start_next()
            assert trial is not None
            scheduler.report(trial.number, 50, 0.5, 0.1)
            scheduler.complete(trial.number, scored(trial), {})
        trial = scheduler.start_next()
        assert trial is not None
        assert not scheduler.report(trial.number, 50, 0.4, 9.0)
        assert scheduler.report(trial.number, 75, 9.0, 9.0) is False  # nobody else reported at 75 percent


def test_a_grid_ends_with_its_last_point(tmp_path: Path) -> None:
    plan = replace(PLAN, sampler="grid")
    with open_scheduler(tmp_path, plan) as scheduler:
        run_trials(scheduler, 100)
        # 13 points are left beside the defaults, so three levels of each of two knobs fit.
        assert plan.size == len(scheduler.trials) == 10
        assert len({tuple(each.params.values()) for each in scheduler.trials[1:]}) == 9


def test_the_copy_of_a_failed_trial_takes_no_point_of_a_grid(tmp_path: Path) -> None:
    plan = replace(PLAN, sampler="grid")
    with open_scheduler(tmp_path, plan) as scheduler:
        run_trials(scheduler, 100)
        trials = scheduler.trials
        failed, *_, last = trials
        copy = optuna.create_trial(
            state=TrialState.COMPLETE, params=failed.params, distributions=failed.distributions, values=[0.0, 0.0],
            system_attrs={RETRIED: [0]},
        )  # fmt: skip
        assert propose(plan, [*trials[:-1], copy]).params == last.params


def test_nsga2_warns_where_most_trials_are_its_first_population() -> None:
    with pytest.warns(UserWarning, match="draws its first 50 trials at random, and trials = 40"):
        warn_of_population(replace(PLAN, sampler="nsga2", trials=40))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_population(replace(PLAN, sampler="nsga2", trials=101))
        warn_of_population(replace(PLAN, sampler="tpe", trials=40))


def test_a_journal_has_one_coordinator(tmp_path: Path) -> None:
    with (
        open_scheduler(tmp_path),
        pytest.raises(InputError, match="is in use by another process"),
        open_scheduler(tmp_path),
    ):
        pass
    with open_scheduler(tmp_path) as scheduler:
        assert scheduler.start_next() is not None


@pytest.mark.parametrize("content", [b"SQLite format 3\x00 and more", b"a line\nand half of", b'{"a": 1}\n{'])
def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "toy.journal").write_bytes(content)
    with pytest.raises(InputError, match="is not a journal of Optuna"), open_scheduler(tmp_path):
        pass
    assert (tmp_path / "toy.journal").read_bytes() == content


def test_a_torn_last_line_and_a_left_over_lock_do_not_stop_a_study(tmp_path: Path) -> None:
    with open_scheduler(tmp_path) as scheduler:
        run_trials(scheduler, 3)
    journal = tmp_path / "toy.journal"
    with journal.open("ab") as file:
        file.write(b'{"op_code": 4, "trial_i')
    Path(f"{journal}.lock").symlink_to(journal)
    with open_scheduler(tmp_path) as scheduler:
        run_trials(scheduler, 2)
    with open_scheduler(tmp_path) as scheduler:
        assert [each.state for each in scheduler.trials] == [TrialState.COMPLETE] * 5


def test_an_address_that_is_no_storage_is_refused_without_its_password(tmp_path: Path) -> None:
    for address, message in (
        ("mysql://me:secret@host/db", r"mysql://me:\*\*\*@host/db is not allowed; it is auto, a path or postgresql"),
        (
            "postgresql://me:secret@127.0.0.1:1/db?connect_timeout=2",
            r"me:\*\*\*@127.0.0.1:1/db.*(cannot be used|needs psycopg)",
        ),
    ):
        with pytest.raises(InputError, match=message) as caught, storage.opened(address, "toy", tmp_path / "unused"):
            pass
        assert "secret" not in str(caught.value)
