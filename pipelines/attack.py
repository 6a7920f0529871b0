"""Attack a corrected model: is the class gone, or only hidden?

Each attack is run on the model, on the base and on a gold model that was retrained without the class: what comes out of the
gold model too was not hidden in this one. Success is judged by classifiers that no attack has used.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines import tracking
from pipelines.cli.options import DataOptions, product
from pipelines.cli.parser import main, parse
from pipelines.correction.retrained import GoldOptions
from pipelines.engine.signals import StopSignal, die_with_parent, stop_on_sigterm
from pipelines.registry import lineage, model_versions, registration
from safemax import attacks
from safemax.attacks.base import Attack, Setting
from safemax.attacks.guided import Guided
from safemax.attacks.invert import Invert
from safemax.attacks.relearn import Relearn
from safemax.data.dataset import Dataset
from safemax.diffusion.model import Diffusion
from safemax.evaluation.attack_results import AttackComparison, cached_attack, metrics, table
from safemax.evaluation.retention import neighbours
from safemax.judges.load import JudgeConfig, Judges, judges, reference
from safemax.knobs import check, knob
from safemax.reports.attack_figures import figure
from safemax.reports.images_and_tables import as_markdown, as_text


@dataclass(frozen=True)
class AttackOptions:
    """The model under attack."""

    model: str = knob("models:/digits-ddpm@candidate", "models:/NAME@ALIAS, a folder, or a Hugging Face id")
    forget: str = knob("auto", "classes to bring back, separated by commas; auto is all that the version has forgotten")
    base: str = knob(
        "auto", "the model before the correction: auto (by the version's tags), none, a folder or an address"
    )
    name: str = knob("auto", "experiment; auto is DATA-ddpm")
    attacks: str = knob("all", f"of {', '.join(attacks.available())}, separated by commas")
    attack_samples: int = knob(80, "images of each trial; 80 tell a share to 11 points or better", bounds=(10, 100_000))
    attack_seed: int = knob(0, "fixes the attacks", bounds=(0, 2**62))

    def __post_init__(self) -> None:
        check(self)
        for name in self.names:
            attacks.find(name)

    @property
    def names(self) -> list[str]:
        """The attacks to run."""
        return (
            list(attacks.available()) if self.attacks == "all" else [name.strip() for name in self.attacks.split(",")]
        )


PARAMETERS: dict[str, type] = {
    "model": AttackOptions,
    "gold": GoldOptions,
    "data": DataOptions,
    "judging": JudgeConfig,
    "relearn": Relearn,
    "invert": Invert,
    "guided": Guided,
}


@dataclass
class Clock:
    """Seconds by what they were spent on."""

    seconds: dict[str, float]

    @contextmanager
    def time(self, what: str) -> Any:
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

    def present(self) -> dict[str, Diffusion]:
        """Return those that there are, by name."""
        every = {"model": self.model, "base": self.base, "gold": self.gold}
        return {who: each for who, each in every.items() if each is not None}


def attack(argv: Sequence[str]) -> None:
    """Attack a model by the command line's parameters."""
    chosen = parse("python -m pipelines.attack", __doc__ or "", PARAMETERS, argv)
    stop = stop_on_sigterm()
    die_with_parent()
    subject: AttackOptions = chosen["model"]
    dataset: Dataset = chosen["data"].load()
    experiment = product(subject.name, dataset.name)
    tracking.setup(experiment)
    address = model_versions.pinned(subject.model)
    lineage.refuse_other_data(address, dataset)
    forget = lineage.classes_of(address, subject.forget, dataset)
    base = lineage.origin(address, subject.base)
    names = [dataset.class_names[k] for k in forget]
    run_name = f"attack-{dataset.name}-forget{'+'.join(names)}-seed{subject.attack_seed}"
    params = {
        "model.source": address, "model.base": base, "model.gold": chosen["gold"].gold, "data.name": dataset.name,
        "data.digest": dataset.digest, "data.forget": ",".join(names), "attack.samples": subject.attack_samples,
        "attack.seed": subject.attack_seed, "attack.names": ",".join(subject.names),
    }  # fmt: skip
    with tracking.run(
        run_name, experiment=experiment, params=params, tags={"kind": "attack", "version": address}
    ) as run:
        run.dataset(dataset, "attack")
        clock = Clock({})
        models = _models(address, base, chosen, dataset, forget, stop, clock)
        with stop.interruptible():
            results = _attacked(models, chosen, dataset, forget, clock)
            about = {
                "attacks": list(results), "changed": _changed(chosen, results), "forget": names,
                "gold": chosen["gold"].gold if models.gold else "none", "samples": subject.attack_samples,
                "seed": subject.attack_seed,
            }  # fmt: skip
            _publish(address, results, about, chosen, run, clock)


