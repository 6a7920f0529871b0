"""The work of a contest: train a base, correct it, measure and attack the result; each piece is kept once it is done."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from hpo.contest.config import Contest, Correction
from hpo.contest.files import code_of
from safemax import metric_keys as keys
from safemax.attacks import find as find_attack
from safemax.attacks.base import Setting
from safemax.data.batches import to_float
from safemax.data.dataset import Dataset
from safemax.diffusion.model import Diffusion
from safemax.evaluation.measure import measure
from safemax.evaluation.samples import Samples, draw
from safemax.judges.attack_helper import attack_helper
from safemax.judges.load import Judges, judges
from safemax.judges.reference import Reference, reference
from safemax.methods import find
from safemax.methods.finetune import Finetune
from safemax.methods.retrain import Retrain
from safemax.metrics.retention import neighbours
from safemax.reports.contest_tables import BASE, GOLD
from safemax.reports.images_and_tables import grid
from safemax.storage import atomic, cache, source_digest
from safemax.training.devices import accelerator_for
from safemax.training.hooks import Folders, Hooks
from safemax.training.method import Method
from safemax.training.settings import Training
from safemax.training.trainer import Trainer

SHOWN = 10  # images of the forgotten class in a result file
PROBED = 4  # steps from which a method's rows a step are counted
MEASURED = {
    "recognised": keys.RECOGNISED, "ua_reject": keys.UA_REJECT, "second_recognised": keys.SECOND_RECOGNISED,
    "fid": keys.FID_JUDGE, "accuracy": keys.ACCURACY, "entropy": keys.ENTROPY,
}  # fmt: skip


@dataclass
class Workshop:
    """What the corrections of a contest need, loaded once in a process.

    Args:
        contest: what is compared.
        stop: called before each step; True ends the work with Stopped.
    """

    contest: Contest
    stop: Callable[[], bool] = lambda: False

    @cached_property
    def dataset(self) -> Dataset:
        """The images."""
        return self.contest.data.load(quiet=True)

    @cached_property
    def device(self) -> torch.device:
        """Where models are trained and sampled."""
        return accelerator_for(self.contest.base_training(0)).device

    @cached_property
    def judges(self) -> Judges:
        """The classifiers that judge."""
        return judges(self.dataset, self.contest.judging, device=str(self.device), progress=False)

    @cached_property
    def reference(self) -> Reference:
        """Features of real images."""
        return reference(self.dataset, self.judges)

    def base(self, number: int) -> Diffusion:
        """Return a base, trained once; its seed is its number."""
        return self._pretrained("base", Finetune, number, ())

    def gold(self, number: int, label: int) -> Diffusion:
        """Return a model that was trained as a base was, without a class."""
        return self._pretrained("gold", Retrain, number, (label,))

    def _pretrained(
        self, kind: str, method: type[Finetune] | type[Retrain], number: int, without: tuple[int, ...]
    ) -> Diffusion:
        folder = self.folder(kind, number, without)
        if not cache.has(folder):
            training = self.contest.base_training(number)
            diffusion = self.contest.network.create(self.dataset, training.seed)
            self._fit(diffusion, method(**self._base_knobs), training, without)
            atomic.create_folder(folder, diffusion.save)
        return Diffusion.load(folder).to(self.device)

    def folder(self, kind: str, number: int, without: tuple[int, ...]) -> Path:
        """Return where a base or a gold model is kept.

        Args:
            kind: base or gold.
            number: of the base, also the seed.
            without: labels that it never sees.
        """
        training = self.contest.base_training(number)
        facts = {
            "start": self.contest.network.create(self.dataset, training.seed).digest(), "training": asdict(training),
            "knobs": self._base_knobs, "data": self.dataset.digest, "without": without,
        }  # fmt: skip
        return cache.folder("contest") / f"{kind}-{cache.key(facts)}"

    @property
    def _base_knobs(self) -> dict[str, float]:
        network = self.contest.network
        return {"null_drop": network.null_drop, "min_snr_gamma": network.min_snr_gamma}

    def steps_for(self, name: str) -> int:
        """Return how many steps of a method the contest's rows pay for; 0 for one that has none."""
        method, training = self.contest.method(name, {})
        if not training.steps:
            return 0
        facts = {"method": name, "code": source_digest.digest(find(name).__module__), "data": self.dataset.digest}
        content = _kept(facts | {"training": asdict(training)}, lambda: self._probe(method, training))
        return max(1, int(self.contest.options.rows / content["rows"]))

    def correct(self, correction: Correction) -> dict[str, Any]:
        """Return what a correction cost, what was measured of it, and the outcome of its attacks, as JSON."""
        return _kept(self._facts(correction), lambda: self._correct(correction))

    def _facts(self, correction: Correction) -> dict[str, Any]:
        contest, is_method = self.contest, correction.method not in (BASE, GOLD)
        attacks = [source_digest.digest(find_attack(name).__module__) for name in correction.attacks]
        return {
            **asdict(correction), "steps": self.steps_for(correction.method) if is_method else 0,
            "contest": contest.describe() | {"rows": 0, "classes": []},
            "judges": self.judges.digest, "code": [code_of(correction.method), *attacks],
        }  # fmt: skip

    def _correct(self, correction: Correction) -> dict[str, Any]:
        diffusion, cost = self._corrected(correction)
        drawn = [self._draw(diffusion, correction, seed) for seed in correction.evaluations]
        rows = [
            {"evaluation": seed, **self._measured(samples, correction.forget)}
            for seed, samples in zip(correction.evaluations, drawn, strict=True)
        ]
        return {
            "cost": cost, "rows": rows, "attacks": self._attacks(diffusion, correction),
            "picture": _picture(drawn[0], correction.forget),
        }  # fmt: skip

    def _corrected(self, correction: Correction) -> tuple[Diffusion, dict[str, float]]:
        if correction.method == GOLD:
            return self.gold(correction.base, correction.forget), {}
        diffusion = self.base(correction.base)
        if correction.method == BASE:
            return diffusion, {}
        method, training = self.contest.method(correction.method, dict(correction.values))
        training = replace(training, steps=self.steps_for(correction.method), seed=correction.seed)
        return diffusion, self._fit(diffusion, method, training, (correction.forget,))

    def _draw(self, diffusion: Diffusion, correction: Correction, seed: int) -> Samples:
        forget = (correction.forget,)
        evaluation = self.contest.measurement(correction, seed).fitted(diffusion, forget)
        return draw(diffusion, forget, evaluation, shown=1, progress=False)

    def _measured(self, samples: Samples, label: int) -> dict[str, float]:
        metrics = measure(samples, self.judges, self.reference, (label,))
        return {name: round(metrics[key], 5) for name, key in MEASURED.items()}

    def _attacks(self, diffusion: Diffusion, correction: Correction) -> dict[str, Any]:
        if not correction.attacks:
            return {}
        setting = Setting(
            self.dataset, (correction.forget,), self.judges.reject,
            attack_helper(self.dataset, self.contest.judging, self.judges, progress=False),
            neighbours(self.reference, (correction.forget,))[0], self.base(correction.base),
        )  # fmt: skip
        results = {name: find_attack(name)().run(diffusion, setting) for name in correction.attacks}
        return {
            name: {
                "success": result.success,
                "curve": [[cell.variant, cell.x, cell.recognised] for cell in result.cells],
            }
            for name, result in results.items()
        }

    def _probe(self, method: Method, training: Training) -> dict[str, float]:
        diffusion = self.contest.network.create(self.dataset, 0)
        label = (self.contest.tune_classes or self.contest.classes)[0]
        return {"rows": self._fit(diffusion, method, replace(training, steps=PROBED), (label,))["rows"] / PROBED}

    def _fit(
        self, diffusion: Diffusion, method: Method, training: Training, forget: tuple[int, ...]
    ) -> dict[str, float]:
        """Train, and return the cost: rows through the denoiser before the first step and after it, minutes, memory."""
        with RowCounter(diffusion) as counter:
            hooks = Hooks(should_stop=lambda: counter.note_start() or self.stop(), progress=False)
            result = Trainer(
                diffusion, method, self.dataset.train, forget, training,
                flip=self.dataset.natural, hooks=hooks, folders=Folders(priors=cache.folder("priors")),
            ).fit()  # fmt: skip
        cost = result.cost
        return {
            "rows": counter.rows, "prior_rows": counter.prior_rows, "steps": training.steps,
            "minutes": cost.runtime_minutes, "setup_minutes": cost.setup_minutes, "memory_gb": cost.peak_memory_gb,
        }  # fmt: skip


