"""The long operations that are broken off at every point: a correction, a search and a comparison, at their smallest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from hpo import search, space
from hpo.config import SearchConfig, SearchOptions
from hpo.trial import TrialContext
from pipelines import compare, tracking
from pipelines.cli.options import DataOptions
from pipelines.comparison.child_runs import KIND
from pipelines.correction.correct import correct
from pipelines.correction.correction import Correction
from pipelines.engine.signals import StopSignal
from pipelines.registry import registration
from safemax.evaluation.protocol import Evaluation
from safemax.judges.config import JudgeConfig
from safemax.methods import create
from safemax.training.settings import Training
from tests.faults.operations import Operation
from tests.support import tiny_models
from tests.support.registered_versions import NAME

BASE = f"models:/{NAME}/1"
_EVALUATION = Evaluation(
    protocol="custom", sampler_steps=2, forget_samples=6, retain_samples=6, second_samples=5, user_samples=0
)
_JUDGING = JudgeConfig(judge_steps=5, reject_judges=1)
_DATA = "data"  # a folder of images, in the working directory
_COMPARED = [
    *(f"--data={_DATA}", f"--model={BASE}", f"--name={NAME}", "--classes=a", "--steps=2", "--batch-size=8"),
    *("--gold-steps=2", "--device=cpu", "--protocol=custom", "--sampler-steps=2"),
    *("--forget-samples=6", "--retain-samples=6", "--second-samples=5", "--user-samples=0"),
    *("--judge-steps=5", "--reject-judges=1"),
]


def prepare_base(client: MlflowClient) -> None:
    """Register a base and write the images that it would have been trained on."""
    facts: dict[str, object] = {"forgotten": [], "metrics": {}}
    run_id = client.create_run("0").info.run_id
    client.set_terminated(run_id, "FINISHED")
    registration.register(
        tiny_models.diffusion(), NAME, run_id=run_id, evidence=facts, tags={}, description="", alias="base"
    )
    tiny_models.write_images(Path(_DATA))


def _correction(seed: int) -> Correction:
    training = Training(steps=2, batch_size=8, device="cpu", seed=seed)
    method = create("safemax")
    return Correction(
        tiny_models.dataset(), (0,), BASE, NAME, "safemax", method, training, _EVALUATION, _JUDGING, previews=0
    )


def _base_and_judges(client: MlflowClient) -> None:
    """Register a base and a correction of it: with that, the judges and the base's samples are in the cache."""
    prepare_base(client)
    correct(_correction(0), StopSignal())


def _is_corrected(client: MlflowClient) -> bool:
    """Return whether the second correction is the candidate, a finished run says so, and no checkpoint is left.

    Killed between the version and its run's end, the same command takes that version for its own and makes no other.
    """
    made = client.search_model_versions(f"name='{NAME}'")
    assert len(made) <= 3
    assert all("forget/ua" in client.get_run(str(each.run_id)).data.metrics for each in made if int(each.version) > 1)
    return (
        int(client.get_model_version_by_alias(NAME, "candidate").version) == 3
        and _has_finished(client, "correction", f"tags.version = 'models:/{NAME}/3'")
        and not any(each.is_file() for each in Path("cache/checkpoints").rglob("*"))
    )


def _search() -> SearchConfig:
    options = replace(SearchOptions(), trials=2, accuracy_drop=100.0, final_samples=2, prune=False)
    method, training = create("safemax"), Training(steps=2, batch_size=8, device="cpu")
    data, ranges = DataOptions(data=_DATA), space.read("auto", method, training, ("steps", "retain_weight"))
    dataset = data.load(quiet=True)
    return SearchConfig(
        options, data, dataset, (0,), BASE, NAME, "safemax", method, training, _EVALUATION, _JUDGING, ranges
    )


def _base_and_context(client: MlflowClient) -> None:
    prepare_base(client)
    TrialContext(_search().trial_config(), StopSignal())


def _is_searched(client: MlflowClient) -> bool:
    """Return whether a finished run has the trials, each finished with its metrics, and the one version of the search."""
    made = client.search_model_versions(f"name='{NAME}'")
    assert len(made) <= 2
    trials = _runs(client, "tags.`trial.state` = 'complete' and attributes.status = 'FINISHED'")
    assert all("forget/ua" in each.data.metrics and "search/quality" in each.data.metrics for each in trials)
    searched = _runs(client, "tags.kind = 'search' and attributes.status = 'FINISHED'")
    return (
        len(made) == 2
        and {each.data.tags["search.trial"] for each in trials} == {"0", "1"}
        and bool(searched)
        and {each.data.tags["mlflow.parentRunId"] for each in trials} == {searched[-1].info.run_id}
    )


def _base_and_caches(client: MlflowClient) -> None:
    """Register a base and let a comparison of another method make what all comparisons share."""
    prepare_base(client)
    compare.compare([*_COMPARED, "--methods=finetune", "--gold=false"])


def _is_compared(client: MlflowClient) -> bool:
    """Return whether a finished run has the tables and both children, which have finished with their metrics."""
    assert len(client.search_model_versions(f"name='{NAME}'")) == 1
    children = _runs(client, f"tags.kind = '{KIND}' and attributes.status = 'FINISHED'")
    assert all("forget/ua" in each.data.metrics for each in children)
    compared = _runs(client, "tags.`comparison.methods` = 'safemax' and attributes.status = 'FINISHED'")
    files = {each.path for run in compared[-1:] for each in client.list_artifacts(run.info.run_id, "comparison")}
    variants = {each.data.tags["comparison.variant"] for each in children}
    return {"gold", "safemax"} <= variants and "comparison/comparison.md" in files


def _has_finished(client: MlflowClient, kind: str, condition: str) -> bool:
    return bool(_runs(client, f"tags.kind = '{kind}' and attributes.status = 'FINISHED' and {condition}"))


def _runs(client: MlflowClient, condition: str) -> list[Run]:
    """Return the runs of a condition, the oldest first."""
    experiments = [each.experiment_id for each in client.search_experiments()]
    return tracking.search_all(client.search_runs, experiments, condition, order_by=["attributes.start_time ASC"])


LONG = {
    "correct": Operation(_base_and_judges, lambda: correct(_correction(1), StopSignal()), _is_corrected, True),
    "search": Operation(_base_and_context, lambda: search.run(_search(), StopSignal()), _is_searched),
    "compare": Operation(_base_and_caches, lambda: compare.compare([*_COMPARED, "--methods=safemax"]), _is_compared),
}
