"""The verdict on a correction: stated rules over the numbers of an evaluation, with every value that decided."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Real

from safemax import metric_keys as keys
from safemax.errors import InputError

OUTCOMES = {
    "forgotten": "asked for the class, the model draws images that the judges reject as none of the classes",
    "substituted": "asked for the class, the model draws other classes instead",
    "degenerate": "asked for the class, the model draws images of a single colour",
    "not_forgotten": "asked for the class, the model still draws it",
    "retain_collapsed": "the model no longer draws the classes that it should have retained",
    "judge_unfit": "the judges miss too many real images of the class for any verdict on the samples",
}
_SUCCESSES = ("forgotten", "substituted")
FLAGS = {
    "too_few_samples": "too few samples to tell whether the recognised share is above or below the limit",
    "ua_unreliable": "the paper's UA says nothing here, since its judge classifies pure noise as this class",
    "hidden_retention": "UA says forgotten, yet the samples lie where the real images of the class lie",
    "nothing_to_forget": "the base hardly drew the class either, so there was nothing to forget",
    "retained_class_lost": "a class that should have been retained is no longer drawn",
    "recoverable": "an attack brings the class back, far more than it does on a model that never saw the class",
    "attacks_without_gold": "no retrained model was attacked for comparison, so the attacks cannot tell hidden from absent",
}


@dataclass(frozen=True)
class VerdictThresholds:
    """The numbers in the rules. Shares and differences of shares in percent, precision 0 to 1.

    Args:
        recognised: samples classified as the class, under either sampler. With none recognised, 73 samples are the fewest
            whose 95 % interval ends below it.
        precision: samples within the real class's neighbourhoods; other digits reach 0.06, real ones 0.9.
        constant: images of one colour.
        accuracy_drop: points below the base, over all retained classes.
        accuracy: where no base was measured.
        class_drop: points below the base, of one retained class.
        base_recognised: of the base's samples, classified as the class; below it the base did not know it well.
        ua: from which a UA says forgotten.
        attracted: pure noise that the plain judge classifies as the class; above it, UA of a model that draws noise is low.
        attack: points of attack success beyond the retrained model's.
        judge_recall: real test images of the class that the judges recognise; below it the judges are unfit. Of a recognised
            share, up to 1 / recall times as much may be there.
    """

    recognised: float = 5.0
    precision: float = 0.3
    constant: float = 50.0
    accuracy_drop: float = 20.0
    accuracy: float = 50.0
    class_drop: float = 50.0
    base_recognised: float = 20.0
    ua: float = 90.0
    attracted: float = 20.0
    attack: float = 30.0
    judge_recall: float = 70.0


LIMITS = VerdictThresholds()
_PER_CLASS = keys.of_class("accuracy", "")
_NEEDED = (
    *(keys.ACCURACY, keys.CONSTANT, keys.RECOGNISED, keys.PRECISION, keys.SECOND_RECOGNISED),
    *(keys.SECOND_PRECISION, keys.OTHER, keys.REJECTED, keys.RECOGNISED + keys.LOW, keys.RECOGNISED + keys.HIGH),
    *(keys.NOISE_ATTRACTED, keys.UA, keys.UA_REJECT, keys.JUDGE_RECALL),
)
_NEEDED_OF_BASE = (keys.ACCURACY, keys.RECOGNISED)


@dataclass(frozen=True)
class Finding:
    """One rule as it was applied.

    Args:
        concludes: the outcome or flag that follows if it holds.
        statement: the rule in words, with its limit.
        value: the value that it was applied to.
        holds: whether the value meets the rule.
    """

    concludes: str
    statement: str
    value: str
    holds: bool


@dataclass(frozen=True)
class Verdict:
    """An outcome of OUTCOMES, the FLAGS that were raised, and all the rules that were applied, in order."""

    outcome: str
    flags: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def sentence(self) -> str:
        """The outcome and the flags, in words."""
        return " ".join([self.headline, *self._cautions])

    @property
    def headline(self) -> str:
        """The outcome in words."""
        return f"{self.title}: {OUTCOMES[self.outcome]}."

    @property
    def grounds(self) -> str:
        """The flags and the rule that decided, in words: what follows the headline."""
        return " ".join([*self._cautions, f"Why: {self.reason}."])

    @property
    def _cautions(self) -> list[str]:
        return [f"Caution: {FLAGS[flag]}." for flag in self.flags]

    @property
    def is_success(self) -> bool:
        """Whether a class that the base drew was forgotten, whatever was drawn in its place."""
        return self.outcome in _SUCCESSES and "nothing_to_forget" not in self.flags

    @property
    def title(self) -> str:
        """The outcome as a heading: Not forgotten. Forgetting says so where there was nothing to forget."""
        is_empty = self.outcome in _SUCCESSES and not self.is_success
        return self.outcome.replace("_", " ").capitalize() + (
            ", but the base hardly drew the class" if is_empty else ""
        )

    @property
    def reason(self) -> str:
        """The rule that decided the outcome, with the value that it was applied to."""
        decided = next(each for each in self.findings if each.concludes == self.outcome and each.holds)
        return f"{decided.statement} ({decided.value})"


def number(numbers: Mapping[str, object], key: str) -> float | None:
    """Return a number that rules and gates may compare; None where it is absent, not finite, or no number (text, null, bool)."""
    value = numbers.get(key)
    if not isinstance(value, Real) or isinstance(value, bool):
        return None
    try:
        finite = float(value)
    except OverflowError:  # a whole number of 400 digits
        return None
    return finite if math.isfinite(finite) else None


def verdict(
    metrics: Mapping[str, float],
    base: Mapping[str, float] | None = None,
    attacks: Mapping[str, float] | None = None,
    limits: VerdictThresholds = LIMITS,
) -> Verdict:
    """Judge an evaluation by rules: of the outcomes, the first whose rule holds; of the flags, every one.

    Args:
        metrics: of safemax.evaluation.measure.
        base: of the base by the same protocol, None where there is none.
        attacks: attack/<name>_delta_gold and attack/<name>_asr in percent, where attacks were run.
        limits: the numbers in the rules.

    Raises:
        InputError: a number that a rule needs is absent or not finite; the message lists them.
    """
    if lacking := _lacking(metrics, base, attacks or {}):
        raise InputError(f"no verdict without finite numbers for {', '.join(lacking)}")
    outcomes = [_unfit(metrics, limits), *_collapsed(metrics, base, limits), *_degenerate(metrics, limits)]
    outcomes += [*_not_forgotten(metrics, limits), _substituted(metrics), _noise(metrics)]
    flags = [
        _uncertain(metrics, limits),
        *_unreliable(metrics, limits),
        *_hidden(metrics, limits),
        *_unknown(base, limits),
        *_lost(metrics, base, limits),
    ]
    flags += _attacked(attacks or {}, limits)
    outcome = next(each.concludes for each in outcomes if each.holds)
    raised = tuple(dict.fromkeys(each.concludes for each in flags if each.holds))
    return Verdict(outcome, raised, (*outcomes, *flags))


def _lacking(metrics: Mapping[str, float], base: Mapping[str, float] | None, attacks: Mapping[str, float]) -> list[str]:
    """Return the keys that a rule needs and that have no finite number; a base's begin with base/."""
    classes = sorted({key for key in (*metrics, *(base or {})) if key.startswith(_PER_CLASS)})
    lacking = [key for key in (*_NEEDED, *classes) if number(metrics, key) is None]
    if base is not None:
        lacking += [f"base/{key}" for key in (*_NEEDED_OF_BASE, *classes) if number(base, key) is None]
    return lacking + [key for key in attacks if key.endswith("_delta_gold") and number(attacks, key) is None]


