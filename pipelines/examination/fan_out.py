"""Several models examined side by side: workers do what takes long, into the cache; then each model gets its run as if alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields

from pipelines import tracking
from pipelines.cli.options import DataOptions
from pipelines.correction.judge_jobs import train_judges
from pipelines.correction.retrained import GoldOptions
from pipelines.correction.source import seen_by_workers
from pipelines.engine.batch import Batches, raise_if_stopped
from pipelines.engine.options import WorkerOptions
from pipelines.engine.signals import StopSignal
from pipelines.engine.worker import Message
from pipelines.engine.workers import open_workers
from pipelines.examination import jobs
from pipelines.examination.attack_suite import AttackSuite
from pipelines.examination.subject import Subject
from pipelines.registry import lineage, model_versions
from safemax.diffusion import team
from safemax.diffusion.folder import locate
from safemax.errors import InputError, NonFiniteError
from safemax.evaluation.protocol import Evaluation
from safemax.judges.config import JudgeConfig
from safemax.judges.load import Judges
from safemax.training.devices import number_of_processes

AUTO = "auto"  # device of the workers: models are examined where there is a GPU on it


@dataclass
class Prepared:
    """What workers have done ahead for one model.

    Args:
        parts: its jobs, by what they are for; jobs that models share are done once.
        results: of the jobs that were done, by key.
        reasons: why others failed.
    """

    parts: Mapping[str, Message] = field(default_factory=dict)
    results: Mapping[str, Message] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)

    def raise_failure(self) -> None:
        """Raise InputError with the first failure, if there is one."""
        for what, job in self.parts.items():
            if reason := self.reasons.get(_key(job)):
                raise InputError(f"{what}: {reason}")

    def result(self, what: str) -> Message:
        """Return the result of a part; {} where it was not done ahead."""
        return self.results.get(_key(self.parts[what]), {}) if what in self.parts else {}

    def refuse_other_judges(self, own: Judges) -> None:
        """Raise InputError where a worker judged by other judges than these, as auto may mean others on its machine."""
        for what in self.parts:
            if self.result(what).get("judges", jobs.named(own)) != jobs.named(own):
                raise InputError(
                    f"{what} was measured by judges that this machine does not have; give judge, reject_judge and inception"
                )

    def seconds(self) -> dict[str, float]:
        """Return what the parts took, by what they are for."""
        return {what: self.result(what)["seconds"] for what in self.parts if self.result(what)}

    def metrics(self) -> dict[str, dict[str, float]]:
        """Return what was measured, by address."""
        return {what: self.result(what)["metrics"] for what in self.parts if "metrics" in self.result(what)}

    def note(self, run: tracking.Run) -> None:
        """Attach what the workers printed of these jobs to the model's run."""
        logs = [f"{what}\n{text}" for what in self.parts if (text := self.result(what).get("log", ""))]
        if logs:
            run.text("\n".join(logs), "worker.log")


@dataclass(frozen=True)
class Folders:
    """Where workers find the models of an examination.

    Args:
        model: to examine.
        base: "" where there is none.
        gold: "" where there is none.
        training: the job that trains the gold model first, None where none is trained.
    """

    model: str
    base: str
    gold: str
    training: Message | None

    @classmethod
    def of(cls, subject: Subject, gold: GoldOptions, options: WorkerOptions, *, like_base: bool) -> Folders:
        """Find the folders.

        Args:
            subject: the model.
            gold: which gold model.
            options: of the workers.
            like_base: whether the gold model has the network of the base, not of the model.
        """
        model = _seen(subject.address, options)
        base = _seen(subject.base, options) if subject.base else ""
        template, forget = (base or model) if like_base else model, subject.classes.forget
        place = gold.place(lineage.load(template, subject.dataset), subject.base, subject.dataset, forget)
        training = None
        if place is not None and not place.exists():
            recipe = asdict(gold.recipe(subject.base))
            training = {"kind": jobs.GOLD, "template": template, "recipe": recipe, "forget": list(forget)}
        return cls(model, base, "" if place is None else str(place.absolute()), training)


