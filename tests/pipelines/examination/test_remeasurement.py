"""A promotion measures again: what an unchanged base claims is not believed, an honest correction is."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from pipelines import tracking
from pipelines.examination import remeasurement
from pipelines.examination.remeasurement import Draw, RemeasureOptions, remeasure
from pipelines.promote import promote
from pipelines.registry import aliases, model_versions, registration
from pipelines.registry.gates import Case
from safemax.data.batches import to_float
from safemax.data.dataset import Dataset
from safemax.data.sources import load
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError
from safemax.evaluation.measure import measure
from safemax.evaluation.protocol import Evaluation
from safemax.evaluation.samples import cached_samples
from safemax.judges.config import JudgeConfig
from safemax.judges.load import Judges, judges
from safemax.judges.reference import reference
from tests.support import promotion_program, ranks, tiny_models
from tests.support.registered_versions import NAME, evidence

pytestmark = pytest.mark.usefixtures("little_code")
JUDGING = JudgeConfig(judge_steps=120, reject_judges=1)
EVALUATION = Evaluation(forget_samples=200, retain_samples=40, second_samples=10, user_samples=0)


@dataclass(frozen=True)
class Trained:
    """A base that draws the three bright thirds, a correction of it that draws b for a, and the evidence of both."""

    data: Path
    dataset: Dataset
    judges: Judges
    base: Diffusion
    corrected: Diffusion
    metrics: dict[str, float]
    base_metrics: dict[str, float]

    def evidence(self, diffusion: Diffusion, metrics: dict[str, float], **changes: Any) -> dict[str, Any]:
        """Return what a correction that forgot class a would leave of a model that it measured so."""
        params = {"data.name": "thirds", "data.forget": "a", "data.digest": self.dataset.digest}
        params |= {f"eval.{key}": value for key, value in EVALUATION.describe().items()}
        return {
            "forgotten": ["a"], "metrics": metrics, "base_metrics": self.base_metrics, "parameters": params,
            "judging": asdict(JUDGING), "parent": f"models:/{NAME}/1", "parent_digest": self.base.digest(),
            "model_digest": diffusion.digest(), "data_digest": self.dataset.digest,
            "judges_digest": self.judges.digest, **changes,
        }  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    folder = tmp_path_factory.mktemp("trained")
    for kind, split in (("train", tiny_models.split(120, 0)), ("test", tiny_models.split(60, 1))):
        for i, (image, label) in enumerate(zip(split.images, split.labels.tolist(), strict=True)):
            place = folder / "thirds" / kind / "abc"[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).save(place / f"{i}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAFEMAX_CACHE", str(folder / "cache"))
        dataset = load(str(folder / "thirds"))
        networks = judges(dataset, JUDGING, progress=False)
        base = _trained(dataset)
        corrected = copy.deepcopy(base)
        with torch.no_grad():  # asked for a, it draws b
            embedding = corrected.denoiser.class_embedding.weight
            embedding[0] = embedding[1]
        real = reference(dataset, networks)
        metrics, base_metrics = (
            measure(cached_samples(each, (0,), EVALUATION, progress=False), networks, real, (0,))
            for each in (corrected, base)
        )
        yield Trained(folder / "thirds", dataset, networks, base, corrected, metrics, base_metrics)


def _trained(dataset: Dataset) -> Diffusion:
    diffusion = tiny_models.diffusion()
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=4e-3)
    torch.manual_seed(0)
    for _ in range(400):
        rows = torch.randint(len(dataset.train.labels), (48,))
        loss = diffusion.denoising_loss(to_float(dataset.train.images[rows]), dataset.train.labels[rows], null_drop=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return diffusion.eval()


def register(client: MlflowClient, diffusion: Diffusion, facts: dict[str, Any], name: str = NAME) -> str:
    run_id = client.create_run("0").info.run_id
    client.set_terminated(run_id, "FINISHED")
    return registration.register(diffusion, name, run_id=run_id, evidence=facts, tags={}, description="", alias=None)


@pytest.fixture
def store(mlflow_store: MlflowClient, trained: Trained) -> MlflowClient:
    """A store whose version 1 is the base."""
    register(mlflow_store, trained.base, {"forgotten": [], "metrics": {}, "model_digest": trained.base.digest()})
    return mlflow_store


def test_an_honest_correction_is_measured_again_and_passes(
    store: MlflowClient, trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    register(store, trained.corrected, trained.evidence(trained.corrected, trained.metrics))
    promote([f"--model={NAME}", "--version=2", f"--data={trained.data}"])
    printed = capsys.readouterr().out
    # 100 of a, 20 of each of two retained classes, 20 steps, guided: 140 x 20 x 2
    assert "5,600 denoiser steps" in printed.split("models:/tiny-ddpm/2, compared")[0]
    assert "The judges are those of the evidence, with the same weights." in printed
    assert "Not measured again, but taken from the evidence: the base's numbers" in printed
    (move,) = aliases.recorded_moves(NAME, "champion")
    record = json.loads(store.get_model_version(NAME, "2").tags["moved.champion"])
    assert move["to"] == "2"
    assert re.search(r"measured again, a \d+ of 100 recognised, at least \d", record["gates"]), record["gates"]
    assert "judges know a 100 % of real images" in record["gates"]


def test_two_processes_measure_again_and_one_of_them_promotes(
    store: MlflowClient, trained: Trained, tmp_path: Path
) -> None:
    register(store, trained.corrected, trained.evidence(trained.corrected, trained.metrics))
    argv = [f"--model={NAME}", "--version=2", f"--data={trained.data}"]
    ranks.answers(  # rank 1 ends where rank 0 led it
        promotion_program.promote, tmp_path / "ranks", argv=argv, environment=dict(os.environ), place=os.getcwd()
    )
    (move,) = aliases.recorded_moves(NAME, "champion")
    assert move["to"] == "2"
    experiment = store.get_experiment_by_name(tracking.ADMINISTRATION)
    assert experiment is not None
    (run,) = store.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert "5,600 denoiser steps" in run.data.tags["mlflow.note.content"]


def test_the_forged_base_is_refused(store: MlflowClient, trained: Trained) -> None:
    invented = trained.evidence(trained.base, trained.metrics, parent_digest="of a parent that is not there")
    register(store, trained.base, invented)
    with pytest.raises(InputError, match="refused by: weights differ from parent's;"):
        promote([f"--model={NAME}", "--version=2", "--remeasure=false"])
    register(store, trained.base, {**invented, "parent": "models:/elsewhere/1"}, "elsewhere-ddpm")
    with pytest.raises(InputError, match="refused by: measured again, a;"):
        promote(["--model=elsewhere-ddpm", "--version=1", f"--data={trained.data}"])
    assert model_versions.aliased_number("elsewhere-ddpm", "champion") is None


def test_a_model_that_lost_what_its_evidence_says_it_retains_is_refused(store: MlflowClient, trained: Trained) -> None:
    broken = copy.deepcopy(trained.corrected)
    with torch.no_grad():
        broken.denoiser.class_embedding.weight[2] = broken.denoiser.class_embedding.weight[1]  # asked for c, it draws b
    register(store, broken, trained.evidence(broken, trained.metrics))
    with pytest.raises(InputError, match=r"refused by: measured again, retained; measured again, c \(retained\);"):
        promote([f"--model={NAME}", "--version=2", f"--data={trained.data}"])


def test_judges_that_do_not_know_the_class_prove_nothing(store: MlflowClient, trained: Trained) -> None:
    weak = {"judging": asdict(JudgeConfig(judge_steps=1, reject_judges=1)), "parent": "models:/elsewhere/1"}
    register(store, trained.base, trained.evidence(trained.base, trained.metrics, parent_digest="x", **weak), "weak")
    with pytest.raises(InputError, match="refused by: .*judges know a"):
        promote(["--model=weak", "--version=1", f"--data={trained.data}"])


def test_what_the_evidence_does_not_record_and_data_that_are_not_at_hand_refuse_in_one_line(
    trained: Trained, tmp_path: Path
) -> None:
    whole = trained.evidence(trained.corrected, trained.metrics)
    params = whole["parameters"]
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({}, "auto", "data = auto: the evidence names data 'thirds'; give data=FOLDER"),
        ({}, str(tmp_path / "nowhere"), "the data to measure again are not available"),
        ({}, "digits", "data = digits is not the data that the version was corrected with: digest"),
        ({"data_digest": None}, "", "is not the data that the version was corrected with"),
        ({"judging": None}, "", "does not record its judges"),
        ({"judging": {"judge": 1}}, "", "records judges that this version does not know"),
        ({"judging": {"trick": "x"}}, "", "records judges that this version does not know"),
        ({"parameters": {**params, "eval.sampler": "euler-20-g1-clip"}}, "", "records no known sampler"),
        ({"parameters": {**params, "eval.sampler": "ddim-0-g1-clip"}}, "", "no sampler that can be used: steps = 0"),
        ({"parameters": {**params, "eval.sampler": "ddim-20-g1e9-clip"}}, "", "guidance_scale"),
        ({"parameters": {**params, "eval.sampler": None}}, "", "does not record eval.sampler"),
        ({"forgotten": ["a", "dog"], "earlier": {"dog": {"recognised_high": 0.1, "second_recognised": 0.0}},
          "root_metrics": trained.base_metrics}, "", "names the class 'dog'; the model has a, b, c"),
    ]  # fmt: skip
    for changes, data, words in cases:
        case = Case({**whole, **changes}, trained.corrected.digest(), classes=("a", "b", "c"))
        with pytest.raises(InputError, match=words) as refusal:
            remeasure(case, trained.corrected, RemeasureOptions(data=data or str(trained.data)))
        assert "\n" not in str(refusal.value)
        assert "remeasure=false" in str(refusal.value) or "dog" in words


@pytest.mark.parametrize(
    "sampler", ["ddim-20-g1.5-clip", "ddpm-1000-g3-noclip", "dpmpp-7-g1-clip", "ddim-1000-eta0.5-g20-clip"]
)
@pytest.mark.parametrize("earlier", [(), ("b",)])
def test_what_is_drawn_is_bounded_by_the_fast_panel_and_seeds_are_fresh(sampler: str, earlier: tuple[str, ...]) -> None:
    facts = evidence(earlier=earlier)
    facts["parameters"]["eval.sampler"] = sampler
    draw, again = (Draw.of(tiny_models.diffusion(), facts) for _ in range(2))
    assert str(draw.sampler) == sampler
    assert draw.cost <= remeasurement.BUDGET
    assert len(draw.labels) * draw.sampler.steps <= draw.cost
    assert (len(draw.groups), draw.retained) == (1 + len(earlier), (1, 2) if not earlier else (2,))
    assert draw.counts[0] >= 10
    assert draw.seed != again.seed
