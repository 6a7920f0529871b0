"""Every kind of file and tag that the product reads, each made at the smallest size, and what reads it."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import torch
from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from hpo import storage
from pipelines import tracking
from pipelines.correction import retrained
from pipelines.reap import reap
from pipelines.registry import (
    aliases,
    attachments,
    gates,
    lineage,
    model_versions,
    thresholds,
    version_table,
)
from pipelines.tracking.metric_journal import MetricJournal
from safemax.attacks.weights import Weights
from safemax.data import sources
from safemax.data.dataset import load_cached, save_cached
from safemax.diffusion.model import Diffusion
from safemax.evaluation.attack_results import cached_attack
from safemax.judges import load
from safemax.judges.classifier import Judge
from safemax.judges.files import load_judge, save
from safemax.methods.finetune import Finetune
from safemax.storage import cache, checkpoint, manifest
from safemax.training.hooks import Folders
from safemax.training.settings import Training
from safemax.training.trainer import Trainer
from tests.faults.damage import damaged_json, damaged_tensors, damaged_value, replace_by_damage
from tests.support import attack_settings, tiny_models
from tests.support.registered_versions import NAME, attacked, evidence, register

ADDRESS = f"models:/{NAME}/1"


@dataclass(frozen=True)
class Reader:
    """A kind of input.

    Args:
        make: writes it into the working directory, whole.
        read: reads it as the product does; what it returns says what was read.
        guarded: whether a digest guards it: then no damage may be read as something else than None.
        damage: damages it, and returns what takes that back; by default it damages a file of the folder `input`.
    """

    make: Callable[[], object]
    read: Callable[[], Any]
    guarded: bool = False
    damage: Callable[[random.Random], Callable[[], object] | None] | None = None

    def spoil(self, chance: random.Random) -> Callable[[], object] | None:
        """Damage the input; return what takes that back where it is not a file of the folder `input`."""
        if self.damage is not None:
            return self.damage(chance)
        files = sorted(path for path in INPUT.rglob("*") if path.is_file())
        replace_by_damage(chance.choice(files), chance)
        return None


INPUT = Path("input")


def _trainer() -> Trainer:
    training = Training(steps=2, batch_size=8, device="cpu", forget_share=0.0, ema=0.5)
    return Trainer(
        tiny_models.diffusion(), Finetune(null_drop=0.1), tiny_models.split(), (), training,
        hooks=tiny_models.SILENT, folders=Folders(INPUT),
    )  # fmt: skip


def _make_checkpoint() -> None:
    """Leave the checkpoint of a run that was stopped after its first step of two."""
    trainer = _trainer()
    trainer.prepare()
    trainer.step()
    trainer._save(wait=True)


def _resume() -> int:
    """Take the step that is left: what does not fit must be found before it."""
    trainer = _trainer()
    trainer.prepare()
    trainer.step()
    return trainer.done


def _newest() -> list[Any] | None:
    saved = checkpoint.newest(INPUT)
    return None if saved is None else [saved.step, cache.tensors_digest(saved.tensors), saved.about]


def _other_tensors(chance: random.Random) -> None:
    """Leave a checkpoint whose digest is right and whose tensors are of another model or method."""
    (path,) = INPUT.glob("*.safetensors")
    content = damaged_tensors(path.read_bytes(), chance)
    path.unlink()
    (INPUT / f"step-00000001-{hashlib.sha256(content).hexdigest()}.safetensors").write_bytes(content)


def _make_folder() -> None:
    tiny_models.diffusion().save(INPUT)
    manifest.write(INPUT)


def _make_dataset() -> None:
    save_cached(tiny_models.dataset(), INPUT / "data.safetensors")


def _dataset() -> str | None:
    read = load_cached(INPUT / "data.safetensors", "tiny")
    return None if read is None else read.digest


def _make_judge() -> None:
    torch.manual_seed(0)
    save(Judge("small", ("a", "b", "c"), (1, 8, 8)), INPUT)


def _attacked() -> list[Any]:
    """Attack, or read from the cache how an attack ended."""
    os.environ["SAFEMAX_CACHE"] = str(INPUT)
    setting = attack_settings.setting()
    result = cached_attack("weights", Weights(), tiny_models.diffusion(), setting, judges="j")
    return [result.success, result.numbers, [asdict(each) for each in result.cells]]


def _judge_facts() -> dict[str, Any]:
    """Measure a judge, or read from the cache what was measured of it."""
    os.environ["SAFEMAX_CACHE"] = str(INPUT)
    return load._about(attack_settings.judge(reject=True), tiny_models.dataset())


def _read_judge() -> str:
    return cache.tensors_digest(load_judge(INPUT, class_names=("a", "b", "c")).state_dict())


def _make_metrics() -> None:
    journal = MetricJournal(INPUT)
    for step in range(1, 9):
        journal.append([Metric("loss/forget", 1 / step, 1000 + step, step), Metric("loss/retain", 0.5, 1000, step)])


def _read_metrics() -> None:
    with tracking.run("resumed", experiment="x", params={}, tags={}) as run:
        run.start_journal(INPUT)
        run.log({"loss/forget": 0.1}, 9)


def _make_study() -> None:
    with storage.opened("input/s.journal", "s", Path("unused")) as store:
        study = optuna.create_study(storage=store.storage, study_name="s", directions=["minimize", "minimize"])
        for number in range(3):
            trial = study.ask()
            trial.suggest_float("lr", 0, 1)
            trial.set_user_attr("scores", {"forgetting": 0.5})
            study.tell(trial, [number, -number])


def _read_study() -> int:
    with storage.opened("input/s.journal", "s", Path("unused")) as store:
        return len(optuna.load_study(storage=store.storage, study_name="s").trials)


def _make_gates() -> None:
    INPUT.mkdir()
    (INPUT / "gates.yaml").write_text(thresholds.DEFAULT.read_text())
    (INPUT / "gates.json").write_text('{"recognised_high": 5, "verdict": ["forgotten"], "evidence": "panel"}')


def _read_gates() -> None:
    for path in sorted(INPUT.iterdir()):
        thresholds.read(path)


def _make_evidence() -> None:
    INPUT.mkdir()
    facts = {"evidence": evidence(), "champion": evidence(weights="v"), "attacks": attacked(0.0)}
    (INPUT / "case.json").write_text(json.dumps(facts))


def _read_evidence() -> list[str]:
    facts = json.loads((INPUT / "case.json").read_text())
    case = gates.Case(facts["evidence"], "w", facts["champion"], facts["attacks"])
    return gates.refusals(gates.judge(case, thresholds.read()))


def _damage_evidence(chance: random.Random) -> None:
    facts = json.loads((INPUT / "case.json").read_text())
    part = chance.choice(sorted(facts))
    changed = damaged_value(facts[part], chance)
    (INPUT / "case.json").write_text(json.dumps({**facts, part: changed if isinstance(changed, dict) else {}}))


def _make_version() -> None:
    client = tracking.store()
    register(client, alias="champion")
    register(client, 1, alias="candidate")
    run_id = client.search_runs(["0"])[0].info.run_id
    Path("attacks.json").write_text(json.dumps(attacked(0.0)))
    attachments.attach(ADDRESS, "attacks", run_id, "attacks.json")
    client.set_model_version_tag(NAME, "1", "parent", f"models:/{NAME}/2")
    aliases.move(NAME, "champion", aliases.new_move(aliases.PROMOTE, "1", "2", why="x", run_id=run_id))


def _damage_tags(chance: random.Random) -> Callable[[], object]:
    """Damage a tag of a version or of the registered model, or the param that holds a run's process."""
    client: MlflowClient = tracking.store()
    number = chance.choice(["1", "2"])
    version, model = client.get_model_version(NAME, number), client.get_registered_model(NAME)
    where = [("version", key, text) for key, text in version.tags.items()]
    where += [("model", key, text) for key, text in model.tags.items()] * 4
    kind, key, text = chance.choice(where)
    changed = damaged_json(text, chance) if text.startswith("{") else str(chance.choice(_TEXTS))
    write = (
        partial(client.set_registered_model_tag, NAME)
        if kind == "model"
        else partial(client.set_model_version_tag, NAME, number)
    )
    write(key, changed[:4000])
    return lambda: write(key, text)


