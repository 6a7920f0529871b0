"""The attacks of one examination, each run on the model, on its base and on a gold model."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace

from pipelines.correction.retrained import GoldOptions
from pipelines.engine.signals import StopSignal
from pipelines.examination.subject import Subject
from pipelines.registry import lineage
from safemax.attacks.base import Attack, Setting
from safemax.data.dataset import Dataset
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import FAST
from safemax.evaluation.attack_results import AttackComparison, cached_attack
from safemax.judges.attack_helper import attack_helper
from safemax.judges.config import JudgeConfig
from safemax.judges.load import Judges, judges
from safemax.judges.reference import reference
from safemax.metrics.retention import neighbours


@dataclass
class Clock:
    """Seconds by what they were spent on."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def time(self, what: str) -> Iterator[None]:
        """Add the time inside."""
        started = time.perf_counter()
        yield
        self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - started


@dataclass(frozen=True, eq=False)
class Models:
    """The model under attack, its base and the gold model, None where there is none."""

    model: Diffusion
    base: Diffusion | None
    gold: Diffusion | None

    @classmethod
    def load(cls, subject: Subject, model: Diffusion, gold: GoldOptions, stop: StopSignal, clock: Clock) -> Models:
        """Load the base and the gold model, which is trained if it must be."""
        base = lineage.load(subject.base, subject.dataset) if subject.base else None
        with clock.time("gold model"):
            retrained = gold.find(base or model, subject.base, subject.dataset, subject.classes.forget, stop)
        return cls(model, base, retrained)

    def present(self) -> dict[str, Diffusion]:
        """Return those that there are, by name."""
        every = {"model": self.model, "base": self.base, "gold": self.gold}
        return {name: each for name, each in every.items() if each is not None}


@dataclass(frozen=True)
class AttackSuite:
    """Attacks with their knobs.

    Args:
        attacks: by name.
        samples: images of each trial.
        seed: fixes the attacks.
    """

    attacks: Mapping[str, Attack]
    samples: int
    seed: int

    def validate(self, model: Diffusion) -> None:
        """Raise InputError where a model cannot be sampled as the attacks do; each is unguided where it must be."""
        replace(FAST, guidance_scale=1.0).validate(model)

    def run(self, models: Models, subject: Subject, judging: JudgeConfig, clock: Clock) -> dict[str, AttackComparison]:
        """Run each attack on each model, from the cache where the same attack was run before; return results by attack."""
        dataset, forget = subject.dataset, subject.classes.forget
        with clock.time("judges"):
            judge_set = judges(dataset, judging, device=str(models.model.device))
            setting = self.setting(dataset, forget, judging, judge_set, models.base)
        comparisons = {}
        for name, attack in self.attacks.items():
            results = {}
            for role, diffusion in models.present().items():
                print(f"{name} on {role} ...", flush=True)
                with clock.time(f"{name} on {role}"):
                    results[role] = cached_attack(name, attack, diffusion, setting, judges=judge_set.digest)
            comparisons[name] = AttackComparison(**results)
        return comparisons

    def setting(
        self, dataset: Dataset, forget: tuple[int, ...], judging: JudgeConfig, judge_set: Judges, base: Diffusion | None
    ) -> Setting:
        """Return what the attacker has.

        Args:
            dataset: the images.
            forget: labels to bring back.
            judging: of the judges.
            judge_set: the judges.
            base: the model before the correction, None where there is none.
        """
        helper = attack_helper(dataset, judging, judge_set)
        nearest = neighbours(reference(dataset, judge_set), forget)[0]
        return Setting(dataset, forget, judge_set.reject, helper, nearest, base, self.samples, self.seed)

    def changed_knobs(self) -> list[str]:
        """Return the knobs of these attacks that are not at their defaults, such as relearn_steps."""
        return [
            each.name for attack in self.attacks.values() for each in fields(attack)
            if each.init and getattr(attack, each.name) != getattr(type(attack)(), each.name)
        ]  # fmt: skip