class RowCounter:
    """Counts the rows that pass through a model's denoiser: those of a method's preparation, and those of its steps."""

    def __init__(self, diffusion: Diffusion) -> None:
        self._total, self._before = 0, -1
        self._handle = diffusion.denoiser.register_forward_pre_hook(self._add)

    def __enter__(self) -> RowCounter:
        """Count inside the block."""
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def note_start(self) -> bool:
        """Note that a step begins; everything before the first one was preparation. Return False, for Hooks.should_stop."""
        if self._before < 0:
            self._before = self._total
        return False

    @property
    def prior_rows(self) -> int:
        """Rows before the first step."""
        return self._total if self._before < 0 else self._before

    @property
    def rows(self) -> int:
        """Rows since."""
        return self._total - self.prior_rows

    def _add(self, _: object, arguments: tuple[Any, ...]) -> None:
        self._total += len(arguments[0])


def _kept(facts: Mapping[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    path = cache.folder("contest") / f"{cache.key(facts)}.json"
    if not cache.has(path):
        atomic.write_bytes(path, json.dumps(make()).encode())
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def _picture(samples: Samples, label: int) -> str:
    """Return the first images of the forgotten class as a PNG in base64."""
    images = to_float(samples.images[samples.labels == label][:SHOWN])
    content = io.BytesIO()
    grid(images, SHOWN).save(content, "PNG", optimize=True)
    return base64.b64encode(content.getvalue()).decode()