_TEXTS = (
    "",
    "text",
    "nan",
    "-1",
    "\x00",
    f"models:/{NAME}/1",
    "models:/nobody/9",
    "models:/x",
    "null",
    "[]",
    "a,a",
    "?" * 500,
)


def _read_version() -> list[Any]:
    attachments.attached(ADDRESS, "attacks")
    history = aliases.promotion_history(aliases.recorded_moves(NAME, "champion"), "2")
    aliases.rollback_target(aliases.recorded_moves(NAME, "champion"), "2")
    version_table.table(version_table.rows(NAME)).to_string()
    lineage.origin(ADDRESS, "auto")
    lineage.classes_of(ADDRESS, "auto", tiny_models.dataset())
    lineage.refuse_other_data(ADDRESS, tiny_models.dataset())
    return history


def _damage_runs(chance: random.Random) -> Callable[[], object]:
    client: MlflowClient = tracking.store()
    opened = client.create_run("0").info.run_id
    parts = tracking.this_process().split("/")
    parts[chance.randrange(len(parts))] = str(chance.choice(_TEXTS)).replace("\x00", "0")
    joined = "/".join(parts) if chance.random() < 0.7 else str(chance.choice(_TEXTS)).replace("\x00", "0")
    client.log_param(opened, tracking.PROCESS, joined)
    return lambda: client.delete_run(opened)