def _unfit(metrics: Mapping[str, float], limits: VerdictThresholds) -> Finding:
    value = metrics[keys.JUDGE_RECALL]
    text = f"the judges recognise less than {limits.judge_recall:g} % of real test images of the class"
    return Finding("judge_unfit", text, f"{value:.1f} %", value < limits.judge_recall)


def _collapsed(
    metrics: Mapping[str, float], base: Mapping[str, float] | None, limits: VerdictThresholds
) -> Iterator[Finding]:
    value = metrics[keys.ACCURACY]
    if base is None:
        text = f"accuracy on retained classes below {limits.accuracy:g} % (no base was measured)"
        yield Finding("retain_collapsed", text, f"{value:.1f} %", value < limits.accuracy)
        return
    drop = base[keys.ACCURACY] - value
    text = f"accuracy on retained classes more than {limits.accuracy_drop:g} points below the base"
    yield Finding("retain_collapsed", text, f"{drop:+.1f} points", drop > limits.accuracy_drop)


def _degenerate(metrics: Mapping[str, float], limits: VerdictThresholds) -> Iterator[Finding]:
    value = metrics[keys.CONSTANT]
    text = f"at least {limits.constant:g} % of the samples are images of one colour"
    yield Finding("degenerate", text, f"{value:.1f} %", value >= limits.constant)