def _models(
    address: str,
    base: str | None,
    chosen: dict[str, Any],
    dataset: Dataset,
    forget: tuple[int, ...],
    stop: StopSignal,
    clock: Clock,
) -> Models:
    model = lineage.load(address, dataset)
    before = lineage.load(base, dataset) if base else None
    with clock.time("gold model"):
        gold = chosen["gold"].find(before or model, base, dataset, forget, stop)
    return Models(model, before, gold)


def _attacked(
    models: Models, chosen: dict[str, Any], dataset: Dataset, forget: tuple[int, ...], clock: Clock
) -> dict[str, AttackComparison]:
    subject: AttackOptions = chosen["model"]
    with clock.time("judges"):
        jury: Judges = judges(dataset, chosen["judging"], device=str(models.model.device))
        near = neighbours(reference(dataset, jury), forget)[0]
    setting = Setting(
        dataset, forget, jury.reject, jury.plain, near, models.base, subject.attack_samples, subject.attack_seed
    )
    results = {}
    for name in subject.names:
        weapon = _weapon(name, chosen)
        outcomes = {}
        for who, each in models.present().items():
            print(f"{name} on {who} ...", flush=True)
            with clock.time(f"{name} on {who}"):
                outcomes[who] = cached_attack(name, weapon, each, setting, judges=jury.digest)
        results[name] = AttackComparison(**outcomes)
    return results


def _weapon(name: str, chosen: dict[str, Any]) -> Attack:
    return chosen[name] if name in chosen else attacks.find(name)()


def _changed(chosen: dict[str, Any], results: dict[str, AttackComparison]) -> list[str]:
    """Return the knobs of the attacks that were run which are not at their defaults, such as relearn_steps."""
    weapons = {name: _weapon(name, chosen) for name in results}
    return [
        each.name for weapon in weapons.values() for each in fields(weapon)
        if each.init and getattr(weapon, each.name) != getattr(type(weapon)(), each.name)
    ]  # fmt: skip


def _publish(
    address: str,
    results: dict[str, AttackComparison],
    about: dict[str, Any],
    chosen: dict[str, Any],
    run: tracking.Run,
    clock: Clock,
) -> None:
    found, frame = metrics(results), table(results)
    run.log(found)
    pictures = [run.picture(figure(_weapon(name, chosen), trio), f"attack/{name}") for name, trio in results.items()]
    run.table(frame.reset_index(), "attacks")
    spent = pd.DataFrame({"seconds": clock.seconds}).rename_axis("what")
    run.table(spent.reset_index(), "seconds")
    run.note("\n\n".join([f"Attacks on {address}", as_markdown(frame, 1), _reading(found), *pictures]))
    if address.startswith("models:"):
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "attacks.json"
            path.write_text(json.dumps({"metrics": found, "about": about}, indent=1, sort_keys=True) + "\n")
            registration.attach(address, "attacks", run.id, path)
    print(f"\n{as_text(frame, 1)}\n\n{_reading(found)}\n\n{as_text(spent, 1)}\n\n{run.url}  (after `make ui`)")


def _reading(found: dict[str, float]) -> str:
    if "attack/worst_delta" not in found:
        return "No gold model was attacked beside it: success alone does not tell a hidden class from one that can be learned."
    return (
        f"Success in percent of the samples. At most {found['attack/worst_delta']:+.1f} points beyond the gold model, "
        f"resilience {found['attack/resilience']:.2f}."
    )


if __name__ == "__main__":
    main(attack)