def _make_base_run() -> None:
    tracking.store().create_registered_model("gold")
    _new_base_run(None)


def _new_base_run(chance: random.Random | None) -> Callable[[], object]:
    """Leave a version whose run records how it was trained, in one parameter otherwise than a training can be."""
    client: MlflowClient = tracking.store()
    params = {f"train.{name}": str(value) for name, value in asdict(Training()).items()}
    params |= {"model.null_drop": "0.1", "model.min_snr_gamma": "5.0"}
    if chance is not None:
        params[chance.choice(sorted(params))] = str(chance.choice((*_TEXTS, "1e999", "True", "2"))).replace("\x00", "0")
    run_id = client.create_run("0").info.run_id
    client.log_batch(run_id, params=[Param(*each) for each in params.items()])
    number = str(client.create_model_version("gold", "nowhere", run_id).version)
    client.set_registered_model_alias("gold", "base", number)
    return lambda: client.delete_model_version("gold", number)


def _as_base() -> str:
    return str(retrained._as_base(str(model_versions.find("gold", "base")))[1:])


READERS = {
    "checkpoint": Reader(_make_checkpoint, _newest, guarded=True),
    "checkpoint of another model": Reader(_make_checkpoint, _resume, damage=_other_tensors),
    "manifest and files": Reader(_make_folder, lambda: manifest.verify(INPUT), guarded=True),
    "model folder": Reader(_make_folder, lambda: Diffusion.load(INPUT).digest()),
    "cached data": Reader(_make_dataset, _dataset),
    "judge": Reader(_make_judge, _read_judge),
    "attack results": Reader(_attacked, _attacked, guarded=True),
    "facts of a judge": Reader(_judge_facts, _judge_facts, guarded=True),
    "metric journal": Reader(_make_metrics, _read_metrics),
    "study journal": Reader(_make_study, _read_study),
    "gate file": Reader(_make_gates, _read_gates),
    "evidence": Reader(_make_evidence, _read_evidence, damage=_damage_evidence),
    "images": Reader(partial(tiny_models.write_images, INPUT, 9), lambda: sources.load(str(INPUT)).digest),
    "tags of versions": Reader(_make_version, _read_version, damage=_damage_tags),
    "params of a base": Reader(_make_base_run, _as_base, damage=_new_base_run),
    "params of runs": Reader(_make_version, lambda: reap([]), damage=_damage_runs),
}
