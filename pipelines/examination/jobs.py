"""The jobs of examinations: a gold model, a measurement, an attack; what they make stays in the cache.

A worker needs no MLflow: models come to it as folders, and the process that examines a version finds all that takes long there.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from pipelines.cli.options import DataOptions
from pipelines.correction.retrained import GoldRecipe
from pipelines.engine.signals import StopSignal
from pipelines.engine.worker import Message, Send
from pipelines.examination.attack_suite import AttackSuite
from pipelines.examination.evaluation import Evaluator
from pipelines.examination.subject import Subject
from pipelines.registry import lineage
from safemax import attacks
from safemax.data.class_split import ClassSplit
from safemax.diffusion.model import Diffusion
from safemax.evaluation.attack_results import cached_attack
from safemax.evaluation.protocol import Evaluation
from safemax.judges.config import JudgeConfig
from safemax.judges.load import Judges, judges
from safemax.training.devices import accelerator_for
from safemax.training.settings import Training

GOLD, MEASURE, ATTACK = "gold", "measure", "attack"


@dataclass(frozen=True)
class ExaminationConfig:
    """What all jobs share: plain JSON.

    Args:
        data: fields of pipelines.cli.options.DataOptions.
        judging: of safemax.judges.config.JudgeConfig.
    """

    data: dict[str, Any]
    judging: dict[str, Any]


class ExaminationContext:
    """What a process loads once to do jobs with: data and judges; it makes what the cache lacks."""

    def __init__(self, config: ExaminationConfig, stop: StopSignal) -> None:
        self.stop, self.judging = stop, JudgeConfig(**config.judging)
        self.dataset = DataOptions(**config.data).load(quiet=True)
        with stop.interruptible():
            self.judges = judges(self.dataset, self.judging, device=str(accelerator_for(Training()).device))

    @property
    def greeting(self) -> Message:
        """Nothing: the driver needs only know that the context is loaded."""
        return {}

    def do(self, job: Message, send: Send) -> Message:
        """Do a job and return its seconds, and of a measurement the metrics.

        Args:
            job: kind and forget (labels); of gold template (a folder) and recipe (fields of a GoldRecipe); of measure model and
                gold (folders, "" for none), forgotten (names) and evaluation (fields); of attack name, knobs, model and base
                (folders), samples and seed.
            send: not used.
        """
        started = time.perf_counter()
        do = {GOLD: self._gold, MEASURE: self._measure, ATTACK: self._attack}[job["kind"]]
        return {**do(job, tuple(job["forget"])), "seconds": time.perf_counter() - started}

    def _gold(self, job: Message, forget: tuple[int, ...]) -> Message:
        recipe = GoldRecipe(**{**job["recipe"], "training": Training(**job["recipe"]["training"])})
        recipe.make(self._model(job["template"]), self.dataset, forget, self.stop)
        return {}

    def _measure(self, job: Message, forget: tuple[int, ...]) -> Message:
        classes = ClassSplit.of(self.dataset.class_names, forget, job["forgotten"])
        subject = Subject(job["model"], None, self.dataset, classes, experiment="")
        gold = self._model(job["gold"]) if job["gold"] else None
        evaluator = Evaluator(subject, Evaluation(**job["evaluation"]), self.judges, gold)
        with self.stop.interruptible():
            measured = evaluator.measure(job["model"], self._model(job["model"]))
        return {"metrics": measured.metrics, "judges": named(self.judges)}

    def _attack(self, job: Message, forget: tuple[int, ...]) -> Message:
        attack = attacks.find(job["name"])(**job["knobs"])
        suite = AttackSuite({job["name"]: attack}, job["samples"], job["seed"])
        base = self._model(job["base"]) if job["base"] else None
        with self.stop.interruptible():
            setting = suite.setting(self.dataset, forget, self.judging, self.judges, base)
            cached_attack(job["name"], attack, self._model(job["model"]), setting, judges=self.judges.digest)
        return {}

    def _model(self, folder: str) -> Diffusion:
        return lineage.load(folder, self.dataset)


def named(judges: Judges) -> Message:
    """Return which judges these are, as JSON."""
    return {"digest": judges.digest, "inception": judges.inception is not None}


def load(config: Message, stop: StopSignal) -> ExaminationContext:
    """Return the context of a worker."""
    return ExaminationContext(ExaminationConfig(**config), stop)
