"""The contract of every metric, found by itself: adding a file to safemax/metrics adds it here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from safemax import metric_keys as keys
from safemax import metrics
from safemax.evaluation import metric_info
from safemax.evaluation.measure import code_digest, measure
from safemax.metrics.measurement import JudgedImages, PanelSetting
from tests.support import made_up_measurements, real_data

ENDS = ("", "_low", "_high", "_se")
TOY = """
from torchmetrics import MeanMetric

from safemax.metrics.measurement import JudgedImages, MetricInfo, PanelMetric, PanelSetting

METRICS = {"forget/brightness": MetricInfo("mean pixel", "0..255", "")}


class Panel(PanelMetric):
    def __init__(self, setting: PanelSetting) -> None:
        super().__init__(setting)
        self.mean = MeanMetric()

    def update(self, images: JudgedImages) -> None:
        self.mean.update(images.of(self.setting.forget).images)

    def compute(self) -> dict[str, float]:
        return {"forget/brightness": self.mean.compute().item()}
"""


def drawn() -> tuple[PanelSetting, list[JudgedImages]]:
    """Return a setting and made-up images of every draw."""
    users = [made_up_measurements.judged(made_up_measurements.SECOND_LABELS, 6 + k, name)
             for k, name in enumerate(keys.USER_SAMPLERS)]  # fmt: skip
    return made_up_measurements.setting(), [*made_up_measurements.draws(), *users]


given = pytest.fixture(scope="module", name="given")(drawn)


@pytest.mark.parametrize("name", metrics.available())
def test_a_metric_returns_only_numbers_that_it_states_and_the_same_ones_again(
    name: str, given: tuple[PanelSetting, list[JudgedImages]]
) -> None:
    file, (setting, batches) = metrics.available()[name], given
    metric = file.create(setting)
    for batch in batches:
        metric.update(batch)
    values = metric.compute()
    stated = {key + end for key in file.infos for end in ENDS}
    assert [key for key in values if key not in stated and not key.startswith(keys.RETAIN_CLASS)] == []
    metric.reset()
    for batch in batches:
        metric.update(batch)
    assert metric.compute() == values


@pytest.mark.parametrize("name", metrics.available())
def test_a_metric_states_a_phrase_and_a_direction_of_each_number(name: str) -> None:
    for info in metrics.available()[name].infos.values():
        assert info.text
        assert info.better in ("higher", "lower", "")


def test_no_two_metrics_state_the_same_key() -> None:
    stated = [key for metric in metrics.available().values() for key in metric.infos]
    assert len(stated) == len(set(stated))


def test_the_reading_order_names_metrics_that_there_are() -> None:
    assert tuple(metrics.available())[: len(metrics.READING_ORDER)] == metrics.READING_ORDER


def test_a_new_file_is_a_metric_of_every_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_digest()
    (tmp_path / "brightness.py").write_text(TOY)
    with monkeypatch.context() as patch:
        patch.setattr(metrics, "__path__", [*metrics.__path__, str(tmp_path)])
        patch.delitem(sys.modules, "safemax.metrics.brightness", raising=False)
        metrics.available.cache_clear()
        assert "brightness" in metrics.available()
        black = real_data.samples(3, 0 * real_data.real(3))
        assert measure(black, real_data.judges(), real_data.reference(), (3,))["forget/brightness"] == 0
        assert metric_info.meaning("forget/brightness").text == "mean pixel"
    metrics.available.cache_clear()  # before the digest, which asks for all metrics
    sys.modules.pop("safemax.metrics.brightness", None)
    assert code_digest() == before
