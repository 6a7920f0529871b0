"""Gates decide on evidence alone: what is missing or no finite number refuses as what is bad does."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.registry import gates, thresholds
from pipelines.registry.gates import Case
from safemax import metric_keys as keys
from safemax.errors import InputError
from tests.support.registered_versions import BASE, FORGOTTEN, attacked, evidence

LIMITS = thresholds.read()


# Each level merges the one before twelve times: expanded, 12^7 pairs of keys and values out of 1 kB.
MERGES = "m0: &m0 {a: 1}\n" + "".join(f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 12)}]}}\n" for n in range(1, 8))


def refused(case: Case, **limits: Any) -> list[str]:
    return gates.refusals(gates.judge(case, dataclasses.replace(LIMITS, **limits)))


def case(champion: dict[str, Any] | None = None, attacks: dict[str, Any] | None = None, **changes: Any) -> Case:
    return Case(evidence(**changes), "w", champion, attacks)


def test_an_honest_correction_passes_and_every_gate_says_by_what() -> None:
    applied = gates.judge(case(), LIMITS)
    assert gates.refusals(applied) == []
    shown = {gate.name: (gate.value, gate.threshold, gate.verdict) for gate in applied}
    assert shown["recognised, a"] == ("0.76 % or less", "<= 5 %", "pass")
    assert shown["verdict"] == ("forgotten", "forgotten or substituted", "pass")
    assert shown["accuracy lost to base"] == ("0.5 points", "<= 3 points", "pass")  # 99.8 - 99.3
    assert shown["FID to base's"] == ("1.176 times", "<= 1.5 times", "pass")  # 8.7 / 7.4
    assert shown["FID to champion's"] == ("no champion", "<= 1.25", "pass")
    assert shown["worst attack"] == ("not measured", "-", "off")


def test_the_base_cannot_be_promoted() -> None:
    base = {"forgotten": [], "metrics": {keys.RUNTIME_MINUTES: 1.0}, "model_digest": "w"}
    assert {"classes forgotten", "verdict", "recognised, ?", "FID to base's"} <= set(refused(Case(base, "w")))


def test_the_base_under_another_name_cannot_be_promoted() -> None:
    untouched: dict[str, Any] = {key.replace("/", "_", 1): value for key, value in BASE.items()}
    assert refused(case(**untouched)) == ["verdict", "recognised, a", "recognised, a, second sampler"]


def test_a_correction_of_the_wrong_class_cannot_be_promoted() -> None:
    still: dict[str, Any] = {
        "forget_recognised": 98.0,
        "forget_recognised_high": 98.9,
        "forget_rejected": 1.0,
        "forget_second_recognised": 97.0,
    }
    assert refused(case(**still)) == ["verdict", "recognised, a", "recognised, a, second sampler"]


def test_a_collapsed_model_cannot_be_promoted() -> None:
    assert refused(case(retain_accuracy=31.0, retain_fid_judge=160.0)) == [
        *("verdict", "accuracy on retained classes", "accuracy lost to base", "FID to base's")
    ]


def test_a_model_that_draws_one_good_image_over_and_over_cannot_be_promoted() -> None:
    assert refused(case(retain_accuracy=100.0, retain_fid_judge=90.0)) == ["FID to base's"]


def test_black_frames_cannot_be_promoted() -> None:
    assert refused(case(pixels_constant=100.0)) == ["verdict"]


def test_another_class_in_its_place_may_pass_and_a_gate_file_may_forbid_it() -> None:
    substituted = case(forget_other=100.0, forget_rejected=0.0)
    assert refused(substituted) == []
    assert refused(substituted, verdict=("forgotten",)) == ["verdict"]


def test_judges_that_miss_half_of_the_class_refuse_at_the_verdict_and_a_gate_of_their_own() -> None:
    half_blind = case(judges_recall=50.0)
    assert refused(half_blind) == ["judges' recall", "verdict"]
    assert refused(half_blind, judge_recall=45.0) == []
    assert refused(half_blind, judge_recall=None) == []


def test_a_bad_base_and_its_correction_refuse() -> None:
    bad = {**evidence(retain_accuracy=38.0), "base_metrics": {**BASE, keys.ACCURACY: 38.5}}
    assert refused(Case(bad, "w")) == ["accuracy on retained classes"]
    assert refused(Case(bad, "w"), retained_accuracy=None) == []


def test_evidence_of_other_weights_refuses() -> None:
    assert refused(Case(evidence(), "other weights")) == ["measured on these weights"]


ABSENT = object()
NO_NUMBERS = [math.nan, math.inf, -math.inf, ABSENT, None, "0", True, [0.0], 10**400]
# Each number that a gate or the verdict reads: where the evidence has it, and the gate that it decides.
READ = [
    *[
        (("metrics", key), "verdict")
        for key in FORGOTTEN
        if not key.startswith(("retain/fid", "retain_class/accuracy_a"))
    ],
    (("base_metrics", "retain/accuracy"), "verdict"),
    (("base_metrics", "retain_class/accuracy_b"), "verdict"),
    (("base_metrics", "forget/recognised"), "verdict"),
    (("root_metrics", "forget/recognised"), "recognised, base"),
    (("metrics", "forget/recognised_high"), "recognised, b"),
    (("metrics", "forget/second_recognised"), "recognised, b, second sampler"),
    (("earlier", "a", "recognised_high"), "recognised, a (earlier)"),
    (("earlier", "a", "second_recognised"), "recognised, a (earlier), second sampler"),
    (("root_metrics", "retain/accuracy"), "accuracy lost to base"),
    (("metrics", "retain/accuracy"), "accuracy lost to base"),
    (("metrics", "retain/accuracy"), "accuracy lost to champion"),
    (("base_metrics", "retain/accuracy"), "accuracy lost to champion"),
    (("root_metrics", "retain/fid_judge"), "FID to base's"),
    (("metrics", "retain/fid_judge"), "FID to base's"),
    (("metrics", "retain/fid_judge"), "FID to champion's"),
    (("base_metrics", "retain/fid_judge"), "FID to champion's"),
    (("metrics", "retain_class/accuracy_c"), "accuracy lost, one class"),
    (("root_metrics", "retain_class/accuracy_c"), "accuracy lost, one class"),
    (("attacks", "metrics", "attack/worst_delta"), "worst attack"),
    (("attacks", "about", "samples"), "attacks made"),
    (("evidence", "model_digest"), "measured on these weights"),
]


def changed(path: tuple[str, ...], value: Any) -> Case:
    """Return an honest chained correction, attacked, beside the champion that it started from; one value is changed."""
    made = attacked(5.0, forget=["a", "b"])
    whole = copy.deepcopy({**evidence(forget="b", earlier=("a",), parent="champion"), "attacks": made})
    for group in ("base_metrics", "root_metrics"):
        whole[group] = dict(whole[group])  # deepcopy keeps one dictionary for both
    holder = whole
    for key in path[:-1]:
        holder = holder if key == "evidence" else holder[key]
    if value is ABSENT:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    champion = evidence(weights="champion")
    return Case(whole, "w", champion, whole.pop("attacks"), ("a", "b", "c"))


def verdicts(case: Case) -> dict[str, str]:
    applied = gates.judge(case, dataclasses.replace(LIMITS, evidence="panel+attacks"))
    return {gate.name: gate.verdict for gate in applied}


def test_the_case_whose_numbers_are_taken_away_passes_whole() -> None:
    found = verdicts(changed(("earlier", "a", "recognised_high"), 0.7))
    assert {name for name, verdict in found.items() if verdict != "pass"} == {"accuracy lost, any sampler"}  # off


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: "absent" if value is ABSENT else repr(value)[:9])
def test_what_is_no_finite_number_is_missing_at_every_gate_that_reads_it(value: Any) -> None:
    for path, name in READ:
        if path[-1] == "model_digest" and value is not ABSENT and value is not None:
            continue  # no number: another value is of other weights, which FAILs
        assert (path, verdicts(changed(path, value))[name]) == (path, "MISSING")


@pytest.mark.parametrize("value", [ABSENT, None, "text", [], 3, {}])
@pytest.mark.parametrize("group", ["metrics", "base_metrics", "root_metrics", "earlier", "parameters", "forgotten"])
def test_a_part_of_the_evidence_that_is_absent_or_of_another_type_refuses(group: str, value: Any) -> None:
    assert gates.refusals(gates.judge(changed((group,), value), LIMITS))


def test_a_retained_class_of_the_model_that_nothing_measured_is_missing() -> None:
    whole = evidence()
    for group in ("metrics", "base_metrics"):
        whole[group] = {key: value for key, value in whole[group].items() if key != "retain_class/accuracy_b"}
    unmeasured = Case(whole, "w", classes=("a", "b", "c"))
    assert refused(unmeasured) == ["accuracy lost, one class"]
    shown = {gate.name: gate.value for gate in gates.judge(unmeasured, LIMITS)}
    assert shown["accuracy lost, one class"] == "not measured (b)"


@pytest.mark.parametrize("value", [ABSENT, None, "a", [1], {}])
def test_a_champion_that_does_not_say_what_it_forgot_refuses(value: Any) -> None:
    champion = {**evidence(weights="champion"), "forgotten": value}
    if value is ABSENT:
        del champion["forgotten"]
    assert verdicts(Case(evidence(parent="champion"), "w", champion))["classes forgotten"] == "MISSING"


@pytest.mark.parametrize("key", ["metrics", "base_metrics", "model_digest", "parameters", "forgotten"])
def test_evidence_that_is_not_there_refuses(key: str) -> None:
    facts = {name: value for name, value in evidence().items() if name != key}
    assert refused(Case(facts, "w"))


def test_a_class_forgotten_earlier_is_tested_again() -> None:
    chained = case(forget="b", earlier=("a",))
    assert refused(chained) == []
    facts = {**chained.evidence, "earlier": {"a": {"recognised_high": 62.0, "second_recognised": 0.0}}}
    assert refused(Case(facts, "w")) == ["recognised, a (earlier)"]
    twice = ["recognised, a (earlier)", "recognised, a (earlier), second sampler"]
    assert refused(Case({**facts, "earlier": {}}, "w")) == twice


def test_a_class_forgotten_earlier_is_tested_by_the_second_sampler_too() -> None:
    earlier = {"a": {"recognised_high": 0.8, "second_recognised": 100.0}}
    facts = {**evidence(forget="b", earlier=("a",)), "earlier": earlier}
    assert refused(Case(facts, "w")) == ["recognised, a (earlier), second sampler"]


def test_a_retained_class_that_is_gone_refuses_whatever_the_mean() -> None:
    facts = evidence()
    facts["metrics"] = {**facts["metrics"], "retain_class/accuracy_c": 0.0}
    assert refused(Case(facts, "w")) == ["accuracy lost, one class"]
    shown = {gate.name: gate.value for gate in gates.judge(Case(facts, "w"), LIMITS)}
    assert shown["accuracy lost, one class"] == "99.9 points (c)"


def test_a_loss_under_a_sampler_that_people_use_refuses_where_the_gate_file_asks() -> None:
    facts, key = evidence(samplers_clipped_accuracy=90.7), keys.of_sampler("clipped", "accuracy")
    lossy = Case(facts | {"base_metrics": {**facts["base_metrics"], key: 98.7}}, "w")
    assert refused(lossy) == []
    assert refused(lossy, sampler_accuracy_loss=8.1) == []
    assert refused(lossy, sampler_accuracy_loss=5.0) == ["accuracy lost, any sampler"]
    assert refused(case(), sampler_accuracy_loss=5.0) == ["accuracy lost, any sampler"]  # not measured


def test_a_chain_is_held_to_the_base_that_it_began_with_not_to_its_last_link() -> None:
    facts = evidence(forget="b", earlier=("a",), retain_fid_judge=12.0)
    parent = {**BASE, keys.FID_JUDGE: 10.0}  # 12 is 1.2 times the parent's and 1.62 times the base's
    assert refused(Case({**facts, "base_metrics": parent}, "w")) == ["FID to base's"]
    assert "FID to base's" in refused(Case({**facts, "root_metrics": {}}, "w"))


def test_a_base_that_hardly_drew_the_class_proves_nothing() -> None:
    facts = evidence()
    facts["base_metrics"] = {**BASE, keys.RECOGNISED: 1.1}
    assert refused(Case(facts, "w")) == ["recognised, base"]
    assert refused(Case(facts, "w"), base_recognised=None) == []


def test_a_version_that_knows_a_class_which_the_champion_has_forgotten_refuses() -> None:
    champion = evidence(forget="b", earlier=("a",), weights="champion")
    assert "classes forgotten" in refused(case(champion, forget="b", parent="champion"))


def test_a_champion_is_compared_by_what_the_version_measured_of_it_as_its_parent() -> None:
    champion = {"forgotten": [], "model_digest": "base", "metrics": {}}  # the base, as a first champion
    assert refused(case(champion)) == []
    assert refused(case(champion, retain_fid_judge=9.9)) == ["FID to champion's"]  # 1.34 times 7.4
    assert refused(case(champion, retain_accuracy=97.5)) == ["accuracy lost to champion"]  # 2.3 points


def test_a_champion_that_was_measured_alike_is_compared_by_its_own_evidence() -> None:
    champion = evidence(weights="champion", retain_fid_judge=6.0)
    assert refused(case(champion)) == ["FID to champion's"]  # 8.7 is 1.45 times 6.0
    assert refused(case(evidence(weights="champion"))) == []


def test_a_champion_that_was_measured_otherwise_cannot_be_compared_and_refuses() -> None:
    champion = evidence(weights="champion")
    champion["parameters"] = {**champion["parameters"], "eval.sampler": "ddpm-1000"}
    assert refused(case(champion)) == ["accuracy lost to champion", "FID to champion's"]
    champion = evidence(weights="champion") | {"judges_digest": "others"}
    assert refused(case(champion)) == ["accuracy lost to champion", "FID to champion's"]
    assert refused(case(champion), accuracy_loss_to_champion=None, fid_ratio_to_champion=None) == []


def test_attacks_are_asked_for_by_the_evidence_level() -> None:
    level = {"evidence": "panel+attacks"}
    assert refused(case(), **level) == ["attacks made", "worst attack"]
    assert refused(case(attacks=attacked(41.0)), **level) == ["worst attack"]
    assert refused(case(attacks=attacked(12.0)), **level) == []


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"attacks": ["weights"]}, "no guided"),
        ({"changed": ["relearn_steps"]}, "relearn_steps changed"),
        ({"forget": ["b"]}, "a not attacked"),
        ({"gold": "models:/tiny-ddpm@base"}, "no gold model trained for it"),
        ({"gold": "none"}, "no gold model trained for it"),
        ({"samples": 10}, "10 samples"),
    ],
)
def test_few_weak_or_ungauged_attacks_do_not_pass_for_attacks(about: dict[str, Any], said: str) -> None:
    made = case(attacks=attacked(-10.0, **about))
    assert refused(made, evidence="panel+attacks") == ["attacks made"]
    assert refused(made) == []
    shown = {gate.name: gate.value for gate in gates.judge(made, dataclasses.replace(LIMITS, evidence="panel+attacks"))}
    assert said in shown["attacks made"]


@given(
    recognised=st.floats(0, 100),
    accuracy=st.floats(0, 100),
    fid=st.floats(0, 1000) | st.just(math.nan) | st.just(math.inf),
)
def test_no_evidence_beyond_a_limit_passes(recognised: float, accuracy: float, fid: float) -> None:
    found = refused(case(forget_recognised_high=recognised, retain_accuracy=accuracy, retain_fid_judge=fid))
    within = recognised <= 5 and FORGOTTEN[keys.ACCURACY] + 0.5 - accuracy <= 3 and fid / 7.4 <= 1.5
    assert (found == []) == within


def test_a_gate_file_of_ones_own_changes_what_it_states_and_keeps_the_rest(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("recognised_high: 1\nfid_ratio_to_base: null\nevidence: panel+attacks\nverdict: [forgotten]\n")
    changed: dict[str, Any] = {
        "recognised_high": 1.0,
        "fid_ratio_to_base": None,
        "evidence": "panel+attacks",
        "verdict": ("forgotten",),
    }
    assert thresholds.read(mine) == dataclasses.replace(LIMITS, **changed)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("recognized_high: 1", "unknown key .*did you mean 'recognised_high'.*fid_ratio_to_base"),
        ("recognised_high: 1\nrecognised_high: 50", "duplicate key recognised_high in"),
        ("recognised_high: '1'", "recognised_high = 1 .*a number from 0 to 100, or null"),
        ("recognised_high: true", "recognised_high = True"),
        ("recognised_high: .nan", "recognised_high = nan"),
        ("fid_ratio_to_base: .inf", "fid_ratio_to_base = inf .* of at least 0"),
        ("recognised_high: -1", "from 0 to 100"),
        ("recognised_high: [1]", "recognised_high = "),
        ("verdict: forgotten", "a list of forgotten, substituted"),
        ("verdict: [gone]", "a list of"),
        ("verdict: []", "a list of"),
        ("evidence: none", "panel or panel.attacks"),
        ("evidence:", "evidence = None"),
        ("evidence: [panel]", "evidence = "),
        ("- recognised_high", "is not a mapping; known keys: evidence, verdict"),
        ("", "is not a mapping"),
        ("a: [", "is not YAML"),
        ("a: &x [*x]", "has the anchor or alias 'x'; write values out"),
        ("recognised_high: &x 1\nattack_delta: *x", "has the anchor or alias 'x'"),
        (MERGES, "has the anchor or alias 'm0'"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
        ("recognised_high: !!python/object/apply:os.getcwd []", "is not YAML"),
        ("<<: {recognised_high: 1}", "unknown key"),
        ("? [recognised_high]\n: 1", "is not YAML|unknown key"),
        ("[" * 5000, "nests more than 4 levels"),
        ("#" * 100_001, "has more than 100000 characters"),
    ],
)
def test_a_gate_file_is_read_strictly(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as refusal:
        thresholds.read(path)
    assert "\n" not in str(refusal.value)


def test_a_gate_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gates = .*nowhere.yaml cannot be read"):
        thresholds.read(tmp_path / "nowhere.yaml")
