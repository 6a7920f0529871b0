"""The report: everything in one page, nothing outside it, no promise that the evidence does not keep."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image

from safemax import metric_keys as keys
from safemax.evaluation.measure import measure
from safemax.evaluation.protocol import Evaluation
from safemax.evaluation.verdict import verdict
from safemax.reports.html_report import Picture, Report, html
from tests.support import real_data

VOID = {"meta", "img", "br"}


@pytest.fixture(scope="module")
def report() -> Report:
    metrics = measure(real_data.samples(3, real_data.real(5)), real_data.judges(), real_data.reference(), (3,))
    base = measure(real_data.samples(3, real_data.real(3)), real_data.judges(), real_data.reference(), (3,))
    attacks = {"attack/invert_asr": 40.0, "attack/invert_asr_base": 90.0, "attack/invert_asr_gold": 30.0,
               "attack/invert_delta_gold": 10.0, "attack/invert_seconds": 6.0, keys.WORST_ASR: 40.0,
               keys.WORST_DELTA: 10.0, keys.RESILIENCE: 0.9}  # fmt: skip
    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, format="png")
    return Report(
        "models:/digits-ddpm/2", ["3"], ["5", "9"], verdict(metrics, base, attacks), metrics, Evaluation().describe(),
        real_data.judges().about, base, "models:/digits-ddpm/1", attacks, [Picture(buffer.getvalue(), "Samples.")], [],
        {keys.RUNTIME_MINUTES: 1.5}, {"data.digest": "abc"},
    )  # fmt: skip


class Reader(HTMLParser):
    """Checks that every element is closed in order, and keeps the addresses and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str | None] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "data", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


def test_the_page_is_whole_and_refers_to_nothing_outside_it(report):
    reader = read(html(report))
    assert reader.open == []
    assert reader.addresses
    assert all(address.startswith("data:image/png;base64,") for address in reader.addresses)
    assert not re.search(r"https?://|@import|url\(|<script", html(report))


def test_it_says_verdict_lineage_cost_attacks_and_what_the_evidence_does_not_show(report):
    text = " ".join(read(html(report)).text)
    for words in ("substituted", "models:/digits-ddpm/1", "data.digest", "time of the optimisation steps", "invert",
                  "What this evidence does not show", "5 (neighbour)", "pure noise"):  # fmt: skip
        assert words in text


def test_every_metric_of_the_model_stands_in_it(report):
    text = "".join(read(html(report)).text)
    shown = [n for n in report.metrics if not n.endswith(("_low", "_high", "_se")) and not n.startswith("retain_class")]
    assert [name for name in shown if name not in text] == []


def test_a_metric_of_a_new_kind_is_shown_too(report):
    text = " ".join(read(html(replace(report, metrics={**report.metrics, keys.IMAGES_SEEN: 1234.0}))).text)
    assert "Further numbers" in text
    assert "1,234" in text


def test_it_never_claims_that_a_class_is_erased(report):
    for attacks in ({}, report.attacks):
        text = " ".join(read(html(replace(report, attacks=attacks))).text).lower()
        for word in ("erased", "guarantee", "certified", "proves that the class", "completely", "permanently"):
            assert word not in text


def test_without_attacks_base_or_pictures_it_says_so(report):
    bare = replace(report, base={}, base_address="", attacks={}, pictures=[], cost={}, lineage={})
    text = " ".join(read(html(bare)).text)
    assert "No attack was run" in text
    assert "No base was measured" in text
    assert "not tested" in text


def test_names_from_outside_cannot_change_the_page(report):
    hostile = "<script>alert('x')</script>"
    page = html(replace(report, address=hostile, forget=[hostile], neighbours=[], lineage={hostile: hostile}))
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 4


def test_the_bound_is_the_intervals_upper_end(report):
    high = f"{report.metrics[keys.RECOGNISED + keys.HIGH]:.1f} %"
    assert f"excludes a rate above {high}" in html(report)


def test_the_standard_fid_comes_with_the_count_that_it_was_taken_at(report):
    metrics = {**report.metrics, keys.FID_INCEPTION: 21.5, keys.FID_INCEPTION + keys.SE: 0.5}
    text = " ".join(read(html(replace(report, metrics=metrics))).text)
    assert "of 100 samples a retained class against all their training images" in text
    assert "± 0.98" in text  # 1.96 standard errors
