"""The training of judges: passes over the data, what a stop leaves behind, what is said before it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from safemax.data.batches import to_float
from safemax.data.dataset import Dataset, Split
from safemax.errors import Stopped
from safemax.judges import train
from safemax.judges.classifier import Judge, accuracy
from safemax.judges.config import JudgeConfig, resolved
from safemax.judges.load import judges
from safemax.judges.train import train_judge
from safemax.judges.training_images import Passes
from tests.support import tiny_models


def large() -> Dataset:
    """Return the tiny data set at 24 x 24 pixels, for which auto takes the whitened network."""
    tiny = tiny_models.dataset()
    train_split, test = (
        replace(each, images=each.images.repeat_interleave(3, 2).repeat_interleave(3, 3))
        for each in (tiny.train, tiny.test)
    )
    return replace(tiny, train=train_split, test=test)


def trained(arch: str, folder: Path | None = None, *, reject: bool = False) -> Judge:
    data = large() if arch == "whitened" else tiny_models.dataset()
    return train_judge(data, arch, steps=6, batch_size=24, reject=reject, progress=False, checkpoints=folder)


@pytest.mark.parametrize("reject", [False, True])
@pytest.mark.parametrize("arch", ["small", "whitened"])
def test_a_stopped_training_resumes_and_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arch: str, reject: bool
) -> None:
    undisturbed = trained(arch, reject=reject)
    monkeypatch.setattr(train, "SAVE_EVERY", -1.0)  # after every step
    step, taken = train._Training._step, []

    def stops(self: train._Training, number: int) -> None:
        taken.append(number)
        if len(taken) == 4:
            raise Stopped
        step(self, number)

    monkeypatch.setattr(train._Training, "_step", stops)
    with pytest.raises(Stopped):
        trained(arch, tmp_path, reject=reject)
    resumed = trained(arch, tmp_path, reject=reject)
    assert taken == [0, 1, 2, 3, 3, 4, 5]
    expected = undisturbed.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.state_dict().items())


def test_a_pass_shows_every_image_once_and_the_next_one_mirrors_the_others() -> None:
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).repeat(1, 3, 1, 2)
    images[..., 1] += 100
    passes = Passes(
        Dataset("ten", Split(images, torch.arange(10)), Split(images, torch.arange(10)), ("a",) * 10, True), 0
    )
    seen = [passes.rows(step, 4) for step in range(5)]  # 20 rows: two passes, with a batch that belongs to both
    labels = torch.cat([y for _, y in seen])
    assert sorted(labels[:10].tolist()) == sorted(labels[10:].tolist()) == list(range(10))
    x = torch.cat([x for x, _ in seen])
    mirrored = x[:, 0, 0, 0] > x[:, 0, 0, 1]
    first, second = (mirrored[rows][labels[rows].argsort()] for rows in (slice(10), slice(10, 20)))
    assert torch.equal(first, ~second)
    assert torch.equal(x.amax((1, 2, 3)), to_float(images)[labels].amax((1, 2, 3)))


def test_the_fast_recipe_learns_an_easy_data_set() -> None:
    data = large()
    assert accuracy(train_judge(data, "whitened", steps=30, batch_size=32, progress=False), data.test) > 90


def test_auto_is_a_whitened_network_with_heads_above_16_pixels() -> None:
    found = resolved(JudgeConfig(), large())
    wide = "whitened_wide" if torch.cuda.is_available() else "whitened"
    assert (found.judge, found.reject_judge) == (wide, "none_head")
    small = resolved(JudgeConfig(), tiny_models.dataset())
    assert (small.judge, small.reject_judge) == ("small", "small")


def test_the_cost_is_said_before_and_nothing_is_said_when_all_is_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path))
    config = JudgeConfig(judge_steps=6, reject_judges=2)
    judges(large(), config)
    said = capsys.readouterr().err
    first = said.partition("\n")[0]
    assert first.startswith(
        "judges for tiny, trained once, then reused: 1 whitened, 6 steps of 512 images each; 2 none heads"
    )
    assert "minutes left on this cpu; trained once, then reused; a stop loses at most 30 s" in said
    assert not list((tmp_path / "judges").glob("*-unfinished"))
    judges(large(), config)
    assert capsys.readouterr().err == ""