def measurements(subject: Subject, evaluation: Evaluation, folders: Folders) -> dict[str, Message]:
    """Return the jobs of an evaluation, by the address of what is measured."""
    classes, parts = subject.classes, {"gold model": folders.training} if folders.training else {}
    measured = {subject.address: folders.model, **({subject.base: folders.base} if subject.base else {})}
    shared = {"forget": list(classes.forget), "evaluation": asdict(evaluation)}
    shared["forgotten"] = [subject.dataset.class_names[k] for k in classes.forgotten_earlier]
    return parts | {
        address: {"kind": jobs.MEASURE, "model": folder, "gold": folders.gold, **shared}
        for address, folder in measured.items()
    }


def attacks_on(subject: Subject, suite: AttackSuite, folders: Folders) -> dict[str, Message]:
    """Return the jobs of a run of attacks, by what each is for."""
    parts = {"gold model": folders.training} if folders.training else {}
    attacked = {"model": folders.model, "base": folders.base, "gold": folders.gold}
    shared: Message = {"base": folders.base, "forget": list(subject.classes.forget)}
    shared |= {"samples": suite.samples, "seed": suite.seed}
    for name, attack in suite.attacks.items():
        knobs = {each.name: getattr(attack, each.name) for each in fields(attack) if each.init}
        for role, folder in attacked.items():
            if folder:
                parts[f"{name} on {role}"] = {
                    "kind": jobs.ATTACK, "name": name, "knobs": knobs, "model": folder, **shared,
                }  # fmt: skip
    return parts


def prepare(
    options: WorkerOptions, data: DataOptions, judging: JudgeConfig, models: Sequence[tuple[Subject, Mapping[str, Message]]],
    stop: StopSignal,
) -> list[Prepared]:  # fmt: skip
    """Do the jobs of all models on workers, those that several models share once; return what was done for each.

    Args:
        options: of the workers.
        data: how the images are loaded.
        judging: which judges.
        models: each with its jobs, by what they are for.
        stop: raised, it ends the work with Stopped; the same command resumes.

    Raises:
        InputError: under torchrun, whose processes share the work in another way.
    """
    if number_of_processes() > 1:
        raise InputError(
            f"workers = {options.workers}, cluster = {options.cluster} do not work under torchrun: use one or the other"
        )
    results: dict[str, Message] = {}

    def keep(job: Message, result: Message) -> str:
        results[_key(job)] = result
        return f"{result['seconds']:.0f} s"

    train_judges(options, data, models[0][0].dataset, judging, AUTO, stop)
    names = {_key(job): f"{subject.address}, {what}" for subject, parts in models for what, job in parts.items()}
    batches = Batches(options, lambda job: names[_key(job)], keep)
    config = jobs.ExaminationConfig(asdict(data), asdict(judging))
    unique = {_key(job): job for _, parts in models for job in parts.values()}.values()
    with open_workers(options, jobs.load, config, stop, raise_if_stopped(stop), device=AUTO) as workers:
        for stage in _stages(unique):
            batches.do(workers, stage)
    reasons = {_key(job): reason for job, reason in batches.failures}
    return [Prepared(parts, results, reasons) for _, parts in models]


def each_named(addresses: Sequence[str], examine: Callable[[int], None]) -> None:
    """Examine each of several models; InputError in the end where some failed, which names them.

    Args:
        addresses: of the models.
        examine: examines one, by its place; alone, its error is raised as it is.
    """
    failures = []
    for place, address in enumerate(addresses):
        try:
            examine(place)
        except (InputError, NonFiniteError) as error:
            shared = team.current()
            if len(addresses) == 1 or (shared is not None and not shared.is_whole):
                raise
            failures.append(f"{address}: {error}")
    if failures:
        raise InputError(f"failed models: {len(failures)} of {len(addresses)}, the first: {failures[0]}")


def _stages(every: Iterable[Message]) -> list[list[Message]]:
    """Gold models first: measurements and attacks take them."""
    stages: list[list[Message]] = [[], []]
    for job in every:
        stages[job["kind"] != jobs.GOLD].append(job)
    return [stage for stage in stages if stage]


def _seen(address: str, options: WorkerOptions) -> str:
    folder = locate(str(model_versions.resolve(address)))
    return str(seen_by_workers(folder, options).absolute())


def _key(job: Message) -> str:
    return json.dumps(job, sort_keys=True)
