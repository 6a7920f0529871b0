"""The short operations that are broken off at every point, each with its start, its command, and what must hold afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import ViewType

from pipelines import tracking
from pipelines.cli.parser import _status
from pipelines.promote import promote
from pipelines.reap import reap
from pipelines.registry import aliases, attachments, model_versions, registration
from pipelines.rollback import rollback
from safemax.diffusion.model import Diffusion
from tests.support import tiny_models
from tests.support.registered_versions import NAME, attacked, evidence, register

ADDRESS = f"models:/{NAME}/1"
MODEL = [f"--model={NAME}", "--remeasure=false"]  # the evidence of these versions is invented


@dataclass(frozen=True)
class Operation:
    """An operation that is broken off.

    Args:
        prepare: makes the state before it.
        act: the command.
        is_done: whether its effect is there, all of it.
        is_new_each_time: whether the same command has another effect where that is there: a correction makes one more version.
    """

    prepare: Callable[[MlflowClient], object]
    act: Callable[[], object]
    is_done: Callable[[MlflowClient], bool]
    is_new_each_time: bool = False

    def run(self) -> int:
        """Run the command as its entry point does and return the exit status."""
        return _status(lambda _: self.act(), [])


def whole(client: MlflowClient) -> list[str]:
    """Return what is half in a store, a line each; [] where every version, alias, run and record is whole."""
    return [*_versions(client), *_aliases(client), *_runs(client)]


def settle(client: MlflowClient) -> list[str]:
    """Clean up as users do, with `reap`, and return what is left besides versions and runs that have ended."""
    reap([])
    experiments = [each.experiment_id for each in client.search_experiments(ViewType.ALL)]
    running = client.search_runs(experiments, "attributes.status = 'RUNNING'")
    used = {each.source for each in client.search_model_versions()}
    unused = [each for each in client.search_logged_models(experiments) if f"models:/{each.model_id}" not in used]
    lines = [f"run {each.info.run_name} is RUNNING" for each in running]
    return lines + [f"logged model {each.model_id} is neither registered nor removed" for each in unused]


def _versions(client: MlflowClient) -> list[str]:
    lines = []
    for each in client.search_model_versions():
        address = f"models:/{each.name}/{each.version}"
        weights = Diffusion.load(model_versions.resolve(address)).digest()
        if weights != each.tags.get(model_versions.WEIGHTS) or "forgotten" not in each.tags:
            lines.append(f"{address} lacks tags")
        if each.run_id is None or client.get_run(each.run_id).info.lifecycle_stage != "active":
            lines.append(f"{address} has no run")
        for kind in [key.removeprefix("evidence.") for key in each.tags if key.startswith("evidence.")]:
            attachments.attached(address, kind)
    return lines


def _aliases(client: MlflowClient) -> list[str]:
    lines = []
    for model in client.search_registered_models():
        numbers = {str(each.version) for each in client.search_model_versions(f"name='{model.name}'")}
        lines += [
            f"{alias} points to no version" for alias, number in model.aliases.items() if str(number) not in numbers
        ]
        champion = model_versions.aliased_number(model.name, "champion")
        history = aliases.promotion_history(aliases.recorded_moves(model.name, "champion"), champion)
        if champion is not None and history[-1:] != [champion]:
            lines.append(f"champion is {champion}, but the records say {history}")
    return lines


def _runs(client: MlflowClient) -> list[str]:
    lines = []
    for run in client.search_runs([each.experiment_id for each in client.search_experiments(ViewType.ALL)]):
        kind, title = run.data.tags.get("kind"), f"run {run.info.run_name}"
        if run.info.status == "FAILED" and "failure" not in run.data.tags:
            lines.append(f"{title} is FAILED without a reason")
        names = {each.path for each in client.list_artifacts(run.info.run_id)}
        if run.info.status == "FINISHED" and kind in ("promotion", "rollback") and "move.json" not in names:
            lines.append(f"{title} is FINISHED without the record of its move")
    return lines


def _run(client: MlflowClient) -> str:
    """Return the one run of the default experiment, which registers and attaches."""
    return client.search_runs(["0"], order_by=["attributes.start_time ASC"])[0].info.run_id


def _register() -> None:
    diffusion, run_id = tiny_models.diffusion(5), _run(tracking.store())
    facts = evidence(weights=diffusion.digest())
    registration.register(diffusion, NAME, run_id=run_id, evidence=facts, tags={}, description="two", alias="candidate")


def _is_registered(client: MlflowClient) -> bool:
    made = [each for each in client.search_model_versions(f"name='{NAME}'") if each.description == "two"]
    assert len(made) <= 1
    return bool(made) and model_versions.aliased_number(NAME, "candidate") == str(made[0].version)


def _first_run(client: MlflowClient) -> None:
    client.set_terminated(client.create_run("0").info.run_id, "FINISHED")


def _two_versions(client: MlflowClient) -> None:
    register(client, alias="candidate")
    promote([*MODEL, "--version=1"])
    register(client, 1, alias="candidate")


def _two_promotions(client: MlflowClient) -> None:
    _two_versions(client)
    promote(MODEL)


def _champion(number: str, name: str = NAME) -> Callable[[MlflowClient], bool]:
    return lambda _: model_versions.aliased_number(name, "champion") == number


def _attach() -> None:
    Path("attacks.json").write_text(json.dumps(attacked(0.0)))
    attachments.attach(ADDRESS, "attacks", _run(tracking.store()), "attacks.json")


def _leftovers(client: MlflowClient) -> None:
    """Leave what kills leave: a version, a logged model without one, an empty registered model, a run of a dead process."""
    register(client)
    dead = client.create_run("0", run_name="dead").info.run_id
    client.log_param(dead, tracking.PROCESS, tracking.this_process())
    client.create_logged_model("0", NAME, dead, tags={model_versions.WEIGHTS: "w"})
    client.create_registered_model("empty")


def _is_reaped(client: MlflowClient) -> bool:
    (dead,) = client.search_runs(["0"], "attributes.run_name = 'dead'")
    models = client.search_logged_models(["0"])
    names = [each.name for each in client.search_registered_models()]
    return (dead.info.status, len(models), names) == ("FAILED", 1, [NAME]) and "failure" in dead.data.tags


SHORT = {
    "register a first version": Operation(_first_run, _register, _is_registered),
    "register": Operation(register, _register, _is_registered),
    "promote": Operation(_two_versions, lambda: promote([*MODEL, "--why=better"]), _champion("2")),
    "promote to another model": Operation(
        _two_versions, lambda: promote([*MODEL, "--to=other-ddpm"]), _champion("1", "other-ddpm")
    ),
    "roll back": Operation(_two_promotions, lambda: rollback([f"--model={NAME}", "--expect=2"]), _champion("1")),
    "attach": Operation(register, _attach, lambda _: attachments.attached(ADDRESS, "attacks") is not None),
    "reap": Operation(_leftovers, lambda: reap([]), _is_reaped),
}
