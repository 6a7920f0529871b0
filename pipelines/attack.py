"""Attack a corrected model: is the class gone, or only hidden?

Each attack is run on the model, on the base and on a gold model that was retrained without the class: what an attack also
recovers from the gold model was not hidden in this one. Success is judged by classifiers that no attack has used.
"""

from __future__ import annotations

if __name__ == "__main__":  # first: help and refusals need none of the imports below
    from pipelines.cli import console

    console.run("attack")

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from pipelines.cli.options import DataOptions, PlanOptions
from pipelines.cli.parser import Arguments, parse
from pipelines.correction import retrained
from pipelines.correction.recorded_data import parse_with_recorded
from pipelines.correction.retrained import GoldOptions
from pipelines.engine.options import WorkerOptions
from pipelines.engine.shared_draws import follow_draws, shared_draws
from pipelines.engine.signals import StopSignal, die_with_parent, is_follower_rank, stop_on_signals
from pipelines.examination.attack_report import publish
from pipelines.examination.attack_suite import AttackSuite, Clock, Models
from pipelines.examination.fan_out import Folders, Prepared, attacks_on, each_named, prepare
from pipelines.examination.subject import Subject
from pipelines.planning.plan import Plan, show
from pipelines.planning.stages import Planner
from pipelines.registry import lineage
from safemax import attacks
from safemax.evaluation import shared_attack
from safemax.evaluation.shared_attack import attack_along
from safemax.judges.config import JudgeConfig
from safemax.knobs import check, knob, knobs
from safemax.training.settings import Training

FIRST = ("relearn", "invert", "guided")  # of the attacks with knobs, in the help


@dataclass(frozen=True)
class AttackOptions:
    """The model under attack."""

    model: str = knob(
        "models:/digits-ddpm@candidate",
        "models:/NAME@ALIAS, a folder, or a Hugging Face id; several, separated by commas, get a run each",
    )
    forget: str = knob("auto", "classes to bring back, separated by commas; auto is all that the version has forgotten")
    base: str = knob(
        "auto", "the model before the correction: auto (by the version's tags), none, a folder or an address"
    )
    name: str = knob("auto", "experiment; auto is DATA-ddpm")
    attacks: str = knob("all", f"of {', '.join(attacks.available())}, separated by commas")
    attack_samples: int = knob(80, "images of each trial; 80 give a share to within 11 points", bounds=(10, 100_000))
    attack_seed: int = knob(0, "fixes the attacks", bounds=(0, 2**62))

    def __post_init__(self) -> None:
        check(self)
        for name in self.names:
            attacks.find(name)

    @property
    def names(self) -> list[str]:
        """The attacks to run."""
        if self.attacks == "all":
            return list(attacks.available())
        return [name.strip() for name in self.attacks.split(",")]


def with_knobs() -> dict[str, type]:
    """Return every attack that has knobs of its own, by name: those of FIRST, then the others by the alphabet."""
    own = {name: attack for name, attack in attacks.available().items() if knobs(attack)}
    return {name: own[name] for name in dict.fromkeys((*FIRST, *own))}


PARAMETERS: dict[str, type] = {
    "model": AttackOptions,
    "gold": GoldOptions,
    "data": DataOptions,
    "judging": JudgeConfig,
    **with_knobs(),
    "workers": WorkerOptions,
    "plan": PlanOptions,
}


def attack(argv: Sequence[str]) -> None:
    """Attack a model by the command line's parameters."""
    chosen = parse_with_recorded(
        lambda settings: parse("python -m pipelines.attack", __doc__ or "", PARAMETERS, argv, settings)
    )
    stop = stop_on_signals()
    die_with_parent()
    options: AttackOptions = chosen["model"]
    if is_follower_rank():
        images = cache(chosen["data"].load)
        follow_draws(
            stop, {retrained.JOB: retrained.train_along(images, stop), shared_attack.JOB: attack_along(images)}
        )
        return
    subjects = Subject.every(options, options.base, chosen["data"])
    suite = AttackSuite(
        {name: chosen[name] if name in chosen else attacks.find(name)() for name in options.names},
        options.attack_samples,
        options.attack_seed,
    )
    if chosen["plan"].plan:
        for each in subjects:
            show(_plan(each, suite, chosen["gold"], chosen["judging"]))
        return
    for each in subjects:
        suite.validate(lineage.load(each.address, each.dataset))
        chosen["gold"].validate(each.base, each.dataset)
    prepared = _prepare(subjects, suite, chosen, stop)
    with shared_draws():
        each_named(
            [each.address for each in subjects], lambda n: _attack(subjects[n], suite, prepared[n], chosen, stop)
        )


def _prepare(subjects: Sequence[Subject], suite: AttackSuite, chosen: Arguments, stop: StopSignal) -> list[Prepared]:
    """Do on workers what takes long, where there are several."""
    options: WorkerOptions = chosen["workers"]
    if options.in_process:
        return [Prepared() for _ in subjects]
    models = [
        (each, attacks_on(each, suite, Folders.of(each, chosen["gold"], options, like_base=True))) for each in subjects
    ]
    return prepare(options, chosen["data"], chosen["judging"], models, stop)


def _attack(subject: Subject, suite: AttackSuite, prepared: Prepared, chosen: Arguments, stop: StopSignal) -> None:
    """Attack one model in a run of its own."""
    options: AttackOptions = chosen["model"]
    params = {
        "model.base": subject.base, "model.gold": chosen["gold"].gold, "attack.samples": suite.samples,
        "attack.seed": suite.seed, "attack.names": ",".join(options.names),
    }  # fmt: skip
    with subject.run("attack", f"attack-{subject.title}-seed{suite.seed}", params, list(params)) as run:
        run.parameters(chosen.record(model=subject.address))
        prepared.note(run)
        prepared.raise_failure()
        clock = Clock(prepared.seconds())
        model = lineage.load(subject.address, subject.dataset)
        models = Models.load(subject, model, chosen["gold"], stop, clock)
        with stop.interruptible():
            results = suite.run(models, subject, chosen["judging"], clock)
            about = {
                "attacks": list(results), "changed": suite.changed_knobs(), "forget": subject.class_names,
                "gold": chosen["gold"].gold if models.gold else "none", "samples": suite.samples, "seed": suite.seed,
            }  # fmt: skip
            publish(subject.address, suite, results, about, clock.seconds, run)


def _plan(subject: Subject, suite: AttackSuite, gold: GoldOptions, judging: JudgeConfig) -> Plan:
    diffusion, dataset, forget = lineage.load(subject.address, subject.dataset), subject.dataset, subject.classes.forget
    planner = Planner.measured(diffusion, dataset, forget, Training())
    retrained = gold.untrained(diffusion, subject.base, dataset, forget)
    stages = [*([planner.gold(retrained)] if retrained else []), *planner.judges(judging)]
    models = ["the model", *(["its base"] if subject.base else []), *(["gold"] if gold.gold != "none" else [])]
    stages += [planner.attack(name, each, suite.samples, models) for name, each in suite.attacks.items()]
    logs = f"a run in the experiment {subject.experiment}; the results are attached to the version."
    basis = f"{planner.basis} Attacks that were run before are reused."
    return Plan(f"attack {subject.title}", stages, logs, basis)
