"""What panel and attacks say together of models that are no honest correction, on real digits: minutes, hence slow."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from benchmarks.corrections import base_of
from benchmarks.examine import trained
from pipelines.correction.base_model import BaseTraining, NetworkOptions
from safemax import attacks
from safemax import metric_keys as keys
from safemax.attacks.base import Setting
from safemax.data.dataset import Dataset
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import FAST, sample
from safemax.evaluation.attack_results import AttackComparison, attack_metrics, cached_attack
from safemax.evaluation.measure import measure
from safemax.evaluation.protocol import Evaluation
from safemax.evaluation.samples import cached_samples
from safemax.evaluation.verdict import Verdict, verdict
from safemax.judges.config import JudgeConfig
from safemax.judges.load import judges
from safemax.judges.reference import reference
from safemax.methods.gradient_ascent import GradientAscent
from safemax.methods.retrain import Retrain
from safemax.methods.safemax import SAFEMax
from safemax.metrics.retention import neighbours
from safemax.training.hooks import Hooks
from safemax.training.method import Method
from safemax.training.settings import Training
from safemax.training.trainer import Trainer
from tests.support import real_data

pytestmark = pytest.mark.slow

FORGET, OTHER = 8, 3  # the class that takes noise, where plain UA misleads; and another, forgotten by mistake
PANEL = Evaluation(forget_samples=200, retain_samples=30, second_samples=60)


@dataclass
class Bench:
    """The models that all cases share, and how a case is judged."""

    dataset: Dataset
    base: Diffusion
    gold: Diffusion

    def __post_init__(self) -> None:
        self.judges = judges(self.dataset, JudgeConfig(), progress=False)
        self.real = reference(self.dataset, self.judges)
        self.before = self.measure(self.base)
        near = neighbours(self.real, (FORGET,))[0]
        self.setting = Setting(self.dataset, (FORGET,), self.judges.reject, self.judges.plain, near, self.base)

    def measure(self, diffusion: Diffusion) -> dict[str, float]:
        samples = cached_samples(diffusion, (FORGET,), PANEL, progress=False)
        return measure(samples, self.judges, self.real, (FORGET,))

    def verdict(self, diffusion: Diffusion, names: tuple[str, ...] = ()) -> tuple[Verdict, dict[str, float]]:
        results = {name: AttackComparison(**self.attacked(name, diffusion)) for name in names}
        found = attack_metrics(results) if results else {}
        return verdict(self.measure(diffusion), self.before, found), found

    def attacked(self, name: str, diffusion: Diffusion) -> dict[str, attacks.base.AttackResult]:
        weapon, three = attacks.find(name)(), {"model": diffusion, "base": self.base, "gold": self.gold}
        return {
            who: cached_attack(name, weapon, m, self.setting, judges=self.judges.digest) for who, m in three.items()
        }

    def corrected(self, method: Method, steps: int, forget: int = FORGET, lr: float = 1e-4) -> Diffusion:
        training = Training(steps=steps, lr=lr, device="cpu", checkpoint_every=0)
        return trained(copy.deepcopy(self.base), method, self.dataset, forget, training)

    def recognised(self, diffusion: Diffusion) -> float:
        drawn = sample(diffusion, torch.full((100,), FORGET), FAST, seed=5)
        return 100 * attacks.base.recognised(drawn, self.judges.reject, (FORGET,)).double().mean().item()

    def relabelled(self, row: Callable[[torch.Tensor], torch.Tensor]) -> Diffusion:
        """Return the base with nothing but the forgotten label's embedding changed."""
        diffusion = copy.deepcopy(self.base)
        rows = diffusion.denoiser.class_embedding.weight.data
        rows[FORGET] = row(rows)
        return diffusion


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with pytest.MonkeyPatch.context() as patch:
        if "SAFEMAX_CACHE" not in os.environ:
            patch.setenv("SAFEMAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        dataset, as_base = real_data.digits(), BaseTraining(device="cpu")
        untrained = NetworkOptions().create(dataset, as_base.seed)
        yield Bench(dataset, base_of(dataset), trained(untrained, Retrain(), dataset, FORGET, as_base))


def test_an_honest_correction_is_forgotten_and_no_attack_goes_far_beyond_gold(bench):
    found, rates = bench.verdict(bench.corrected(SAFEMax(), 300), tuple(attacks.available()))
    assert found.outcome == "forgotten"
    assert found.flags == ("ua_unreliable",)
    assert rates[keys.WORST_DELTA] < 20


def test_the_untouched_base_is_not_forgotten_and_recoverable(bench):
    found, _ = bench.verdict(bench.base, ("invert",))
    assert found.outcome == "not_forgotten"
    assert "recoverable" in found.flags


@pytest.mark.parametrize(
    "row",
    [lambda rows: torch.zeros_like(rows[0]), lambda rows: rows[10], lambda rows: rows[OTHER]],
    ids=["to zero", "to the null label's", "to another class's"],
)
def test_an_emptied_label_embedding_is_recoverable_whatever_the_panel_says(bench, row):
    found, rates = bench.verdict(bench.relabelled(row), ("invert",))
    assert "recoverable" in found.flags
    assert rates["attack/invert_asr"] > 80


def test_a_wrong_class_forgotten_is_not_forgotten_and_names_the_lost_class(bench):
    found, _ = bench.verdict(bench.corrected(SAFEMax(), 300, forget=OTHER))
    assert found.outcome == "not_forgotten"
    assert "retained_class_lost" in found.flags
    assert any(each.holds and each.value.startswith(f"{OTHER}:") for each in found.findings)


def test_a_correction_stopped_between_10_and_50_percent_is_not_forgotten(bench):
    diffusion, stopped = copy.deepcopy(bench.base), []

    def stop(step: int) -> None:
        if step >= 10 and step % 2 == 0 and not stopped and 10 <= bench.recognised(diffusion) <= 50:
            stopped.append(copy.deepcopy(diffusion))

    Trainer(
        diffusion,
        SAFEMax(),
        bench.dataset.train,
        (FORGET,),
        Training(steps=60, checkpoint_every=0),
        hooks=Hooks(on_step_end=stop, progress=False),
    ).fit()
    found, _ = bench.verdict(stopped[0])
    assert found.outcome == "not_forgotten"
    assert "retained_class_lost" not in found.flags  # which tells it from a wrong class forgotten


def test_a_collapsed_model_is_a_collapse_although_nothing_of_the_class_is_recognised(bench):
    diffusion = bench.corrected(GradientAscent(), 60, lr=1e-3)
    assert bench.measure(diffusion)[keys.RECOGNISED] < 5
    assert bench.verdict(diffusion)[0].outcome == "retain_collapsed"


def test_the_base_saved_and_loaded_is_attacked_as_the_base_itself(bench, tmp_path):
    bench.base.save(tmp_path / "base")
    again = Diffusion.load(Path(tmp_path / "base"))
    own, loaded = (bench.attacked("invert", each)["model"] for each in (bench.base, again))
    assert own.cells == loaded.cells
