"""The contract of every metric, found by itself: adding a file to safemax/metrics adds it here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from safemax import metric_keys as keys
from safemax import metrics
from safemax.evaluation import metric_info
from safemax.evaluation.measure import code_digest, judged, measure
from safemax.metrics.measurement import Measurement
from tests.support import real_data

ENDS = ("", "_low", "_high", "_se")
TOY = """
from safemax.metrics.measurement import Measurement, MetricInfo

METRICS = {"forget/brightness": MetricInfo("mean pixel", "0..255", "")}


def measure(given: Measurement) -> dict[str, float]:
    return {"forget/brightness": given.forgotten.images.double().mean().item()}
"""


def measurement() -> Measurement:
    """Return a measurement with a gold model, on real digits."""
    judges = real_data.judges()
    main, second = judged(real_data.samples(3, real_data.real(5)), judges)
    return Measurement(main, second, judges, real_data.reference(), (3,), gold=main)


given = pytest.fixture(scope="module", name="given")(measurement)


@pytest.mark.parametrize("name", metrics.available())
def test_a_metric_returns_only_numbers_that_it_states_and_the_same_ones_again(name: str, given: Measurement) -> None:
    metric = metrics.available()[name]
    values = metric.measure(given)
    stated = {key + end for key in metric.infos for end in ENDS}
    assert [key for key in values if key not in stated and not key.startswith(keys.RETAIN_CLASS)] == []
    assert metric.measure(given) == values


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
