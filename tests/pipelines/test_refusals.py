"""What cannot be done is refused before the first write: no experiment, no run, nothing in the cache or in the folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType

from hpo.contest.run import run as contest
from hpo.search import search
from pipelines.attack import attack
from pipelines.compare import compare
from pipelines.convert import convert
from pipelines.demo import demo
from pipelines.evaluate import evaluate
from pipelines.pretrain import pretrain
from pipelines.promote import promote
from pipelines.registry import registration
from pipelines.rollback import rollback
from pipelines.unlearn import unlearn
from safemax import metric_keys as keys
from safemax.errors import InputError
from tests.support import tiny_models

Command = Callable[[Sequence[str]], object]
CORRECTING = (unlearn, search, compare)
SHORT = "--model=short"  # a model of ten steps

REFUSED: list[tuple[Command, list[str], str]] = [
    *((each, ["--retain_samples=1"], "retain_samples = 1 is not allowed with 2 retained classes; 2 or more") for each in
      (unlearn, search, demo)),
    (unlearn, ["--forget=a,b", "--retain_samples=3"], "retain_samples = 3 is not allowed with 1 retained class; 4 or more"),
    (unlearn, ["--forget=a,b", "--second_samples=1"], "second_samples = 1 is not allowed with 2 classes to forget; 2"),
    (compare, ["--retain_samples=1"], "retain_samples = 1 is not allowed"),
    (contest, ["--classes=0", "--tune_classes=1", "--retain_samples=1"], "retain_samples = 1 is not allowed"),
    (evaluate, ["--model=models:/tiny-ddpm@base", "--forget=0", "--retain_samples=1"], "retain_samples = 1 is not allowed"),
    *((each, ["--forget_samples=3"], "forget_samples = 3 is not allowed") for each in (*CORRECTING, evaluate, demo, contest)),
    *((each, ["--forget=z"], "unknown class 'z'") for each in (unlearn, search, demo)),
    *((each, [SHORT], "the model has T = 10 diffusion steps") for each in CORRECTING),
    (evaluate, [SHORT, "--forget=0"], "the model has T = 10 diffusion steps"),
    (attack, [SHORT, "--forget=0"], "the model has T = 10 diffusion steps"),
    *((each, ["--model=absent"], "absent is not a folder") for each in CORRECTING),
    *((each, ["--forget_share=1"], "leaves no retain rows") for each in (unlearn, search, demo)),
    (compare, ["--methods=salun", "--overrides=salun.forget_share=1"], "leaves no retain rows"),
    (pretrain, ["--forget_share=0.5"], "forget_share = 0.5 is not allowed"),
    *((each, ["--device=cuda"], "device = cuda is not allowed") for each in (unlearn, search, demo, pretrain)),
    (pretrain, ["--architecture=short", "--size=16"], "the model has 3 classes of"),
    (contest, ["--architecture=short", "--classes=0", "--tune_classes=1"], "architecture = short is not allowed"),
    (contest, ["--classes=0", "--tune_classes=0"], "tune_classes has a"),
    (attack, ["--model=models:/tiny-ddpm@base", "--forget=0", "--gold=absent"], "absent is not a folder"),
    (evaluate, ["--model=models:/tiny-ddpm@base", "--forget=0", "--gold=absent"], "absent is not a folder"),
    (convert, ["--state_dict=absent.safetensors"], "absent.safetensors"),
    (promote, ["--model=tiny-ddpm"], "tiny-ddpm"),
    (rollback, ["--model=tiny-ddpm"], "points to no version"),
]  # fmt: skip


@pytest.fixture(scope="module")
def store(mlflow_module_store: MlflowClient) -> MlflowClient:
    """A store with a base of tiny data, beside which a model of ten steps lies."""
    tiny_models.write_images(Path("tiny"))
    tiny_models.diffusion(steps=10).save(Path("short"))
    diffusion, run_id = tiny_models.diffusion(), mlflow_module_store.create_run("0").info.run_id
    mlflow_module_store.set_terminated(run_id, "FINISHED")
    facts = {"forgotten": [], "model_digest": diffusion.digest(), "metrics": {keys.RUNTIME_MINUTES: 1.0}}
    registration.register(diffusion, "tiny-ddpm", run_id=run_id, evidence=facts, tags={}, description="", alias="base")
    return mlflow_module_store


def written(client: MlflowClient) -> tuple[list[str], list[str], list[str]]:
    """Return what a refusal must leave as it is: experiments, runs, and files below the working directory."""
    experiments = client.search_experiments(ViewType.ALL)
    runs = client.search_runs([each.experiment_id for each in experiments], run_view_type=ViewType.ALL)
    read = {*Path("cache").glob("tiny-*.safetensors"), *Path().glob("mlflow.db*")}  # the decoded images are kept
    files = [str(path) for path in Path().rglob("*") if path.is_file() and path not in read]
    return [each.name for each in experiments], [each.info.run_id for each in runs], sorted(files)


@pytest.mark.parametrize(("command", "argv", "words"), REFUSED)
def test_a_refusal_comes_before_the_first_write(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch, command: Command, argv: list[str], words: str
) -> None:
    monkeypatch.setenv("SAFEMAX_CACHE", str(Path("cache").absolute()))
    data = [] if command in (promote, rollback) else ["--data=tiny"]
    before = written(store)
    with pytest.raises(InputError, match=words) as refused:
        command([*data, *argv])
    assert "\n" not in str(refused.value)
    assert written(store) == before