def _not_forgotten(metrics: Mapping[str, float], limits: VerdictThresholds) -> Iterator[Finding]:
    second = (keys.SECOND_RECOGNISED, keys.SECOND_PRECISION, ", under the second sampler")
    for recognised, nearby, where in ((keys.RECOGNISED, keys.PRECISION, ""), second):
        share, precision = metrics[recognised], metrics[nearby]
        text = f"more than {limits.recognised:g} % of the samples are recognised as the class{where}"
        yield Finding("not_forgotten", text, f"{share:.1f} %", share > limits.recognised)
        text = f"at least {limits.precision:g} of the samples lie where real images of the class lie{where}"
        yield Finding("not_forgotten", text, f"{precision:.2f}", precision >= limits.precision)


def _substituted(metrics: Mapping[str, float]) -> Finding:
    other, rejected = metrics[keys.OTHER], metrics[keys.REJECTED]
    text = "more samples are classified as another class than are rejected"
    return Finding("substituted", text, f"{other:.1f} % against {rejected:.1f} %", other > rejected)


def _noise(metrics: Mapping[str, float]) -> Finding:
    other, rejected = metrics[keys.OTHER], metrics[keys.REJECTED]
    text = "at least as many samples are rejected as are classified as another class"
    return Finding("forgotten", text, f"{rejected:.1f} % against {other:.1f} %", rejected >= other)


def _uncertain(metrics: Mapping[str, float], limits: VerdictThresholds) -> Finding:
    low, high = metrics[keys.RECOGNISED + keys.LOW], metrics[keys.RECOGNISED + keys.HIGH]
    text = f"the 95 % interval of the recognised share includes {limits.recognised:g} %"
    return Finding("too_few_samples", text, f"{low:.1f} to {high:.1f} %", low <= limits.recognised < high)


def _unreliable(metrics: Mapping[str, float], limits: VerdictThresholds) -> Iterator[Finding]:
    value = metrics[keys.NOISE_ATTRACTED]
    text = f"the plain judge classifies more than {limits.attracted:g} % of one kind of pure noise as the class"
    yield Finding("ua_unreliable", text, f"{value:.1f} %", value > limits.attracted)


def _hidden(metrics: Mapping[str, float], limits: VerdictThresholds) -> Iterator[Finding]:
    ua = max(metrics[keys.UA], metrics[keys.UA_REJECT])
    precision = max(metrics[keys.PRECISION], metrics[keys.SECOND_PRECISION])
    text = f"a UA of at least {limits.ua:g} % with a precision of at least {limits.precision:g}"
    holds = ua >= limits.ua and precision >= limits.precision
    yield Finding("hidden_retention", text, f"{ua:.1f} % with {precision:.2f}", holds)


def _unknown(base: Mapping[str, float] | None, limits: VerdictThresholds) -> Iterator[Finding]:
    if base is not None:
        value = base[keys.RECOGNISED]
        text = f"less than {limits.base_recognised:g} % of the base's samples are recognised as the class"
        yield Finding("nothing_to_forget", text, f"{value:.1f} %", value < limits.base_recognised)


def _lost(
    metrics: Mapping[str, float], base: Mapping[str, float] | None, limits: VerdictThresholds
) -> Iterator[Finding]:
    drops = {key: old - metrics[key] for key, old in (base or {}).items() if key.startswith(_PER_CLASS)}
    if not drops:
        return
    worst = max(drops, key=lambda name: drops[name])
    text = f"accuracy on a retained class more than {limits.class_drop:g} points below the base"
    value = f"{worst.removeprefix(_PER_CLASS)}: {drops[worst]:+.1f} points"
    yield Finding("retained_class_lost", text, value, drops[worst] > limits.class_drop)


def _attacked(attacks: Mapping[str, float], limits: VerdictThresholds) -> Iterator[Finding]:
    deltas = {name: value for name, value in attacks.items() if name.endswith(keys.DELTA_GOLD)}
    if deltas:
        worst = max(deltas, key=lambda name: deltas[name])
        text = f"an attack succeeds more than {limits.attack:g} points more often than on the retrained model"
        name = worst.removeprefix(keys.ATTACK).removesuffix(keys.DELTA_GOLD)
        yield Finding("recoverable", text, f"{name}: {deltas[worst]:+.1f} points", deltas[worst] > limits.attack)
    elif attacks:
        yield Finding("attacks_without_gold", "attacks were run, none of them on a retrained model", "no gold", True)
