"""Two processes with separate disks train as one: rank 0's state counts, a difference is an error, a hang ends."""

from __future__ import annotations

import random
import shutil
import time

import pytest

from tests.support import ranks
from tests.support.rank_program import train


def test_two_ranks_with_separate_folders_resume_to_the_bytes_of_an_unstopped_run(tmp_path):
    whole = ranks.answers(train, tmp_path / "whole", ema=0.9)
    first = ranks.answers(train, tmp_path / "stopped", ema=0.9, stop_at=3)
    second = ranks.answers(train, tmp_path / "stopped", ema=0.9)
    assert [each["stopped"] for each in first] == [True, True]
    assert [each["steps"][-1:] for each in first] == [["00000003"], []]  # rank 1 has no checkpoint of its own
    assert {each["digest"] for each in (*whole, *second)} == {whole[0]["digest"]}
    assert {each["asked"] for each in second} == {3}


@pytest.mark.slow
def test_a_checkpoint_that_another_rank_has_on_its_own_disk_does_not_count(tmp_path):
    whole = ranks.answers(train, tmp_path / "whole")
    ranks.answers(train, tmp_path / "stale", stop_at=4)
    shutil.copytree(tmp_path / "stale" / "0" / "steps", tmp_path / "fresh" / "1" / "steps")
    fresh = ranks.answers(train, tmp_path / "fresh")
    assert {each["digest"] for each in fresh} == {whole[0]["digest"]}
    assert {each["asked"] for each in fresh} == {6}


@pytest.mark.slow
def test_a_prior_that_only_rank_0_has_reaches_the_other_and_is_prepared_together_the_first_time(tmp_path):
    first = ranks.answers(train, tmp_path, method="salun", priors=True)
    shutil.rmtree(tmp_path / "0" / "steps")
    again = ranks.answers(train, tmp_path, method="salun", priors=True)
    assert [each["priors"] for each in again] == [1, 0]
    assert {each["digest"] for each in (*first, *again)} == {first[0]["digest"]}


def test_ranks_that_differ_are_refused_with_what_differs(tmp_path):
    with ranks.started(train, tmp_path, differs={"lr": 2e-4}) as both:
        assert ranks.wait(both) == [3, 3]
    assert "lr is 0.0002 here and 0.0001 in rank 0" in ranks.said(tmp_path, 1)
    assert "another process differs from rank 0" in ranks.said(tmp_path, 0)


def test_a_hang_ends_every_rank_with_its_rank_and_step(tmp_path):
    with ranks.started(train, tmp_path, hang_at=3, hang_minutes=0.05) as both:
        statuses = ranks.wait(both)
    assert statuses[1] == 1
    assert statuses[0] in (1, 3)  # its own clock, or the end of the other
    assert "rank 1 of 2" in ranks.said(tmp_path, 1)
    assert "step 4 has not ended in 0.05 minutes" in ranks.said(tmp_path, 1)
    assert "in should_stop" in ranks.said(tmp_path, 1)  # where it hangs
    assert "step 4" in ranks.said(tmp_path, 0)


@pytest.mark.slow
def test_ranks_that_are_killed_at_ten_random_moments_end_with_the_bytes_of_an_undisturbed_run(tmp_path):
    given = {"steps": 60, "ema": 0.9, "slow": 0.02}
    whole = ranks.answers(train, tmp_path / "whole", **given)
    dice = random.Random(0)
    for kill in range(10):
        with ranks.started(train, tmp_path / "killed", **given) as both:
            began = [tmp_path / "killed" / str(rank) / "began" for rank in range(ranks.WORLD)]
            while not all(each.exists() for each in began):
                time.sleep(0.01)
            time.sleep(dice.uniform(0, 0.4))
            both[kill % 2].kill()
            statuses = ranks.wait(both)
        assert statuses[kill % 2] == -9
        assert statuses[1 - kill % 2] == 3  # it sees that the other one is gone
        assert f"rank {1 - kill % 2} of 2" in ranks.said(tmp_path / "killed", 1 - kill % 2)
        for each in began:
            each.unlink()
    end = ranks.answers(train, tmp_path / "killed", **given)
    assert {each["digest"] for each in (*whole, *end)} == {whole[0]["digest"]}
