from __future__ import annotations

import pytest

from safemax import metric_keys as keys
from safemax.errors import InputError
from safemax.evaluation import metric_info
from safemax.evaluation.measure import measure
from tests.support import real_data


def test_every_number_of_an_evaluation_has_a_meaning_a_unit_and_a_direction():
    samples = real_data.samples(3, real_data.real(3))
    for name in measure(samples, real_data.judges(), real_data.reference(), (3,), gold=samples):
        about = metric_info.meaning(name)
        assert about.text
        assert about.better in ("higher", "lower", "")


@pytest.mark.parametrize(
    ("name", "words", "better"),
    [
        (keys.UA_REJECT, "does not recognise", "higher"),
        (keys.UA_REJECT + keys.LOW, "lower end of its 95 % interval", ""),
        ("base/forget/recognised", "of the base", "lower"),
        (keys.RETAIN_KID + keys.SE, "standard error", ""),
        (keys.ACCURACY + keys.DELTA, "difference from the base", "higher"),
        ("retain_class/kid_tench_big", "KID of one retained class", "lower"),
        ("retain_class/kid_se_ship", "standard error", ""),
        ("retain_class/accuracy_ship_delta", "difference from the base", "higher"),
        ("attack/relearn_10_asr_gold", "retrained model", ""),
        ("attack/relearn_10_s50_base", "half of the samples", "higher"),
    ],
)
def test_intervals_errors_differences_and_names_are_understood(name, words, better):
    about = metric_info.meaning(name)
    assert words in about.text
    assert about.better == better


def test_an_unknown_metric_is_refused():
    with pytest.raises(InputError, match="unknown metric 'forget/uaa'"):
        metric_info.meaning("forget/uaa")


def test_the_readme_table_has_a_row_a_metric():
    assert metric_info.markdown().count("\n") == len(metric_info.infos()) + 1
