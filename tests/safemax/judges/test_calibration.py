"""A temperature makes confidence the share of right answers and changes no answer."""

from __future__ import annotations

import pytest
import torch

from safemax.judges.calibration import calibration, calibration_error, temperature, tempered
from safemax.judges.classifier import Judge, predict
from safemax.judges.recipes import is_smoothed


def _doubting(too_much: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return probabilities of a judge whose logits are divided by too_much, and labels that follow the logits themselves."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 5, generator=generator)
    labels = logits.softmax(1).multinomial(1, generator=generator)[:, 0]
    return (logits / too_much).softmax(1), labels


@pytest.mark.parametrize("too_much", [0.5, 3.0])
def test_the_temperature_that_a_judge_has_too_much_is_found(too_much: float) -> None:
    probs, labels = _doubting(too_much)
    assert temperature(probs, labels) == pytest.approx(1 / too_much, rel=0.05)


def test_a_judge_of_smoothed_labels_is_measured_on_the_images_that_its_temperature_has_not_seen() -> None:
    probs, labels = _doubting(3.0)
    found = calibration("whitened-none3", probs, labels)
    assert found["calibration_error_at_1"] == calibration_error(probs[1::2], labels[1::2]) > 0.1
    assert found["calibration_error"] < 0.02
    assert torch.equal(tempered(probs, found["temperature"]).argmax(1), probs.argmax(1))


def test_other_judges_have_no_temperature() -> None:
    probs, labels = _doubting(3.0)
    assert calibration("small+small", probs, labels) == {"calibration_error": calibration_error(probs, labels)}
    assert [is_smoothed(each) for each in ("whitened", "whitened_wide-none2+resnet20-none1", "resnet20-none3")] == [
        True, True, False,
    ]  # fmt: skip


def test_a_judge_s_probabilities_follow_its_temperature() -> None:
    judge, images = Judge("small", ("a", "b", "c"), (1, 8, 8)), torch.rand(6, 1, 8, 8)
    before = predict(judge, images)[0]
    judge.temperature = 0.25
    after = predict(judge, images)[0]
    torch.testing.assert_close(after.double(), tempered(before, 0.25), atol=1e-6, rtol=0)
    assert not torch.allclose(after, before)
